"""What a study's folder holds: one run per cell, a cell being a choice of recipe keys and a seed.

::

    OUT/study.toml             the study as it was asked for
    OUT/cells/NAME/cell.json   what the cell is; once it is over, how it ended
    OUT/cells/NAME/...         its run folder: recipe.toml, metrics.jsonl, artifact.pgolf, result.json,
    ledgers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pgolf.errors import PgolfError
from pgolf.runs.folder import CELL
from pgolf.runtime.files import read_json
from pgolf.runtime.run_files import RESULT, read_result

CELLS = "cells"

Status = Literal["waiting", "finished", "failed"]


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str
    """Name of its folder; unique in the study."""
    changes: Mapping[str, Any]
    """Recipe keys by which the cell differs from the study's base, in the study's order, without the seed."""
    seed: int
    """``train.seed``."""
    folder: Path
    """Its run folder."""
    status: Status
    """Whether it is over, and how."""
    result: Mapping[str, Any] | None
    """What ``result.json`` of a finished run holds (``pipeline.run_all``)."""
    error: str | None
    """Of a failed cell: one line that says why."""

    @property
    def label(self) -> str:
        """The changes in a few words, "base" if there are none; the same for all seeds."""
        return ", ".join(f"{key}={value}" for key, value in self.changes.items()) or "base"

    def bpb(self, evaluation: str) -> float:
        """Bits per byte of one of its evaluations: raw, float, packed, sliding, ttt."""
        assert self.result is not None, "only a finished cell has scores"
        return float(self.result["evaluations"][evaluation]["val_bpb"])


def read_cells(study: Path) -> list[Cell]:
    """All cells of a study's folder, in the order of the study.

    Raises:
        PgolfError: it is no study's folder, or one of its files is damaged.
    """
    folders = sorted((study / CELLS).glob(f"*/{CELL}"))
    if not folders:
        raise PgolfError(f"{study}: holds no study; make one with `pgolf study FILE.toml --out {study}`")
    cells = []
    for path in folders:
        about = read_json(path)
        try:
            place, changes, seed, error = about["place"], about["changes"], about["seed"], about.get("error")
            status: Status = about["status"]
        except (KeyError, TypeError) as problem:
            raise PgolfError(
                f"{path}: is no cell of a study ({problem}); delete it and run the study again"
            ) from None
        folder = path.parent
        result = read_result(folder) if status == "finished" else None
        if status == "finished" and result is None:
            raise PgolfError(
                f"{folder / RESULT}: is missing; restore it, or delete {path} and run the study again"
            )
        cells.append((int(place), Cell(folder.name, changes, int(seed), folder, status, result, error)))
    return [cell for _, cell in sorted(cells, key=lambda entry: entry[0])]
