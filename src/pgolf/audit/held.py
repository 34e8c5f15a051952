"""What a scorer holds of the text before it is shown any of it: the validation text, or its counts."""

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
MOST_COUNTS = 0.5
"""Share of the n-grams whose counts are held that may have the same count in the text."""
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


def held_by(subject: Any) -> dict[str, NDArray[Any]]:
    """All whole numbers (n,) that a subject holds, by their path."""
    function = subject.function if isinstance(subject, Evaluator) else subject
    # What a function was made with.
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return integers(function) | integers(cells)


def held_text(numbers: dict[str, NDArray[Any]], text: Tokens) -> Finding:
    """Compare what a subject holds (see ``held_by``) with the text that it is about to score."""
    largest, where, searched = Overlap(0.0, 0.0, 0), "nowhere", 0
    for path, held in numbers.items():
        if len(held) >= RUN:
            searched += len(held)
            found = overlap(held, text)
            if max(found[:2]) > max(largest[:2]):
                largest, where = found, path
    counts = _counted(numbers, text)
    share = (
        f"{largest.of_text:.1%} of the text's {len(text):,} tokens, {largest.of_held:.1%} of what it holds"
    )
    evidence = (
        f"{share} ({where}) lie in runs of {RUN} tokens that both have, the longest {largest.longest:,}; "
        f"{searched:,} numbers searched; allowed {MOST:.0%}"
    )
    if counts is not None:
        evidence += (
            f"; {counts:.1%} of n-grams that it counts are as frequent in the text, {MOST_COUNTS:.0%} may be"
        )
    wrong = max(largest[:2]) > MOST or (counts or 0) > MOST_COUNTS
    details = {**largest._asdict(), "where": where, "searched": searched, "allowed": MOST, "counts": counts}
    return verdict("C1", "held text", wrong, evidence, details)


def _counted(parts: dict[str, NDArray[Any]], text: Tokens) -> float | None:
    """The largest share of a memory's longest n-grams that are as frequent in the text, if it has any."""
    shares = []
    for path, held in parts.items():
        leaves = parts.get(path.removesuffix("ngrams") + "leaves")
        if not path.endswith("ngrams") or leaves is None or len(held) < 3 * (len(leaves) + RUN):
            continue
        rows = held.reshape(-1, 3)
        from pgolf.memory.pruning import nearest  # Brings a compiler.

        lengths = np.ones(len(rows), np.int64)
        while not np.array_equal(lengths[len(leaves) :], lengths[rows[len(leaves) :, 0]] + 1):
            lengths[len(leaves) :] = lengths[rows[len(leaves) :, 0]] + 1
        enough = np.flatnonzero(np.bincount(lengths) >= RUN)
        length = int(enough[enough <= len(text)].max(initial=1))
        if length == 1:  # Tokens by themselves are as frequent in any text of that kind.
            continue
        chosen = row = np.flatnonzero(lengths == length)
        wanted, found, factor = np.zeros(len(row), np.uint64), np.zeros(len(text) - length + 1, np.uint64), 1
        for back in range(length - 1, -1, -1):
            # The same fingerprint of n-grams and of what stands at each place of the text.
            wanted += (leaves[rows[row, 1]].astype(np.uint64) + np.uint64(1)) * np.uint64(factor)
            found += (text[back : len(found) + back].astype(np.uint64) + np.uint64(1)) * np.uint64(factor)
            row, factor = rows[row, 0], factor * 0x9E3779B97F4A7C15 % 2**64
        known, times = np.unique(found[np.isin(found, wanted)], return_counts=True)
        if len(known):
            at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            same = (known[at] == wanted) & (nearest(times[at]) == rows[chosen, 2])
            shares.append(float(same.mean()))
    return max(shares, default=None)


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
