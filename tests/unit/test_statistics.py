"""Tests, sample sizes and the record rule, against hand-computed, textbook and published numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pgolf.study.statistics import (
    contrast,
    detectable,
    holm,
    paired,
    power,
    record_claim,
    sample,
    seeds_needed,
    welch,
)

# Losses in nats per target that were published with their tests: openai/parameter-golf, pull requests #1019
# (seeds 314, 42, 999), #1307 (42, 1337, 2025, 7) and the record 2026-03-31_VarLenAttn (1, 2, 1337).
PR_1019 = [1.88276292, 1.88156874, 1.88220393]
PR_1307 = [1.87679853, 1.87239786, 1.87233216, 1.87531400]
VARLEN = [1.87311066, 1.87298163, 1.87220704]

losses = st.lists(st.integers(1, 2000).map(lambda n: 3 + n / 1000), min_size=2, max_size=6, unique=True)


def test_mean_spread_and_interval_by_hand() -> None:
    found = sample([1.0, 2.0, 3.0, 4.0])
    assert (found.count, found.mean) == (4, 2.5)
    assert found.deviation == pytest.approx(math.sqrt(5 / 3))
    # Student's 97.5 % point with 3 degrees of freedom is 3.18245.
    assert found.high == pytest.approx(2.5 + 3.18245 * math.sqrt(5 / 3) / 2, rel=1e-5)
    assert sample([2.0]).deviation is None


def test_published_spread_is_the_one_of_a_sample() -> None:
    # Pull request #1424 gives 0.0005 for these three, which is the population's formula.
    assert sample([1.0853, 1.0857, 1.0865]).deviation == pytest.approx(0.00061, abs=5e-6)


def test_welch_by_hand() -> None:
    # Means 2 and 7, variances 1 and 20/3: the squared error is 1/3 + 5/3 = 2.
    found = welch([1.0, 2.0, 3.0], [4.0, 6.0, 8.0, 10.0])
    assert found is not None
    assert found.t == pytest.approx(-5 / math.sqrt(2))
    assert found.freedom == pytest.approx(4 / ((1 / 3) ** 2 / 2 + (5 / 3) ** 2 / 3))
    assert found.low < found.difference == -5.0 < found.high


def test_paired_by_hand() -> None:
    # Differences 1, 2, 3: t = 2 sqrt(3); with 2 degrees of freedom the two-sided p is 1 - t / sqrt(2 + t^2).
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found is not None
    assert (found.difference, found.deviation, found.freedom) == (2.0, 1.0, 2.0)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_welch_repeats_published_tests() -> None:
    plain = welch(PR_1307, PR_1019, "less")
    assert plain is not None
    assert plain.t == pytest.approx(-6.8667, abs=5e-5)
    assert plain.p == pytest.approx(0.001785, abs=5e-7)
    margin = welch(VARLEN, PR_1019, "less", margin=0.005)
    assert margin is not None
    assert margin.p == pytest.approx(0.000353, abs=5e-7)


def test_tests_agree_with_scipys() -> None:
    random = np.random.default_rng(2)
    first, second = random.normal(3.0, 0.1, 5).tolist(), random.normal(3.1, 0.3, 5).tolist()
    theirs = stats.ttest_ind([value + 0.05 for value in first], second, equal_var=False, alternative="less")
    ours = welch(first, second, "less", 0.05)
    assert ours is not None
    assert (ours.t, ours.p, ours.freedom) == pytest.approx((theirs.statistic, theirs.pvalue, theirs.df))
    pairs = stats.ttest_rel(first, second)
    interval = pairs.confidence_interval(0.95)
    ours = paired(first, second)
    assert ours is not None
    assert (ours.t, ours.p) == pytest.approx((pairs.statistic, pairs.pvalue))
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))


def test_no_test_without_spread_or_replication() -> None:
    assert welch([1.0], [2.0, 3.0]) is None
    assert welch([1.1, 1.1], [2.2, 2.2]) is None
    assert paired([1.0], [2.0]) is None
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit alone.
    assert paired([0.3, 0.2], [0.2, 0.1]) is None


def test_contrast_of_two_groups_is_students_test() -> None:
    # Variances 1 and 4 with 2 degrees of freedom each: pooled 2.5, squared error 2.5 * 2 / 3.
    found = contrast([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]], [-1.0, 1.0])
    assert found is not None
    assert found.freedom == 4
    assert found.t == pytest.approx(4 / math.sqrt(5 / 3))
    assert contrast([[1.0], [2.0]], [-1.0, 1.0]) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 64), (0.8, 26), (1.0, 17)])
def test_sample_sizes_of_the_textbook(effect: float, seeds: int) -> None:
    # Cohen 1988, two-sided 5 %, power 80 %.
    assert seeds_needed(effect, 1.0) == seeds
    assert power(effect, 1.0, seeds) >= 0.8 > power(effect, 1.0, seeds - 1)


def test_sample_sizes_of_pairs_and_of_nothing() -> None:
    assert seeds_needed(0.5, 1.0, pairs=True) == 34
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(100.0, 1e-3) == 2


def test_the_detectable_difference_is_detected() -> None:
    least = detectable(0.01, 5)
    assert power(least, 0.01, 5) == pytest.approx(0.8, abs=1e-4)


def test_power_is_the_share_of_simulated_studies_that_find_it() -> None:
    random = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        test = welch(random.normal(1.5, 1, 5).tolist(), random.normal(0, 1, 5).tolist())
        found += test is not None and test.p < 0.05
    assert found / 400 == pytest.approx(power(1.5, 1.0, 5), abs=0.07)


def test_false_alarms_are_as_many_as_promised() -> None:
    random = np.random.default_rng(1)
    alarms = {"paired": 0, "Welch": 0, "record": 0}
    for _ in range(400):
        old = random.normal(3.0, 0.002, 4)
        equal, at_margin = random.normal(3.0, 0.002, 4), random.normal(2.995, 0.002, 4)
        for test in (paired(equal.tolist(), old.tolist()), welch(equal.tolist(), old.tolist())):
            assert test is not None
            alarms[test.kind] += test.p < 0.05
        alarms["record"] += record_claim(at_margin.tolist(), old.tolist(), level=0.05).record
    assert all(0.02 <= count / 400 <= 0.085 for count in alarms.values()), alarms


@settings(max_examples=40, deadline=None)
@given(losses, losses, st.sampled_from([0.5, 1.4426950408889634, 1000.0]))
def test_tests_do_not_depend_on_the_unit(first: list[float], second: list[float], scale: float) -> None:
    found = welch(first, second, "less", 0.01)
    scaled = welch(
        [scale * value for value in first], [scale * value for value in second], "less", scale * 0.01
    )
    assert found is not None
    assert scaled is not None
    assert scaled.p == pytest.approx(found.p, rel=1e-6)
    assert scaled.difference == pytest.approx(scale * found.difference, rel=1e-9, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(losses, losses)
def test_a_larger_margin_is_never_easier(new: list[float], old: list[float]) -> None:
    p_values = [
        test.p for margin in (0.0, 0.005, 0.1) if (test := welch(new, old, "less", margin)) is not None
    ]
    assert p_values == sorted(p_values)


def test_the_record_rule_on_published_records() -> None:
    record = record_claim(VARLEN, PR_1019)
    assert record.record
    assert record.improvement == pytest.approx(0.009412, abs=5e-7)
    assert record.paired is None
    # Better by 0.008 nats with p = 0.0018 against no difference, but not shown to be better by 0.005.
    claim = record_claim(PR_1307, PR_1019)
    assert not claim.record
    assert claim.welch is not None
    assert claim.welch.p == pytest.approx(0.035, abs=5e-4)
    assert claim.seeds_needed is not None
    assert claim.seeds_needed > 4
    assert "not shown at p < 0.01" in claim.why


def test_both_tests_have_to_agree() -> None:
    old = {1: 3.0000, 2: 3.0004, 3: 3.0008}
    same_order = {seed: loss - 0.008 + 0.0001 * (seed % 2) for seed, loss in old.items()}
    assert record_claim(same_order, old).record
    # The same values on other seeds: the means are as far apart, but the differences of pairs scatter.
    crossed = dict(zip(old, reversed(same_order.values()), strict=True))
    crossed_claim = record_claim(crossed, old)
    assert crossed_claim.welch is not None
    assert crossed_claim.paired is not None
    assert crossed_claim.welch.p < 0.01 < crossed_claim.paired.p
    assert not crossed_claim.record
    # A seed or two in common do not make pairs: one degree of freedom could not show anything.
    other = dict(zip((1, 2, 9), crossed.values(), strict=True))
    assert record_claim(other, old).paired is None
    assert record_claim(other, old).record
    # Without the seeds there is nothing to pair.
    assert record_claim(list(crossed.values()), list(old.values())).record


@pytest.mark.parametrize(
    ("new", "old", "why"),
    [
        ([3.0], [3.1, 3.1001], "one run"),
        ([3.0, 3.0], [3.1, 3.1], "not independent runs"),
        ([3.099, 3.098], [3.1, 3.1001], "the claim is that it is more than 0.005"),
        ([3.2, 3.3], [3.1, 3.1001], "worse"),
    ],
)
def test_what_cannot_be_a_record(new: list[float], old: list[float], why: str) -> None:
    claim = record_claim(new, old)
    assert not claim.record
    assert why in claim.why
    assert claim.seeds_needed is None
