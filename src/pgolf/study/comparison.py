"""The cells of a study against its baseline: tests of the difference, and the record rule.

A new record has to show at p < 0.01 that it improved the loss by 0.005 nats (submission rules of
openai/parameter-golf). So the null hypothesis is an improvement of the margin exactly, not of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pgolf.evaluate.evaluations import EVALUATIONS
from pgolf.report.content import Table, Value, p_text, signed
from pgolf.study.cells import Group, quantity
from pgolf.study.statistics import (
    LEVEL,
    MOST_SEEDS,
    Sample,
    TTest,
    adjusted,
    paired,
    power,
    sample,
    seeds_needed,
    welch,
)

MARGIN = 0.005
"""Nats per target."""
RECORD_LEVEL = 0.01

Losses = Mapping[int, float] | Sequence[float]
"""``val_loss`` in nats per target: by seed, or in any order where the seeds are unknown."""


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


_TEST_COLUMNS = (
    *("cell", "seeds", "difference", "low", "high", "test", "p", "p (Holm)", "p (Welch)"),
    *("verdict", "seeds needed"),
)
_RECORD_COLUMNS = (
    *("cell", "improvement", "p (Welch)", "p (paired)", "pairs", "record rule", "seeds needed", "why"),
)


def comparison(base: Group, others: Sequence[Group], score: str) -> tuple[list[str], list[Table]]:
    """A line for each group, and the tables of all tests."""
    tests = [_test(base, group, score) for group in others]
    family = sum(test is not None for test in tests)
    corrected = f", Holm for {family} tests" if family > 1 else ""
    said, rows, records = list[str](), list[list[Value]](), list[list[Value]]()
    for group, test, p in zip(others, tests, adjusted(tests), strict=True):
        rows.append(_test_row(base, group, score, test, p))
        said.append(_line(base, group, score, test, p, corrected))
        if why_not := _no_record(base, group, score):
            records.append([group.label, None, None, None, None, "not asked", None, why_not])
            continue
        claim = record_claim(group.losses(score), base.losses(score))
        p_values = (None if found is None else p_text(found.p) for found in (claim.welch, claim.paired))
        verdict = "holds" if claim.record else "does not hold"
        end = (claim.pairs, verdict, claim.seeds_needed, claim.why)
        records.append([group.label, claim.improvement, *p_values, *end])
        if claim.welch is not None and claim.improvement > claim.margin:
            said.append(f"{group.label} as a record over {base.label}: {claim.why}")
    title = EVALUATIONS[score].title
    note = (
        f"Of the {title} score in bits per byte, cell minus baseline ({base.label}): negative is better. "
        "low and high: 95 % interval, each by itself. Two-sided; paired where both have the same seeds, "
        f"Welch otherwise; significant: p (Holm) < {LEVEL:g}. seeds needed: a side, to find a true "
        f"difference as large as this one at p < {LEVEL:g} with 80 % chance; a dash if over "
        f"{MOST_SEEDS:,} or unknown."
    )
    rule = (
        f"Improvement of the {title} loss on the baseline ({base.label}) in nats per target. The rule: more "
        f"than {MARGIN:g} nats better at p < {RECORD_LEVEL:g}; one-sided tests of that margin, Welch's and, "
        "with the same seeds, the paired one. Nothing is corrected for having tried several cells: confirm "
        "the best with new seeds."
    )
    against = Table(f"Against the baseline: {base.label}", _TEST_COLUMNS, rows, note, 5)
    return said, [against, Table("Record rule", _RECORD_COLUMNS, records, rule, 5)]


def _other_text(base: Group, group: Group, score: str) -> bool:
    return group.scope(score, "bytes") != base.scope(score, "bytes")


def _test(base: Group, group: Group, score: str) -> TTest | None:
    """Paired where both sides hold the same seeds, Welch's otherwise: by the plan, not by the outcome."""
    new, old = group.by_seed(score), base.by_seed(score)
    if _other_text(base, group, score):
        return None
    if set(new) == set(old):
        return paired([new[seed] for seed in old], list(old.values()))
    return welch(list(new.values()), list(old.values()))


def _test_row(base: Group, group: Group, score: str, test: TTest | None, p: float | None) -> list[Value]:
    new, old = group.values(score), base.values(score)
    other = welch(new, old)
    found: list[Value] = [None] * 5
    verdict, needed = "not tested", None
    if test is not None and p is not None:
        found, verdict = [test.low, test.high, test.kind, p_text(test.p), p_text(p)], _verdict(p)
        needed = seeds_needed(test.difference, test.deviation, pairs=test.kind == "paired")
    begin = (group.label, f"{len(new)} and {len(old)}", fmean(new) - fmean(old))
    return [*begin, *found, None if other is None else p_text(other.p), verdict, needed]


def _verdict(p: float) -> str:
    return "significant" if p < LEVEL else "not significant"


def _line(base: Group, group: Group, score: str, test: TTest | None, p: float | None, corrected: str) -> str:
    if _other_text(base, group, score):
        return f"{group.label} scored other text than {base.label}: they are not compared."
    new, old = group.values(score), base.values(score)
    size = f"{signed(fmean(new) - fmean(old))} {quantity(score)} against {base.label}"
    if test is None or p is None:
        why = "one seed" if min(len(new), len(old)) < 2 else "seeds without any spread"
        return f"{group.label}: {size}; {why}: noise unknown."
    return f"{group.label}: {size}, {_verdict(p)} ({test.kind} {p_text(p)}{corrected})."


def _no_record(base: Group, group: Group, score: str) -> str:
    """Why the record rule cannot be asked of two groups; empty if it can."""
    if any("step" in cell.changes for cell in (*base.cells, *group.cells)):
        return "moments of runs, not runs"
    if any(group.scope(score, what) != base.scope(score, what) for what in ("targets", "bytes")):
        return "nats per target of other targets: another tokenizer or another text"
    return ""
