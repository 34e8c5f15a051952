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
"""Share of the targets that may lie in such runs."""
_PART = 1 << 22  # targets that are compared at once
_FACTOR = 0x9E3779B97F4A7C15


class Overlap(NamedTuple):
    """What one text has of another."""

    share: float
    """Of the targets, those that lie in a run of ``RUN`` tokens that both have."""
    longest: int
    """Tokens of the longest stretch of such runs."""


def overlap(held: NDArray[Any], text: Tokens) -> Overlap:
    """How much of a text (n + 1,) some integers (m,) hold."""
    known = np.unique(_fingerprints(held))
    covered = np.zeros(len(text) + 1, np.int64)
    for begin in range(0, len(text) - RUN + 1, _PART):
        found = np.isin(_fingerprints(text[begin : begin + _PART + RUN - 1]), known)
        places = begin + np.flatnonzero(found)
        covered[places] += 1
        covered[places + RUN] -= 1
    inside = np.cumsum(covered[:-1]) > 0
    ends = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]])))
    longest = int((ends[1::2] - ends[::2]).max(initial=0))
    return Overlap(float(inside[1:].mean()), longest)


def held_text(subject: Any, text: Tokens) -> Finding:
    """Compare all integers that a subject holds with the text that it is about to score."""
    function = subject.function if isinstance(subject, Evaluator) else subject
    # What a function was made with.
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    largest, where = Overlap(0.0, 0), ""
    searched = 0
    for path, held in (integers(function) | integers(cells)).items():
        if len(held) < RUN:
            continue
        searched += len(held)
        found = overlap(held, text)
        if found.longest > largest.longest:
            largest, where = found, f" ({path})"
    evidence = (
        f"{largest.share:.1%} of {len(text) - 1:,} targets lie in runs of {RUN} tokens that it holds{where}, the "
        f"longest has {largest.longest:,}; {searched:,} integers searched, allowed {MOST:.0%}"
    )
    details = {"share": largest.share, "longest": largest.longest, "searched": searched, "allowed": MOST}
    return verdict("C1", "held text", largest.share > MOST, evidence, details)


def _fingerprints(tokens: NDArray[Any]) -> NDArray[np.uint64]:
    """Of every run of ``RUN`` tokens, modulo 2^64."""
    wide = tokens.astype(np.uint64)
    count = max(len(wide) - RUN + 1, 0)
    found = np.zeros(count, np.uint64)
    for place in range(RUN):
        found = found * np.uint64(_FACTOR) + wide[place : place + count] + np.uint64(1)
    # The lowest bits of a product know little of what came first.
    return found ^ (found >> np.uint64(32))
