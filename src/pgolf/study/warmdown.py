"""How fast the loss falls while the learning rate does: from the validations of each run's training."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence

from pgolf.report.findings import Analysis, Curve, Table, Value
from pgolf.runtime.files import read_text
from pgolf.runtime.run_files import METRICS, RECIPE
from pgolf.study.cells import Cell
from pgolf.study.statements import Series, capital, noise_statements, shape_statements, x_text
from pgolf.study.statistics import sample
from pgolf.train.metrics import read_metrics

QUANTITY = "raw float bits per byte"


def warmdown_findings(groups: Sequence[tuple[str, Sequence[Cell]]]) -> Analysis:
    """Rates per thousand steps between the validations of each group's runs, before and in the warmdown.

    Args:
        groups: label and finished cells, which differ in the seed alone.
    """
    statements: list[str] = []
    tables: list[Table] = []
    curves: list[Curve] = []
    for label, cells in groups:
        levels = _levels(cells)
        start = _warmdown_start(cells[0])
        if len(levels) < 2 or start is None:
            continue
        series = Series(QUANTITY, "step", levels, within_runs=True)
        tables.append(_table(label, series, start))
        curves.append(Curve(f"{label}: {QUANTITY} over the training", "step", QUANTITY, series.points))
        if said := _statements(series, start):
            statements.append(f"{label}: {' '.join(said)}")
    return Analysis("Training", statements, tables, curves)


def _levels(cells: Sequence[Cell]) -> list[tuple[float, Mapping[int, float]]]:
    """Validations after the first step that every run has."""
    found: dict[int, dict[int, float]] = {}
    for cell in cells:
        for entry in read_metrics(cell.folder / METRICS):
            # Before the first step nothing is learnt yet; a rate from there says nothing of the schedule.
            if "val_bpb" in entry and entry["step"] > 0:
                found.setdefault(int(entry["step"]), {})[cell.seed] = float(entry["val_bpb"])
    return [(float(step), values) for step, values in sorted(found.items()) if len(values) == len(cells)]


def _warmdown_start(cell: Cell) -> int | None:
    """The step after which the learning rate falls, if a count of steps decides it."""
    path = cell.folder / RECIPE
    if not path.is_file():
        return None
    train = tomllib.loads(read_text(path)).get("train", {})
    if train.get("wallclock_seconds") or "steps" not in train or "warmdown_steps" not in train:
        return None
    return max(0, int(train["steps"]) - int(train["warmdown_steps"]))


def _table(label: str, series: Series, start: int) -> Table:
    rows: list[list[Value]] = []
    means = series.means
    for index, rate in enumerate(series.rates):
        (first, before), (last, values) = series.levels[index], series.levels[index + 1]
        part = "warmdown" if first >= start else "before" if last <= start else "both"
        own = [(values[seed] - before[seed]) / (last - first) * series.unit for seed in values]
        spread = sample(own).deviation
        rows.append([int(first), int(last), part, len(values), means[index], means[index + 1], rate, spread])
    columns = ("from step", "to step", "part", "seeds", "at first", "at last", "change per 1,000 steps", "±")
    note = (
        f"Validations of the last weights, standard windows; the warmdown begins after step {start:,}. ± is the"
        " standard deviation over seeds of the runs' own changes."
    )
    return Table(f"{label}: rate through the training", columns, rows, note, 5)


def _statements(series: Series, start: int) -> list[str]:
    before = [level for level in series.levels if level[0] <= start]
    within = [level for level in series.levels if level[0] >= start]
    if len(within) < 2:
        return []
    parts = []
    for name, levels in (("before the warmdown", before), ("in the warmdown", within)):
        if len(levels) > 1:
            means = Series(QUANTITY, "step", [levels[0], levels[-1]])
            span = f"steps {x_text(levels[0][0])} to {x_text(levels[-1][0])}"
            parts.append(f"{means.rates[0]:+.4f} per 1,000 steps {name} ({span})")
    said = [f"{capital(QUANTITY)} changes by {' and '.join(parts)}."]
    if len(within) > 2:
        inner = Series(f"{QUANTITY} in the warmdown", "step", within, within_runs=True)
        said += shape_statements(inner)
        if any(len(values) > 1 for _, values in within):
            said += noise_statements(inner)
    return said
