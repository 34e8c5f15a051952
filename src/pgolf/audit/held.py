"""What a scorer holds of the text before it is shown any of it: stored text that is the validation text."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.audit.report import Finding, verdict
from pgolf.audit.state import integers
from pgolf.audit.subject import Evaluator
from pgolf.data.shards import Tokens

RUN = 32
"""Tokens in a row that are no coincidence; texts of one kind share some, by quoting and by habit."""
MOST = 0.1
"""Share of the text, or of what is held, that may lie in runs that both have."""
_PART = 1 << 22  # targets that are compared at once


class Overlap(NamedTuple):
    """What two texts have in common: tokens that lie in a run of ``RUN`` tokens that both have."""

    of_text: float
    """Their share of the one."""
    of_held: float
    """Their share of the other."""
    longest: int
    """Tokens of their longest stretch in the first."""


def overlap(held: NDArray[Any], text: Tokens) -> Overlap:
    """What a text (n,) and other whole numbers (m,) have in common."""
    runs = _fingerprints(held)
    known, in_held, in_text = np.unique(runs), np.zeros(len(runs), np.bool_), np.zeros(len(text), np.bool_)
    for begin in range(0, len(text) - RUN + 1, _PART):
        part = _fingerprints(text[begin : begin + _PART + RUN - 1])
        in_text[begin : begin + len(part)] = np.isin(part, known)
        in_held |= np.isin(runs, part)
    covered = _covered(in_text, len(text))
    ends = np.flatnonzero(np.diff(covered, prepend=False, append=False))
    longest = int((ends[1::2] - ends[::2]).max(initial=0))
    return Overlap(float(covered.mean()), float(_covered(in_held, len(held)).mean()), longest)


def held_text(subject: Any, text: Tokens) -> Finding:
    """Compare all whole numbers that a subject holds with the text that it is about to score."""
    function = subject.function if isinstance(subject, Evaluator) else subject
    # What a function was made with.
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    largest, where, searched = Overlap(0.0, 0.0, 0), "nowhere", 0
    for path, held in (integers(function) | integers(cells)).items():
        if len(held) >= RUN:
            searched += len(held)
            found = overlap(held, text)
            if max(found[:2]) > max(largest[:2]):
                largest, where = found, path
    share = (
        f"{largest.of_text:.1%} of the text's {len(text):,} tokens, {largest.of_held:.1%} of what it holds"
    )
    evidence = (
        f"{share} ({where}) lie in runs of {RUN} tokens that both have, the longest {largest.longest:,}; "
        f"{searched:,} numbers searched; allowed {MOST:.0%}"
    )
    details = {**largest._asdict(), "where": where, "searched": searched, "allowed": MOST}
    return verdict("C1", "held text", max(largest[:2]) > MOST, evidence, details)


def _fingerprints(tokens: NDArray[Any]) -> NDArray[np.uint64]:
    """Of every run of ``RUN`` tokens, modulo 2^64: from those of half the length."""
    found, length, factor = tokens.astype(np.uint64) + np.uint64(1), 1, 0x9E3779B97F4A7C15
    while length < RUN:
        found = found[:-length] * np.uint64(factor) + found[length:]
        length, factor = 2 * length, factor * factor % 2**64
    return found


def _covered(begins: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Which of ``count`` tokens lie in a run that begins at one of these places."""
    changes = np.zeros(count + 1, np.int64)
    changes[np.flatnonzero(begins)] += 1
    changes[np.flatnonzero(begins) + RUN] -= 1
    return np.cumsum(changes)[:-1] > 0
