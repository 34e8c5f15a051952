"""Tests, intervals and sample sizes for losses over a few seeds, and the record rule.

Losses of runs that differ in the seed alone are taken as independent draws from a normal distribution; two
recipes may have different spreads (Welch), and runs of the same seed may be paired. Distributions are
SciPy's, imported only when something is computed; its own tests give the same numbers, and take 60 times as
long. docs/statistics.md names the sources.

A new record has to show at p < 0.01 that it improved the loss by 0.005 nats (submission rules of
openai/parameter-golf). So the null hypothesis is an improvement of the margin exactly, not of nothing.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from pgolf.report.content import p_text

Side = Literal["two-sided", "less"]
Kind = Literal["Welch", "paired", "contrast"]

LEVEL = 0.05
"""Level of the tests between the cells of a study, and 1 - the coverage of every interval."""
POWER = 0.8
"""Chance of seeing a difference that is there, for which sample sizes are given (Cohen 1988)."""
MOST_SEEDS = 10_000
MARGIN, RECORD_LEVEL = 0.005, 0.01
"""Of the record rule: nats per target, and the level of its tests."""

Losses = Mapping[int, float] | Sequence[float]
"""``val_loss`` in nats per target: by seed, or in any order where the seeds are unknown."""
# Below this part of the values, a spread is the rounding of equal numbers.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Sample:
    """Mean and spread of values of one kind."""

    count: int
    mean: float
    deviation: float | None
    """Standard deviation with n - 1; None for a single value."""
    low: float | None
    high: float | None
    """Student's 95 % interval of the mean; None for a single value."""


@dataclass(frozen=True)
class TTest:
    """A difference of means and what its t-test says."""

    kind: Kind
    difference: float
    """Mean of the first minus mean of the second, in the values' unit."""
    deviation: float
    """paired: of the differences; else of one value (Welch: sqrt of the mean of both variances)."""
    low: float
    high: float
    """Two-sided 95 % interval of the difference."""
    t: float
    freedom: float
    """Degrees of freedom."""
    p: float


def sample(values: Sequence[float]) -> Sample:
    """Mean, standard deviation and Student interval of at least one value."""
    count, mean = len(values), fmean(values)
    if count < 2:
        return Sample(count, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = quantile(1 - LEVEL / 2, count - 1) * deviation / math.sqrt(count)
    return Sample(count, mean, deviation, mean - half, mean + half)


def welch(
    first: Sequence[float], second: Sequence[float], side: Side = "two-sided", margin: float = 0.0
) -> TTest | None:
    """Welch's t-test of the means of two independent samples, without assuming equal variances.

    The null hypothesis is that the means differ by ``-margin``; "less" tests against the alternative that the
    mean of the first is more than ``margin`` lower. None where there is no test: fewer than two values on a
    side, or no spread on either.
    """
    if min(len(first), len(second)) < 2:
        return None
    samples = [sample(values) for values in (first, second)]
    variances = [(found.deviation or 0.0) ** 2 for found in samples]
    errors = [variance / found.count for variance, found in zip(variances, samples, strict=True)]
    error = math.sqrt(sum(errors))
    if _is_rounding(error, first, second):
        return None
    parts = (part**2 / (found.count - 1) for part, found in zip(errors, samples, strict=True))
    freedom, deviation = sum(errors) ** 2 / sum(parts), math.sqrt(sum(variances) / 2)
    return _t_test("Welch", samples[0].mean - samples[1].mean, error, deviation, freedom, side, margin)


def paired(
    first: Sequence[float], second: Sequence[float], side: Side = "two-sided", margin: float = 0.0
) -> TTest | None:
    """As ``welch``, but Student's test of differences ``first[i] - second[i]``, such as of the same seed."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(differences) < 2:
        return None
    found = sample(differences)
    deviation = found.deviation or 0.0
    if _is_rounding(deviation, first, second):
        return None
    error = deviation / math.sqrt(found.count)
    return _t_test("paired", found.mean, error, deviation, found.count - 1, side, margin)


def _is_rounding(spread: float, *samples: Sequence[float]) -> bool:
    return spread <= _ROUNDING * max(abs(value) for values in samples for value in values)


def _t_test(
    kind: Kind, difference: float, error: float, deviation: float, freedom: float, side: Side, margin: float
) -> TTest:
    """The test of a difference with a standard error against ``-margin``."""
    t = (difference + margin) / error
    p = _below(t, freedom) if side == "less" else two_sided(t, freedom)
    half = quantile(1 - LEVEL / 2, freedom) * error
    return TTest(kind, difference, deviation, difference - half, difference + half, t, freedom, p)


def contrast(groups: Sequence[Sequence[float]], weights: Sequence[float]) -> TTest | None:
    """Two-sided t-test of ``sum(weights[i] * mean of group i)`` against 0, with a pooled variance.

    None without a group of two values, or without any spread within groups.
    Source: linear contrasts in a one-way analysis of variance (Scheffe 1959, section 3.4).
    """
    samples = [sample(group) for group in groups]
    freedom = sum(found.count - 1 for found in samples)
    squares = math.fsum((found.count - 1) * (found.deviation or 0.0) ** 2 for found in samples)
    if freedom < 1 or _is_rounding(math.sqrt(squares), *groups):
        return None
    deviation = math.sqrt(squares / freedom)
    pairs = list(zip(weights, samples, strict=True))
    difference = math.fsum(weight * found.mean for weight, found in pairs)
    error = deviation * math.sqrt(math.fsum(weight**2 / found.count for weight, found in pairs))
    return _t_test("contrast", difference, error, deviation, freedom, "two-sided", 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979): the k-th smallest of m is multiplied by m - k + 1."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def adjusted(tests: Sequence[TTest | None]) -> list[float | None]:
    """p-values after Holm's correction for those tests that could be made."""
    made = iter(holm([test.p for test in tests if test is not None]))
    return [None if test is None else next(made) for test in tests]


def power(
    effect: float,
    deviation: float,
    seeds: int,
    level: float = LEVEL,
    side: Side = "two-sided",
    pairs: bool = False,
) -> float:
    """Chance that a t-test with ``seeds`` (at least 2) runs a side finds a true difference significant.

    The ``effect`` is that difference, beyond the margin; its sign does not matter. The ``deviation`` is that
    of one side over seeds, the same for both, or with ``pairs`` (equal seeds on both sides) of differences.
    """
    from scipy import special

    freedom = seeds - 1 if pairs else 2 * (seeds - 1)
    shift = abs(effect) / (deviation * math.sqrt((1 if pairs else 2) / seeds))
    bound = quantile(1 - (level if side == "less" else level / 2), freedom)
    found = 1 - float(special.nctdtr(freedom, shift, bound))
    # Far out the noncentral t is lost in rounding; there nothing is missed.
    return found if math.isfinite(found) else 1.0


def seeds_needed(
    effect: float, deviation: float, level: float = LEVEL, side: Side = "two-sided", pairs: bool = False
) -> int | None:
    """Fewest seeds a side with which ``power`` reaches 80 %; None if there are none up to 10,000.

    Takes effect and deviation for the true ones; those of a few seeds are rough, and so is the number.
    """
    if effect == 0 or not math.isfinite(effect):
        return None
    if deviation <= _ROUNDING * abs(effect):
        return 2

    def reached(seeds: int) -> float:
        return power(effect, deviation, seeds, level, side, pairs)

    seeds = 2 + bisect.bisect_left(range(2, MOST_SEEDS + 1), POWER, key=reached)
    return seeds if seeds <= MOST_SEEDS else None


def detectable(deviation: float, seeds: int) -> float:
    """Smallest true difference that a two-sided Welch test of ``seeds`` a side finds with 80 % power."""
    from scipy import optimize

    def missing(effect: float) -> float:
        return power(effect, 1.0, seeds) - POWER

    most = 2.0
    while missing(most) < 0:
        most *= 2
    return deviation * float(optimize.brentq(missing, 0.0, most, xtol=1e-6))


def quantile(chance: float, freedom: float) -> float:
    """Value that Student's t stays under with this chance."""
    from scipy import special

    return float(special.stdtrit(freedom, chance))


def two_sided(t: float, freedom: float) -> float:
    """Chance of a t as far from 0 as this one, or farther."""
    return 2 * _below(-abs(t), freedom)


def _below(t: float, freedom: float) -> float:
    from scipy import special

    return float(special.stdtr(freedom, t))


@dataclass(frozen=True)
class RecordVerdict:
    """What two sets of losses say about a claim."""

    record: bool
    """Whether the claim holds: every test that can be made is under the level."""
    why: str
    improvement: float
    """Mean of the old losses minus mean of the new, in nats per target; positive is better."""
    new: Sample
    old: Sample
    margin: float
    level: float
    welch: TTest | None
    """One-sided against an improvement of the margin; None with one run a side or without any spread."""
    paired: TTest | None
    """The same pair by pair; None unless both sides have the same seeds, at least two."""
    pairs: int
    """Seeds that both sides have."""
    power: float | None
    """Chance that Welch's test with so many seeds (the smaller side's) shows an improvement like this one."""
    seeds_needed: int | None
    """Seeds a side for a chance of 80 %; None if unknown, or if the improvement is within the margin."""


def record_claim(
    new: Losses, old: Losses, margin: float = MARGIN, level: float = RECORD_LEVEL
) -> RecordVerdict:
    """Test the claim that ``new`` is better than ``old``, a loss or more each, by more than ``margin`` nats.

    Welch's test decides; where both sides hold the very same seeds, the paired test has to agree, so that
    nobody chooses the kinder of the two after having seen both. (Of a few seeds in common it would know next
    to nothing.)
    """
    news, olds = (list(side.values()) if isinstance(side, Mapping) else list(side) for side in (new, old))
    fewest, shared, pairwise = min(len(news), len(olds)), 0, None
    independent = welch(news, olds, "less", margin)
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        shared = len(set(new) & set(old))
        if set(new) == set(old):
            pairwise = paired(news, [old[seed] for seed in new], "less", margin)
    samples = sample(news), sample(olds)
    improvement, needed, chance = samples[1].mean - samples[0].mean, None, None
    if independent is not None and improvement > margin:
        effect = improvement - margin, independent.deviation
        needed = seeds_needed(*effect, level, "less")
        chance = power(*effect, fewest, level, "less")
    tests = [test for test in (independent, pairwise) if test is not None]
    holds = independent is not None and all(test.p < level for test in tests)
    why = _reason(improvement, margin, level, tests, fewest)
    given = (*samples, margin, level, independent, pairwise, shared, chance, needed)
    return RecordVerdict(holds, why, improvement, *given)


def _reason(improvement: float, margin: float, level: float, tests: Sequence[TTest], fewest: int) -> str:
    way = "better" if improvement > 0 else "worse"
    size = f"{abs(improvement):.4f} nats {way}" if improvement else "equal"
    # Without a margin the claim is only that it is better.
    claim = f"more than {margin:g} nats better" if margin else "better"
    if improvement <= margin:
        return f"The mean is {size}; the claim is that it is {claim}."
    if fewest < 2:
        return f"The mean is {size}, but a side with one run has no known spread: nothing can be shown."
    if not any(test.kind == "Welch" for test in tests):
        return f"The mean is {size}, but neither side has any spread: these are not independent runs."
    said = " and ".join(f"{test.kind} {p_text(test.p)}" for test in tests)
    if all(test.p < level for test in tests):
        return f"The mean is {size}, and that it is {claim} is shown at p < {level:g} ({said})."
    return f"The mean is {size}, but that it is {claim} is not shown at p < {level:g} ({said})."
