"""Sentences made from numbers, so that a report cannot say what its tables do not show.

Each function returns sentences that are true of the numbers it was given. Words of judgement are defined here
once:

* falls or rises **throughout**: so do the means from every value of x to the next.
* the fall (or rise) **diminishes** or **accelerates throughout**: the change per unit of x gets strictly
  smaller or larger in size from every interval to the next; in all other cases neither is said.
* **significant**: p < 0.05 in a two-sided t-test, after Holm's correction where several tests are made. Runs
  of a single seed never are: their noise is unknown.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgolf.study.fits import Fit, NoFit, Parameter
from pgolf.study.statistics import LEVEL, TTest, contrast, holm, paired, sample, seeds_needed, welch
from pgolf.study.terms import EVALUATIONS, NAMES, STEPS, Terms

# Rates whose difference is this part of them are the same, but for rounding.
_SAME = 1e-9


@dataclass(frozen=True)
class Series:
    """A quantity measured at several values of x."""

    quantity: str
    """With its unit, as it reads within a sentence, such as "raw float bits per byte"."""
    x_name: str
    levels: Sequence[tuple[float, Mapping[int, float]]]
    """(x, value by seed), x ascending and different."""
    digits: int = 4
    """Decimal places of the quantity."""
    within_runs: bool = False
    """Whether the values of a seed at all x are of one run, so that only differences within runs are
    independent.
    """

    @property
    def means(self) -> list[float]:
        """Mean over seeds at each x."""
        return [sample(list(values.values())).mean for _, values in self.levels]

    @property
    def points(self) -> list[tuple[float, float]]:
        """(x, value), one per run."""
        return [(x, value) for x, values in self.levels for value in values.values()]

    @property
    def unit(self) -> float:
        """The stretch of x that a rate is given for: 1,000 training steps, else a power of ten within the
        gaps.
        """
        if self._counts_steps:
            return 1000.0
        gaps = [b - a for (a, _), (b, _) in itertools.pairwise(self.levels)]
        return float(10.0 ** math.floor(math.log10(min(gaps)) + _SAME))

    @property
    def unit_name(self) -> str:
        """``unit`` in words."""
        return "1,000 steps" if self._counts_steps else f"{x_text(self.unit)} {self.x_name}"

    @property
    def _counts_steps(self) -> bool:
        # Not such as the steps of a Newton-Schulz iteration.
        return self.x_name == "step" or (self.x_name.startswith("train.") and "steps" in self.x_name)

    @property
    def rates(self) -> list[float]:
        """Change of the mean per ``unit`` of x, for every interval."""
        means, xs = self.means, [x for x, _ in self.levels]
        return [
            (after - before) / (x_after - x_before) * self.unit
            for before, after, x_before, x_after in zip(means, means[1:], xs, xs[1:], strict=False)
        ]


def p_text(p: float) -> str:
    """A p-value as it is printed."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def x_text(x: float) -> str:
    """A value of x as it is printed."""
    return f"{x:,.0f}" if x == round(x) else f"{x:g}"


def signed(value: float, digits: int = 4) -> str:
    """A difference as it is printed: with its sign, but nothing has none."""
    shown = f"{value:+,.{digits}f}"
    return shown if any(digit in shown for digit in "123456789") else shown[1:]


def capital(sentence: str) -> str:
    """The sentence with a capital first letter."""
    return sentence[:1].upper() + sentence[1:]


def shape_statements(series: Series) -> list[str]:
    """Whether the means of a series are monotonic, and whether their change diminishes or accelerates."""
    said = [_direction(series)] if len(series.levels) > 1 else []
    return [capital(entry) for entry in ([*said, _bend(series)] if len(series.levels) > 2 else said)]


def _direction(series: Series) -> str:
    xs, means, digits = [x for x, _ in series.levels], series.means, series.digits
    changes = [after - before for before, after in itertools.pairwise(means)]
    ends = (
        f"from {means[0]:,.{digits}f} at {x_text(xs[0])} to {means[-1]:,.{digits}f} at {x_text(xs[-1])} "
        f"({len(xs)} values)"
    )
    for word, sign in (("falls", -1), ("rises", 1)):
        if all(sign * change > 0 for change in changes):
            return f"{series.quantity} {word} throughout with {series.x_name}: {ends}."
    if not any(changes):
        return f"{series.quantity} does not change with {series.x_name}: {ends}."
    lowest = means.index(min(means))
    rises = sum(change > 0 for change in changes)
    return (
        f"{series.quantity} is not monotonic in {series.x_name}: it rises in {rises} of {len(changes)} intervals, "
        f"{ends}; the lowest is {means[lowest]:,.{digits}f} at {x_text(xs[lowest])}."
    )


def _bend(series: Series) -> str:
    rates, digits = series.rates, series.digits
    listed = ", ".join(signed(rate, digits + 1) for rate in rates)
    begin = f"{series.quantity} per {series.unit_name}: {listed}"
    if min(rates) < 0 < max(rates):
        return f"{begin}; the direction changes."
    sizes = [abs(rate) for rate in rates]
    grew = sum(after > before * (1 + _SAME) for before, after in itertools.pairwise(sizes))
    shrank = sum(after < before * (1 - _SAME) for before, after in itertools.pairwise(sizes))
    count = len(sizes) - 1
    word = "rise" if max(rates) > 0 else "fall"
    if grew == count:
        return f"{begin}; the {word} accelerates throughout."
    if shrank == count:
        return f"{begin}; the {word} diminishes throughout."
    if grew == shrank == 0:
        return f"{begin}; the {word} is constant." if any(rates) else f"{begin}; nothing changes."
    times = f", and the last is {sizes[-1] / sizes[0]:.2f} times the first" if sizes[0] else ""
    return (
        f"{begin}; the {word} neither accelerates nor diminishes throughout: it gets larger in {grew} and smaller in "
        f"{shrank} of {count} places{times}."
    )


def noise_statements(series: Series) -> list[str]:
    """What of a series is more than the noise between seeds."""
    if len(series.levels) < 2:
        return []
    seeds = [len(values) for _, values in series.levels]
    if max(seeds) < 2:
        return [
            f"One seed for each {series.x_name}: the noise between seeds is unknown, so no difference of "
            f"{series.quantity} can be called significant."
        ]
    tests = [_neighbours(series, index) for index in range(len(series.levels) - 1)]
    made = [test.p for test in tests if test is not None]
    if not made:
        return [
            f"No difference of {series.quantity} can be tested: nowhere are there two different runs of a cell."
        ]
    shown = sum(p < LEVEL for p in holm(made))
    kind = "paired" if series.within_runs else "Welch"
    said = [
        f"{shown} of {len(tests)} differences of {series.quantity} between neighbouring {series.x_name} are "
        f"significant ({kind}, Holm-corrected{'' if len(made) == len(tests) else f'; {len(made)} could be tested'})."
    ]
    bend = bend_test(series)
    if bend is not None:
        difference, p = bend
        verdict = "a significant" if p < LEVEL else "no significant"
        said.append(
            f"The last rate of {series.quantity} differs from the first by {signed(difference, series.digits + 1)} per "
            f"{series.unit_name}: {verdict} change of rate ({p_text(p)})."
        )
    return said


def _neighbours(series: Series, index: int) -> TTest | None:
    before, after = series.levels[index][1], series.levels[index + 1][1]
    if not series.within_runs:
        return welch(list(after.values()), list(before.values()))
    seeds = sorted(set(before) & set(after))
    return paired([after[seed] for seed in seeds], [before[seed] for seed in seeds])


def bend_test(series: Series) -> tuple[float, float] | None:
    """Last rate minus first rate, and the p-value of its two-sided test against no difference.

    A linear contrast of the means: between runs with the variance pooled over all x (as in a one-way analysis
    of variance), within runs from each run's own contrast. None with fewer than three x, without replication
    or spread.
    """
    if len(series.levels) < 3:
        return None
    xs = [x for x, _ in series.levels]
    weights = [0.0] * len(xs)
    first, last = series.unit / (xs[1] - xs[0]), series.unit / (xs[-1] - xs[-2])
    for index, weight in ((0, first), (1, -first), (-2, -last), (-1, last)):
        weights[index] += weight
    if not series.within_runs:
        found = contrast([list(values.values()) for _, values in series.levels], weights)
        return None if found is None else (found.difference, found.p)
    seeds = sorted(set.intersection(*(set(values) for _, values in series.levels)))
    own = [
        math.fsum(weight * values[seed] for weight, (_, values) in zip(weights, series.levels, strict=True))
        for seed in seeds
    ]
    test = paired(own, [0.0] * len(own))
    return None if test is None else (test.difference, test.p)


def terms_statement(label: str, terms: Terms) -> str | None:
    """How the score comes about step by step; steps without an evaluation between them are not told apart."""
    present = [(name, value) for name in EVALUATIONS if (value := terms.get(name)) is not None]
    if len(present) < 2:
        return None
    steps = []
    for (before, first), (after, second) in itertools.pairwise(present):
        between = EVALUATIONS[EVALUATIONS.index(before) + 1 : EVALUATIONS.index(after) + 1]
        names = [STEPS[name] for name in between]
        together = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        steps.append(
            f"{together} {signed(second - first)}" + (" (not measured apart)" if len(between) > 1 else "")
        )
    (begin, first), (end, last) = present[0], present[-1]
    whole = f", together {signed(last - first)}" if len(steps) > 1 else ""
    return f"{label}: from {NAMES[begin]} {first:.4f} to {NAMES[end]} {last:.4f} bits per byte: {', '.join(steps)}{whole}."


def difference_statement(
    label: str,
    base: str,
    quantity: str,
    new: Mapping[int, float],
    old: Mapping[int, float],
    test: TTest | None,
    adjusted: float | None = None,
    family: int = 1,
) -> str:
    """How one cell differs from the baseline, lower being better.

    Args:
        label: the cell.
        base: the baseline.
        quantity: with its unit.
        new: value of the cell by seed.
        old: value of the baseline by seed.
        test: two-sided test of their difference; None where there is none.
        adjusted: its p-value after the correction for ``family`` tests.
        family: how many tests were corrected together.
    """
    difference = sample(list(new.values())).mean - sample(list(old.values())).mean
    size = f"{abs(difference):.4f} {quantity} {'lower' if difference < 0 else 'higher'} than {base}"
    if difference == 0:
        size = f"equal to {base} in {quantity}"
    if test is None:
        seeds = "one seed" if min(len(new), len(old)) < 2 else "seeds without any spread"
        return f"{label}: {size}; {seeds}: whether that is more than noise cannot be said."
    p = test.p if adjusted is None else adjusted
    verdict = "significant" if p < LEVEL else "not significant"
    corrected = f", Holm-corrected for {family} tests" if family > 1 else ""
    said = (
        f"{label}: {size} (95 % interval {signed(test.low)} to {signed(test.high)}), {verdict} "
        f"({test.kind} {p_text(p)}{corrected})"
    )
    needed = seeds_needed(test.difference, test.deviation, pairs=test.kind == "paired")
    if p < LEVEL or needed is None or needed <= min(len(new), len(old)):
        return f"{said}."
    return f"{said}; with {needed:,} seeds a side a true difference of this size is found with 80 % chance."


def fit_statements(series: Series, fits: Sequence[Fit | NoFit]) -> list[str]:
    """What the fitted curves say of a series, and which of them predicts left-out points better."""
    said = []
    reasons = {found.reason if isinstance(found, NoFit) else "" for found in fits}
    if len(fits) > 1 and len(reasons) == 1 and "" not in reasons:
        return [capital(f"{series.quantity} over {series.x_name}: no curve is fitted: {reasons.pop()}.")]
    for found in fits:
        if isinstance(found, NoFit):
            said.append(f"{series.quantity} over {series.x_name}: no {found.form}: {found.reason}.")
            continue
        name = "exponent" if found.form == "power law" else "constant"
        said.append(
            f"{series.quantity} over {series.x_name}, {found.form} {found.formula}: levels off at "
            f"{_parameter(found.a)}, {name} {_parameter(found.shape)}; predicts left-out points with an error of "
            f"{found.leave_one_out:.2g} (root mean square)."
        )
    curves = sorted(
        (found for found in fits if isinstance(found, Fit)), key=lambda found: found.leave_one_out
    )
    if len(curves) > 1:
        said.append(
            f"Of both curves of {series.quantity} the {curves[0].form} predicts left-out points better: "
            f"{curves[0].leave_one_out:.2g} against {curves[1].leave_one_out:.2g}."
        )
    return [capital(entry) for entry in said]


def _parameter(found: Parameter) -> str:
    value = f"{found.value:,.4f}" if abs(found.value) < 100 else f"{found.value:,.0f}"
    low, high = (
        None if end is None else f"{end:,.4f}" if abs(found.value) < 100 else f"{end:,.0f}"
        for end in (found.low, found.high)
    )
    if low is None and high is None:
        return f"{value} (not bounded by these points)"
    if low is None:
        return f"{value} (95 %: at most {high}, not bounded below)"
    if high is None:
        return f"{value} (95 %: at least {low}, not bounded above)"
    return f"{value} (95 %: {low} to {high})"
