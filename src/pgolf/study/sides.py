"""The two sides of a comparison: runs of one recipe with different seeds, or published losses.

Seeds tell whether a recipe is better; stretches of text tell whether one artifact is better than another on
text of this kind (``compare_text``). The second says nothing of other seeds, but needs one run a side, and is
all there is to know where no seed is involved, as between two ways to pack the same weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS
from pgolf.evaluate.ledger import read_header, read_ledger
from pgolf.recipe.recipe import load_recipe
from pgolf.runtime.run_files import RECIPE, RESULT, read_result
from pgolf.study.statistics import LEVEL, Losses, quantile, two_sided

MOST_STRETCHES, FEWEST_STRETCHES = 50, 10
"""Neighbouring ranges are alike, so they are joined to few long stretches, which are nearly independent."""


class Side(NamedTuple):
    """Losses of one recipe."""

    names: Sequence[str]
    """Run folders, or the losses as they were given."""
    losses: Losses
    """Nats per target: by seed if they are of run folders."""
    text: Mapping[str, Any] | None
    """What was scored: targets, bytes, and where a ledger has them digests; None if unknown."""

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, seed, loss) of each."""
        known = isinstance(self.losses, Mapping)
        losses = self.losses.items() if isinstance(self.losses, Mapping) else enumerate(self.losses)
        found = zip(self.names, losses, strict=True)
        return [(name, str(seed) if known else "-", f"{loss:.5f}") for name, (seed, loss) in found]


def read_side(names: Sequence[str], evaluation: str) -> Side:
    """Read run folders, or numbers, as one side of a comparison.

    PgolfError where folders and numbers are mixed, a folder holds no finished run with this evaluation, two
    runs have the same seed, or runs differ in more than the seed or in the text that they scored.
    """
    given = [number for name in names if (number := _number(name)) is not None]
    if given and len(given) < len(names):
        raise PgolfError(f"{' '.join(names)}: mixes losses and run folders; give one kind a side")
    if given:
        return Side(names, given, None)
    losses: dict[int, float] = {}
    _, first_digest, _, first_text = _read(Path(names[0]), evaluation)
    for name in names:
        seed, digest, loss, text = _read(Path(name), evaluation)
        if seed in losses:
            raise PgolfError(f"{name}: has seed {seed} like another run of its side; give each seed once")
        if digest != first_digest:
            differs = f"{name}: differs from {names[0]} in more than the seed"
            raise PgolfError(f"{differs}; give runs of one recipe a side")
        _check_text(text, first_text, f"{name} and {names[0]}")
        losses[seed] = loss
    return Side(names, losses, first_text)


def check_comparable(new: Side, old: Side) -> None:
    """PgolfError where a run is on both sides, or they scored different texts, as far as known: nats per
    target of different targets cannot be compared.
    """
    if new.text is not None and old.text is not None:
        others = {Path(name).resolve() for name in new.names}
        for name in old.names:
            if Path(name).resolve() in others:
                raise PgolfError(f"{name}: is on both sides; give --against runs of what is to be beaten")
        _check_text(new.text, old.text, f"{new.names[0]} and {old.names[0]}")


def ledger_of(side: Side, evaluation: str) -> Path | None:
    """The ledger of a side of one run folder, if there is one."""
    path = Path(side.names[0]) / EVALUATIONS[evaluation].ledger
    return path if side.text is not None and len(side.names) == 1 and path.is_file() else None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if Path(text).is_dir():
        return None
    if not math.isfinite(value) or value <= 0:
        raise PgolfError(f"{text}: is no loss; give nats per target, more than 0")
    return value


def _read(folder: Path, evaluation: str) -> tuple[int, str, float, dict[str, Any]]:
    """Seed, digest of the recipe without it, loss, and what was scored."""
    for name in (RESULT, RECIPE):
        if not (folder / name).is_file():
            lacking = f"holds no finished run ({name} is missing)"
            raise PgolfError(f"{folder}: {lacking}; make one with `pgolf run`")
    entry = EVALUATIONS[evaluation]
    found = (read_result(folder) or {})["evaluations"].get(evaluation)
    if found is None:
        remedy = "finish the run with `pgolf run`, or choose another --evaluation"
        raise PgolfError(f"{folder / RESULT}: has no {entry.title} loss; {remedy}")
    loss, text = float(found["val_loss"]), {"targets": found["targets"], "bytes of text": found["bytes"]}
    if not math.isfinite(loss):
        raise PgolfError(f"{folder}: its {entry.title} loss is no number (the run diverged); leave it out")
    if (folder / entry.ledger).is_file():
        header = read_header(folder / entry.ledger)
        text |= {f"{key} digest": header[key] for key in ("data", "tokenizer") if key in header}
    recipe = load_recipe(str(folder / RECIPE))
    # Where a run lies and what it is called does not make it another recipe.
    train = recipe.train.model_copy(update={"seed": 0})
    same = recipe.model_copy(update={"name": "", "description": "", "train": train})
    return recipe.train.seed, same.digest(), loss, text


def _check_text(first: Mapping[str, Any], second: Mapping[str, Any], who: str) -> None:
    for key in first.keys() & second.keys():
        if first[key] != second[key]:
            both = f"{key}: {str(first[key])[:16]} and {str(second[key])[:16]}"
            raise PgolfError(
                f"{who}: scored different texts or tokens ({both}); nats per target compare on the same "
                "targets only, so evaluate both on the same data"
            )


class TextComparison(NamedTuple):
    """The difference of two runs over the stretches of one text."""

    difference: float
    """New minus old, nats per target."""
    low: float
    high: float
    """95 % interval over texts like this one, for these two artifacts."""
    p: float
    """Two-sided, against no difference."""
    stretches: int


def compare_text(new: Path, old: Path) -> TextComparison | None:
    """Compare two ledgers range by range; None if they are not of the same ranges of the same text, or too
    short for ten stretches.

    The difference per target is a ratio of sums; its error is that of the ratio estimator over contiguous
    stretches (Cochran 1977, section 6.3), with Student's t.
    """
    news, olds = (read_ledger(path)[1] for path in (new, old))
    ranges = ([(entry.first, entry.targets, entry.text) for entry in entries] for entries in (news, olds))
    count = min(MOST_STRETCHES, len(news))
    if next(ranges) != next(ranges) or count < FEWEST_STRETCHES:
        return None
    ends = [len(news) * index // count for index in range(count + 1)]
    parts = [slice(first, last) for first, last in itertools.pairwise(ends)]
    gaps = [math.fsum(a.nats - b.nats for a, b in zip(news[part], olds[part], strict=True)) for part in parts]
    sizes = [sum(entry.targets for entry in news[part]) for part in parts]
    difference = math.fsum(gaps) / sum(sizes)
    squares = math.fsum((gap - difference * size) ** 2 for gap, size in zip(gaps, sizes, strict=True))
    error = math.sqrt(count / (count - 1) * squares) / sum(sizes)
    half = quantile(1 - LEVEL / 2, count - 1) * error
    p = two_sided(difference / error, count - 1) if error else float(difference == 0)
    return TextComparison(difference, difference - half, difference + half, p, count)
