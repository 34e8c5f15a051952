"""What a study's folder holds: one run per cell, a cell being a choice of recipe keys and a seed.

* ``OUT/study.toml``: the study as it was asked for.
* ``OUT/cells/NAME/cell.json``: what the cell is; once it is over, how it ended.
* ``OUT/cells/NAME/...``: its run folder.
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


def label_of(changes: Mapping[str, Any]) -> str:
    """Changes in a few words, "base" if there are none."""
    return ", ".join(f"{key}={value}" for key, value in changes.items()) or "base"


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str
    """Name of its folder; unique in the study."""
    changes: Mapping[str, Any]
    """Recipe keys by which the cell differs from the study's base, in the study's order, without the seed."""
    seed: int
    folder: Path
    status: Status
    result: Mapping[str, Any] | None
    """What ``result.json`` of a finished run holds (``pipeline.run_all``)."""
    error: str | None
    """Of a failed cell: one line that says why."""

    @property
    def label(self) -> str:
        """The changes in words; the same for all seeds."""
        return label_of(self.changes)

    @property
    def scores(self) -> dict[str, float]:
        """Bits per byte by evaluation, of a finished cell."""
        evaluations = (self.result or {}).get("evaluations", {})
        return {name: float(score["val_bpb"]) for name, score in evaluations.items()}

    @property
    def bytes(self) -> int | None:
        """The artifact of a finished cell, code included."""
        size: int | None = ((self.result or {}).get("pack") or {}).get("total_bytes")
        return size


def read_cells(study: Path) -> list[Cell]:
    """All cells of a study's folder, in the order of the study.

    Raises:
        PgolfError: it is no study's folder, or one of its files is damaged.
    """
    paths = sorted((study / CELLS).glob(f"*/{CELL}"))
    if not paths:
        raise PgolfError(f"{study}: holds no study; make one with `pgolf study FILE.toml --out {study}`")
    placed = []
    for path in paths:
        about, folder = read_json(path), path.parent
        try:
            place, changes, seed, status = (about[key] for key in ("place", "changes", "seed", "status"))
            error = about.get("error")
        except (KeyError, TypeError) as problem:
            again = "delete it and run the study again"
            raise PgolfError(f"{path}: is no cell of a study ({problem}); {again}") from None
        result = read_result(folder) if status == "finished" else None
        if status == "finished" and result is None:
            again = f"restore it, or delete {path} and run the study again"
            raise PgolfError(f"{folder / RESULT}: is missing; {again}")
        placed.append((int(place), Cell(folder.name, changes, int(seed), folder, status, result, error)))
    return [cell for _, cell in sorted(placed, key=lambda entry: entry[0])]
