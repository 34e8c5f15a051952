"""A quantity over several values of one number: how it goes, how fast, and what of that is more than noise.

The words of judgement are defined here once:

* falls or rises **throughout**: so do the means from every value of x to the next.
* the change **diminishes** or **accelerates throughout**: per unit of x it gets strictly smaller or larger in
  size from every interval to the next; in all other cases neither is said.
* **significant**: p < 0.05 in a two-sided t-test, after Holm's correction where several tests are made. Runs
  of a single seed never are: their noise is unknown.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from pgolf.report.content import Table, Value, number, p_text
from pgolf.runs.records import recipe_keys_of
from pgolf.runtime.run_files import METRICS, RECIPE
from pgolf.study.cells import Cell
from pgolf.study.statistics import LEVEL, TTest, adjusted, contrast, paired, sample, welch
from pgolf.train.metrics import read_metrics

Values = Mapping[int, float]
"""By seed."""
Levels = Sequence[tuple[float, Values]]
"""(x, values), x ascending and different."""
FEWEST = 3
"""Different values of a key that make a series: two are a comparison."""
# Rates whose difference is this part of them are the same, but for rounding.
_SAME = 1e-9
_TRENDS = (
    *("quantity", "over", "values", "first", "last", "rate", "per", "lowest", "at", "direction", "change"),
    *("significant", "change of rate", "p"),
)
_RATES = ("quantity", "over", "from", "to", "seeds", "at first", "at last", "change", "±", "per", "p (Holm)")


class Series(NamedTuple):
    """A quantity measured at several values of x."""

    quantity: str
    """With its unit, such as "raw float bits per byte"."""
    x_name: str
    levels: Levels
    within_runs: bool = False
    """Whether the values of a seed are of one run, so that only differences within runs are independent."""

    @property
    def xs(self) -> list[float]:
        """The values of x."""
        return [x for x, _ in self.levels]

    @property
    def means(self) -> list[float]:
        """Mean over seeds at each x."""
        return [fmean(values.values()) for _, values in self.levels]

    @property
    def points(self) -> list[tuple[float, float]]:
        """(x, value), one per run."""
        return [(x, value) for x, values in self.levels for value in values.values()]

    @property
    def replicated(self) -> bool:
        """Whether some x has several seeds."""
        return len(self.points) > len(self.levels)

    @property
    def counts_steps(self) -> bool:
        """Whether x is steps of a training; not such as those of a Newton-Schulz iteration."""
        first = self.x_name.split()[0]
        return first == "step" or (first.startswith("train.") and "steps" in first)

    @property
    def unit(self) -> float:
        """The stretch of x that a rate is of: 1,000 training steps, else a power of ten within the gaps."""
        least = min(after - before for before, after in itertools.pairwise(self.xs))
        return 1000.0 if self.counts_steps else float(10.0 ** math.floor(math.log10(least) + _SAME))

    @property
    def unit_name(self) -> str:
        """``unit`` in words."""
        return "1,000 steps" if self.counts_steps else f"{number(self.unit)} {self.x_name}"

    @property
    def rates(self) -> list[float]:
        """Change of the mean per ``unit`` of x, for every interval."""
        pairs = zip(itertools.pairwise(self.means), itertools.pairwise(self.xs), strict=True)
        return [(after - before) / (end - start) * self.unit for (before, after), (start, end) in pairs]


def direction(series: Series) -> str:
    """Which way the means go from value to value."""
    changes = [after - before for before, after in itertools.pairwise(series.means)]
    for word, sign in (("falls", -1), ("rises", 1)):
        if all(sign * change > 0 for change in changes):
            return f"{word} throughout"
    if not any(changes):
        return "does not change"
    return f"not monotonic: rises in {sum(change > 0 for change in changes)} of {len(changes)} intervals"


def bend(series: Series) -> str:
    """Whether the change per unit of x gets larger or smaller; nothing for a single interval."""
    rates = series.rates
    if len(rates) < 2:
        return ""
    if min(rates) < 0 < max(rates):
        return "changes its direction"
    sizes, count = [abs(rate) for rate in rates], len(rates) - 1
    grew = sum(after > before * (1 + _SAME) for before, after in itertools.pairwise(sizes))
    shrank = sum(after < before * (1 - _SAME) for before, after in itertools.pairwise(sizes))
    if grew == count:
        return "accelerates throughout"
    if shrank == count:
        return "diminishes throughout"
    if grew == shrank == 0:
        return "is constant" if any(rates) else "none"
    times = f"; the last is {sizes[-1] / sizes[0]:.2f} times the first" if sizes[0] else ""
    return f"gets larger in {grew} and smaller in {shrank} of {count} places{times}"


def neighbours(series: Series) -> list[TTest | None]:
    """The test of each value of x against the one before: pair by pair within runs, Welch's between them."""
    tests = []
    for (_, before), (_, after) in itertools.pairwise(series.levels):
        if series.within_runs:
            seeds = sorted(set(before) & set(after))
            tests.append(paired([after[seed] for seed in seeds], [before[seed] for seed in seeds]))
        else:
            tests.append(welch(list(after.values()), list(before.values())))
    return tests


def significance(series: Series) -> str:
    """How many differences between neighbouring values of x are more than noise."""
    if not series.replicated:
        return "one seed: noise unknown"
    found = adjusted(neighbours(series))
    made = [p for p in found if p is not None]
    if not made:
        return "cannot be tested: no two different runs of a cell"
    untested = f"; {len(made)} could be tested" if len(made) < len(found) else ""
    return f"{sum(p < LEVEL for p in made)} of {len(found)}{untested}"


def bend_test(series: Series) -> TTest | None:
    """Last rate minus first rate, and its two-sided test against no difference.

    A linear contrast of the means: between runs with the variance pooled over all x (as in a one-way analysis
    of variance), within runs from each run's own contrast. None with fewer than three x, without replication
    or spread.
    """
    if len(series.levels) < 3:
        return None
    xs, unit = series.xs, series.unit
    first, last = unit / (xs[1] - xs[0]), unit / (xs[-1] - xs[-2])
    weights = [0.0] * len(xs)
    for index, weight in ((0, first), (1, -first), (-2, -last), (-1, last)):
        weights[index] += weight
    values = [values for _, values in series.levels]
    if not series.within_runs:
        return contrast([list(found.values()) for found in values], weights)
    seeds = sorted(set.intersection(*(set(found) for found in values)))
    own = [math.fsum(w * found[seed] for w, found in zip(weights, values, strict=True)) for seed in seeds]
    return paired(own, [0.0] * len(own))


def statement(series: Series) -> str:
    """A series in one line."""
    means, xs = series.means, series.xs
    ends = f"from {means[0]:,.5g} at {number(xs[0])} to {means[-1]:,.5g} at {number(xs[-1])}"
    said = [f"{series.quantity} over {series.x_name}: {direction(series)}, {ends}"]
    if change := bend(series):
        said.append(f"the change per {series.unit_name} {change}")
    if series.replicated:
        said.append(f"significant differences of neighbours: {significance(series)}")
    return "; ".join(said) + "."


def trend_table(every: Sequence[Series]) -> Table:
    """One row for each series."""
    rows: list[list[Value]] = []
    for series in every:
        means, xs, test = series.means, series.xs, bend_test(series)
        rate, lowest = (means[-1] - means[0]) / (xs[-1] - xs[0]) * series.unit, min(means)
        low = lowest, _whole(xs[means.index(lowest)])
        numbers = (len(means), means[0], means[-1], rate, series.unit_name, *low)
        words = (direction(series), bend(series), significance(series))
        change = (None, None) if test is None else (test.difference, p_text(test.p))
        rows.append([series.quantity, series.x_name, *numbers, *words, *change])
    note = (
        "Means over seeds. rate: from the first to the last. change: of the rate from interval to interval. "
        "significant: differences between neighbours, two-sided and Holm-corrected, paired within runs and "
        "Welch's between them. change of rate: last minus first."
    )
    return Table("How each quantity goes", _TRENDS, rows, note, 5, differences=("rate", "change of rate"))


def _whole(x: float) -> float:
    """As an integer if it is one: a table shows no decimal places of it."""
    return int(x) if x == int(x) else x


def rate_table(every: Sequence[Series]) -> Table:
    """One row for each interval of each series."""
    rows: list[list[Value]] = []
    for series in every:
        tests = adjusted(neighbours(series))
        found = zip(itertools.pairwise(series.levels), series.rates, tests, strict=True)
        for ((start, before), (end, after)), rate, p in found:
            shared = [seed for seed in before if seed in after and series.within_runs]
            own = [(after[seed] - before[seed]) / (end - start) * series.unit for seed in shared]
            spread = sample(own).deviation if own else None
            means = (fmean(values.values()) for values in (before, after))
            numbers = (_whole(start), _whole(end), len(after), *means, rate, spread, series.unit_name)
            rows.append([series.quantity, series.x_name, *numbers, None if p is None else p_text(p)])
    note = "Means over seeds. ± is the standard deviation over seeds of the runs' own changes."
    return Table("Rates", _RATES, rows, note, 5, differences=("change",))


def training_of(label: str, cells: Sequence[Cell]) -> list[Series]:
    """The validations through the training of some runs: all, before the warmdown, and in it."""
    levels: dict[int, dict[int, float]] = {}
    for cell in cells:
        for entry in read_metrics(cell.folder / METRICS):
            # Before the first step nothing is learnt yet; a rate from there says nothing of the schedule.
            if "val_bpb" in entry and entry["step"] > 0:
                levels.setdefault(int(entry["step"]), {})[cell.seed] = float(entry["val_bpb"])
    every = [(float(step), found) for step, found in sorted(levels.items()) if len(found) == len(cells)]
    known = settings(cells[0])
    steps, warmdown = known.get("train.steps"), known.get("train.warmdown_steps")
    if len(every) < 2 or steps is None or warmdown is None or known.get("train.wallclock_seconds"):
        return []
    turn = max(0, steps - (known.get("train.warmdown_fraction", 0) * steps or warmdown))
    parts = {
        "step": every,
        "step before the warmdown": [level for level in every if level[0] <= turn],
        "step in the warmdown": [level for level in every if level[0] >= turn],
    }
    name = f"{label}: raw float bits per byte"
    return [Series(name, part, found, within_runs=True) for part, found in parts.items() if len(found) > 1]


def settings(cell: Cell) -> dict[str, Any]:
    """The recipe keys of a cell, and what it changes."""
    path = cell.folder / RECIPE
    return (recipe_keys_of(path) if path.is_file() else {}) | dict(cell.changes)


def series_of(chosen: Sequence[Mapping[str, Any]], values: Sequence[Values], quantity: str) -> list[Series]:
    """Every series of at least three values of a numeric key, all other changes being equal.

    For each group of cells, ``chosen`` has its value of every key that some of them change, None if it is not
    known, and ``values`` the quantity. Where no key alone makes a series, but several numeric keys rise or
    fall together, they make one, named after the first and the others.
    """
    keys, found = list(chosen[0]), list[Series]()
    for key in keys:
        alike: dict[str, list[tuple[float, Values]]] = {}
        for setting, value in zip(chosen, values, strict=True):
            if _is_number(setting[key]):
                rest = ", ".join(f"{other}={setting[other]}" for other in keys if other != key)
                alike.setdefault(rest, []).append((float(setting[key]), value))
        several = sum(len(levels) >= FEWEST for levels in alike.values()) > 1
        for rest, levels in alike.items():
            found += _series(levels, quantity, f"{key} at {rest}" if several else key)
    rows = sorted([*setting.values()] for setting in chosen if all(map(_is_number, setting.values())))
    together = all([*column] in (sorted(column), sorted(column)[::-1]) for column in zip(*rows, strict=True))
    if found or len(keys) < 2 or len(rows) < len(chosen) or not together:
        return found
    levels = [(float(setting[keys[0]]), value) for setting, value in zip(chosen, values, strict=True)]
    return _series(levels, quantity, f"{keys[0]} (with {', '.join(keys[1:])})")


def _series(levels: Levels, quantity: str, x_name: str) -> list[Series]:
    ordered = sorted((level for level in levels if level[1]), key=lambda level: level[0])
    if len({x for x, _ in ordered}) < max(FEWEST, len(ordered)):
        return []
    # Moments ("step") are of the same runs; everything else is of runs of its own.
    return [Series(quantity, x_name, ordered, within_runs=x_name.split()[0] == "step")]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
