"""One side of a comparison: runs of one recipe with different seeds, or published losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import read_header
from pgolf.recipe.recipe import load_recipe
from pgolf.runtime.run_files import RECIPE, RESULT, read_result
from pgolf.study.record import Losses
from pgolf.study.terms import NAMES


@dataclass(frozen=True)
class Side:
    """Losses of one recipe."""

    names: Sequence[str]
    """Run folders, or the losses as they were given."""
    losses: Losses
    """Nats per target: by seed if they are of run folders."""
    text: Mapping[str, Any] | None
    """What was scored: targets, bytes, and digests of text and tokenizer where a ledger has them. None if
    unknown.
    """

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, seed, loss) of each."""
        seeds = (
            [str(seed) for seed in self.losses]
            if isinstance(self.losses, Mapping)
            else ["-"] * len(self.names)
        )
        values = self.losses.values() if isinstance(self.losses, Mapping) else self.losses
        return [
            (name, seed, f"{loss:.5f}") for name, seed, loss in zip(self.names, seeds, values, strict=True)
        ]


def read_side(names: Sequence[str], evaluation: str) -> Side:
    """Read run folders, or numbers, as one side of a comparison.

    Raises:
        PgolfError: folders and numbers are mixed, a folder holds no finished run with this evaluation, two
            runs have the same seed, or runs differ in more than the seed or in the text that they scored.
    """
    numbers = [_number(name) for name in names]
    given = [number for number in numbers if number is not None]
    if given and len(given) < len(names):
        raise PgolfError(f"{' '.join(names)}: mixes losses and run folders; give one kind a side")
    if given:
        return Side(names, given, None)
    folders = [Path(name) for name in names]
    losses: dict[int, float] = {}
    first: tuple[Path, str, Mapping[str, Any]] | None = None
    for folder in folders:
        seed, digest, loss, text = _read(folder, evaluation)
        if seed in losses:
            raise PgolfError(f"{folder}: has seed {seed} like another run of its side; give each seed once")
        if first is None:
            first = folder, digest, text
        if digest != first[1]:
            raise PgolfError(
                f"{folder}: differs from {first[0]} in more than the seed; give runs of one recipe a side"
            )
        _check_text(text, first[2], f"{folder} and {first[0]}")
        losses[seed] = loss
    assert first is not None, "a side has at least one name"
    return Side(names, losses, first[2])


def check_comparable(new: Side, old: Side) -> None:
    """Make sure that both sides are of different runs that scored the same text in the same tokens, as far as
    known.

    Raises:
        PgolfError: they did not (nats per target of different targets cannot be compared), or a run is on
            both sides.
    """
    if new.text is not None and old.text is not None:
        shared = {Path(name).resolve() for name in new.names} & {Path(name).resolve() for name in old.names}
        for name in (name for name in old.names if Path(name).resolve() in shared):
            raise PgolfError(f"{name}: is on both sides; give --against runs of what is to be beaten")
        _check_text(new.text, old.text, f"{new.names[0]} and {old.names[0]}")


def ledger_of(side: Side, evaluation: str) -> Path | None:
    """The ledger of a side of one run folder, if there is one."""
    path = Path(side.names[0]) / f"ledger.{evaluation}.jsonl"
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
            raise PgolfError(
                f"{folder}: holds no finished run ({name} is missing); make one with `pgolf run`"
            )
    try:
        found = (read_result(folder) or {})["evaluations"][evaluation]
        loss, text = float(found["val_loss"]), {"targets": found["targets"], "bytes of text": found["bytes"]}
    except (KeyError, TypeError, ValueError):
        raise PgolfError(
            f"{folder / RESULT}: has no {NAMES[evaluation]} loss; finish the run with `pgolf run`, "
            "or choose another --evaluation"
        ) from None
    if not math.isfinite(loss):
        raise PgolfError(
            f"{folder}: its {NAMES[evaluation]} loss is no number (the run diverged); leave it out"
        )
    ledger = folder / f"ledger.{evaluation}.jsonl"
    if ledger.is_file():
        header = read_header(ledger)
        text |= {f"{key} digest": header[key] for key in ("data", "tokenizer") if key in header}
    recipe = load_recipe(str(folder / RECIPE))
    # Where a run lies and what it is called does not make it another recipe.
    same = recipe.model_copy(
        update={"name": "", "description": "", "train": recipe.train.model_copy(update={"seed": 0})}
    )
    return recipe.train.seed, same.digest(), loss, text


def _check_text(first: Mapping[str, Any], second: Mapping[str, Any], who: str) -> None:
    for key in first.keys() & second.keys():
        if first[key] != second[key]:
            raise PgolfError(
                f"{who}: scored different texts or tokens ({key}: {str(first[key])[:16]} and {str(second[key])[:16]}); "
                "nats per target compare on the same targets only, so evaluate both on the same data"
            )
