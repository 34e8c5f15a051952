"""What a study's folder holds: one run per cell, a cell being a choice of recipe keys and a seed.

* ``OUT/study.toml``: the study as it was asked for.
* ``OUT/cells/NAME/cell.json``: what the cell is; once it is over, how it ended.
* ``OUT/cells/NAME/...``: its run folder.

Finished cells with the same changes are a group; its scores are made up of terms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS
from pgolf.report.content import Table, Value
from pgolf.runs.folder import CELL
from pgolf.runtime.files import read_json
from pgolf.runtime.run_files import RESULT, read_result
from pgolf.study.statistics import sample

CELLS, STUDY = "cells", "study.toml"

Status = Literal["waiting", "finished", "failed"]


def label_of(changes: Mapping[str, Any]) -> str:
    """Changes in a few words, another recipe's name first; "base" if there are none."""
    return ", ".join(words_of(changes, "=")) or "base"


def words_of(changes: Mapping[str, Any], sign: str) -> list[str]:
    """Each change as KEY, the sign and the value; another recipe is called by its name."""
    return [Path(value).stem if key == "recipe" else f"{key}{sign}{value}" for key, value in changes.items()]


class Cell(NamedTuple):
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
    """All cells of a study's folder, in its order; PgolfError where it is none, or a file is damaged."""
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


DIFFERENCES = (
    "Every difference is new minus old: the cell minus the baseline, after a step minus before it. Of scores "
    "less is better, so a negative difference is a gain."
)
"""The one convention of a study."""
CHANGES = {
    f"by {after.step}": (before.name, after.name)
    for before, after in itertools.pairwise(EVALUATIONS.values())
}
"""Two evaluations that differ in one thing, before and after it."""
TERMS = (*EVALUATIONS, *CHANGES, "bytes")
_OF_MEMORY = ("memory", "by memory")
_NOTE = (
    "Scores in bits per byte; bytes of the artifact. by averaging, by quantization and so on: how the score "
    "changed in this step, within one run."
)


def terms_in(cells: Sequence[Cell]) -> list[str]:
    """TERMS, those of a memory left out where no cell has one."""
    some = any("memory" in cell.scores for cell in cells)
    return [name for name in TERMS if some or name not in _OF_MEMORY]


def terms_of(cell: Cell) -> dict[str, float]:
    """Its scores in bits per byte, the CHANGES from one to the next, and "bytes", code included."""
    scores = cell.scores
    pairs = {name: pair for name, pair in CHANGES.items() if set(pair) <= set(scores)}
    changes = {name: scores[after] - scores[before] for name, (before, after) in pairs.items()}
    return scores | changes | ({} if cell.bytes is None else {"bytes": cell.bytes})


def quantity(name: str) -> str:
    """One of TERMS with its unit."""
    if name == "bytes":
        return "artifact in bytes"
    if name in CHANGES:
        return f"change {name} in bits per byte"
    return f"{EVALUATIONS[name].title} bits per byte"


class Group(NamedTuple):
    """The finished cells with the same changes: one recipe, several seeds."""

    label: str
    cells: Sequence[Cell]

    def by_seed(self, name: str) -> dict[int, float]:
        """One of TERMS by seed, of the seeds that have it."""
        found = {cell.seed: terms_of(cell).get(name) for cell in self.cells}
        return {seed: value for seed, value in found.items() if value is not None}

    def values(self, name: str) -> list[float]:
        """The same without the seeds."""
        return list(self.by_seed(name).values())

    def mean(self, name: str) -> float | None:
        """Mean over the seeds; of fewer seeds than the other terms it would not add up with theirs."""
        values = self.values(name)
        return fmean(values) if len(values) == len(self.cells) else None

    def scored(self, evaluation: str) -> dict[int, Mapping[str, Any]]:
        """What ``result.json`` says of an evaluation, by seed."""
        found = {cell.seed: (cell.result or {})["evaluations"].get(evaluation) for cell in self.cells}
        return {seed: score for seed, score in found.items() if score is not None}

    def losses(self, evaluation: str) -> dict[int, float]:
        """``val_loss`` by seed, nats per target."""
        return {seed: float(score["val_loss"]) for seed, score in self.scored(evaluation).items()}

    def scope(self, evaluation: str, what: str) -> set[int]:
        """How many "targets" or "bytes" an evaluation covers; one number where all runs scored the same."""
        return {int(score.get(what, 0)) for score in self.scored(evaluation).values()}


def diverged(cell: Cell) -> bool:
    """Whether a finished cell has a score that is no number."""
    return not all(map(math.isfinite, cell.scores.values()))


def groups_of(cells: Sequence[Cell]) -> list[Group]:
    """The cells that have scores."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.status == "finished" and not diverged(cell):
            found.setdefault(cell.label, []).append(cell)
    return [Group(label, members) for label, members in found.items()]


def term_tables(groups: Sequence[Group]) -> list[Table]:
    """Every term: means, spreads where there are several seeds, and every run."""
    means, spreads, runs = list[list[Value]](), list[list[Value]](), list[list[Value]]()
    names = terms_in([cell for group in groups for cell in group.cells])
    for group in groups:
        *terms, size = (group.mean(name) for name in names)
        means.append([group.label, len(group.cells), *terms, None if size is None else round(size)])
        if len(group.cells) > 1:
            every = (group.values(name) for name in names)
            deviations = (sample(values).deviation if values else None for values in every)
            spreads.append([group.label, len(group.cells), *deviations])
        runs += [[group.label, cell.seed, *map(terms_of(cell).get, names)] for cell in group.cells]
    note = "Standard deviation with n - 1; of a difference it is that of the runs' differences."
    titles = [EVALUATIONS[name].title if name in EVALUATIONS else name for name in names]
    columns = ("cell", "seeds", *titles)
    spread = Table("Every term, standard deviation over seeds", columns, spreads, note, 5)
    runs_of = ("cell", "seed", *titles)
    return [
        Table("Every term, mean over seeds", columns, means, _NOTE, differences=tuple(CHANGES)),
        *([spread] if spreads else []),
        Table("Every term, every run", runs_of, runs, _NOTE, differences=tuple(CHANGES)),
        step_table(groups),
    ]


def step_table(groups: Sequence[Group]) -> Table:
    """How each group's score comes about step by step, from the evaluations that all of its seeds have."""
    rows: list[list[Value]] = []
    entries = list(EVALUATIONS.values())
    for group in groups:
        means = [(place, group.mean(entry.name)) for place, entry in enumerate(entries)]
        made = [(place, mean) for place, mean in means if mean is not None]
        for (before, first), (after, last) in itertools.pairwise(made):
            steps = " and ".join(entry.step for entry in entries[before + 1 : after + 1])
            ends = entries[before].title, entries[after].title
            rows.append([group.label, *ends, first, last, steps, last - first])
    columns = ("cell", "from", "to", "before", "after", "step", "change")
    note = "Means over seeds, bits per byte. Steps without a score between them are not told apart."
    return Table("Step by step", columns, rows, note, differences=("change",))
