"""Two runs on the same text: is their difference more than the choice of the text?

Seeds tell whether a recipe is better; stretches of text tell whether one artifact is better than another on
text of this kind. The second says nothing of other seeds, but needs one run a side, and is all there is to
know where no seed is involved, as between two ways to pack the same weights.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgolf.evaluate.ledger import Entry, read_ledger
from pgolf.study.statistics import LEVEL

MOST_STRETCHES, FEWEST_STRETCHES = 50, 10
"""Neighbouring ranges are alike, so they are joined to few long stretches, which are nearly independent."""


@dataclass(frozen=True)
class TextComparison:
    """The difference of two runs over the stretches of one text."""

    difference: float
    """New minus old, nats per target."""
    low: float
    high: float
    """95 % interval over texts like this one, for these two artifacts."""
    p: float
    """Two-sided, against no difference."""
    stretches: int

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def compare_text(new: Path, old: Path) -> TextComparison | None:
    """Compare two ledgers range by range.

    The difference per target is a ratio of sums; its error is that of the ratio estimator over contiguous
    stretches (Cochran 1977, section 6.3), with Student's t.

    Returns:
        None if the ledgers are not of the same ranges of the same text, or too short for ten stretches.
    Raises:
        PgolfError: one of them cannot be read.
    """
    from scipy import special

    news, olds = (read_ledger(path)[1] for path in (new, old))
    if [_range(entry) for entry in news] != [_range(entry) for entry in olds]:
        return None
    count = min(MOST_STRETCHES, len(news))
    if count < FEWEST_STRETCHES:
        return None
    ends = [len(news) * index // count for index in range(count + 1)]
    parts = [slice(first, last) for first, last in itertools.pairwise(ends)]
    gaps = [math.fsum(a.nats - b.nats for a, b in zip(news[part], olds[part], strict=True)) for part in parts]
    sizes = [sum(entry.targets for entry in news[part]) for part in parts]
    difference = math.fsum(gaps) / sum(sizes)
    squares = math.fsum((gap - difference * size) ** 2 for gap, size in zip(gaps, sizes, strict=True))
    error = math.sqrt(count / (count - 1) * squares) / sum(sizes)
    if error == 0:
        return TextComparison(difference, difference, difference, 1.0 if difference == 0 else 0.0, count)
    half = float(special.stdtrit(count - 1, 1 - LEVEL / 2)) * error
    p = 2 * float(special.stdtr(count - 1, -abs(difference / error)))
    return TextComparison(difference, difference - half, difference + half, p, count)


def _range(entry: Entry) -> tuple[int, int, str]:
    return entry.first, entry.targets, entry.text
