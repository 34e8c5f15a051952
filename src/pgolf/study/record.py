"""The record rule: is a new recipe better than the old record by enough, and do the seeds show it?

A new record has to show at p < 0.01 that it improved the loss by 0.005 nats (submission rules of
openai/parameter-golf). So the null hypothesis is an improvement of the margin exactly, not of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgolf.report.numbers import p_text
from pgolf.study.statistics import Sample, TTest, paired, power, sample, seeds_needed, welch

MARGIN = 0.005
"""Nats per target."""
LEVEL = 0.01

Losses = Mapping[int, float] | Sequence[float]
"""``val_loss`` in nats per target: by seed, or in any order where the seeds are unknown."""


@dataclass(frozen=True)
class RecordVerdict:
    """What two sets of losses say about a claim."""

    record: bool
    """Whether the claim holds: every test that can be made is under the level."""
    why: str
    """The reason in one sentence."""
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


def record_claim(new: Losses, old: Losses, margin: float = MARGIN, level: float = LEVEL) -> RecordVerdict:
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
    size = (
        f"{abs(improvement):.4f} nats {'better' if improvement > 0 else 'worse'}" if improvement else "equal"
    )
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
