"""Verdicts have to say what the numbers say, above all where published studies said something else.

The tables are those of openai/parameter-golf, pull requests #644, #1005, #1232, #1407 and #1424.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pgolf.report.content import Table
from pgolf.study.series import (
    Series,
    bend,
    bend_test,
    direction,
    rate_table,
    significance,
    statement,
    trend_table,
)

STEPS_644 = [9000, 12000, 15000, 20000, 25000]
FLOAT_644, TTT_644 = [1.135, 1.127, 1.122, 1.115, 1.109], [1.116, 1.108, 1.104, 1.098, 1.094]
MIB_644 = [14.94, 14.79, 14.52, 14.22, 13.75]
STEPS_1232 = [7000, 8000, 10000, 12000, 14000, 16000, 18000, 20000]
BPB_1232 = [1.2064, 1.2016, 1.1898, 1.1801, 1.1658, 1.1511, 1.1307, 1.1062]


def series(x: Sequence[float], y: Sequence[float], quantity: str = "TTT bits per byte") -> Series:
    levels = [(float(place), {1337: value}) for place, value in zip(x, y, strict=True)]
    return Series(quantity, "train.steps", levels)


def row(found: Table, index: int = 0) -> dict[str, Any]:
    return dict(zip(found.columns, found.rows[index], strict=True))


@pytest.mark.parametrize("values", [FLOAT_644, TTT_644])
def test_a_study_of_diminishing_returns(values: list[float]) -> None:
    found = series(STEPS_644, values)
    assert (direction(found), bend(found)) == ("falls throughout", "diminishes throughout")


def test_the_rates_of_a_study() -> None:
    rates = rate_table([series(STEPS_644, TTT_644)])
    assert row(rates)["per"] == "1,000 steps"
    changes = [row(rates, index)["change"] for index in range(4)]
    assert changes == pytest.approx([-0.00267, -0.00133, -0.00120, -0.00080], abs=5e-6)
    assert row(rates)["p (Holm)"] is None


def test_what_is_monotonic_need_not_bend_one_way() -> None:
    found = series(STEPS_644, MIB_644, "artifact in MiB")
    assert direction(found) == "falls throughout"
    assert bend(found).startswith("gets larger in 2 and smaller in 1 of 3 places")


def test_a_warmdown_that_accelerates_but_not_throughout() -> None:
    found = series(STEPS_1232, BPB_1232)
    assert bend(found) == "gets larger in 5 and smaller in 1 of 6 places; the last is 2.55 times the first"
    assert bend(series(STEPS_1232[2:], BPB_1232[2:])) == "accelerates throughout"
    trend = row(trend_table([found]))
    assert (trend["values"], trend["first"], trend["last"]) == (8, 1.2064, 1.1062)
    assert statement(found).startswith(
        "TTT bits per byte over train.steps: falls throughout, from 1.2064 at 7,000 to 1.1062 at 20,000; "
        "the change per 1,000 steps gets larger in 5"
    )


def test_what_is_not_monotonic() -> None:
    found = series([1, 2, 3, 4], [1.2, 1.1, 1.15, 1.05])
    assert direction(found) == "not monotonic: rises in 1 of 3 intervals"
    assert bend(found) == "changes its direction"
    trend = row(trend_table([found]))
    assert (trend["lowest"], trend["at"]) == (1.05, 4)
    assert direction(series([1, 2], [1.2, 1.2])) == "does not change"
    assert bend(series([1, 2], [1.2, 1.2])) == ""
    assert bend(series([1, 2, 3], [1.2, 1.1, 1.0])) == "is constant"
    plateau = series([1, 2, 3, 4], [1.2, 1.1, 1.1, 1.0])
    assert direction(plateau) == "not monotonic: rises in 0 of 3 intervals"
    assert bend(plateau).startswith("gets larger in 1 and smaller in 1 of 2")
    assert bend(series([1, 2, 3], [1.1, 1.1, 1.1])) == "none"
    rising = series([1, 2, 4], [1.0, 1.1, 1.4])
    assert (direction(rising), bend(rising)) == ("rises throughout", "accelerates throughout")


def test_one_seed_is_never_significant() -> None:
    found = series(STEPS_644, TTT_644)
    assert significance(found) == "one seed: noise unknown"
    assert "significant" not in statement(found)
    assert (row(trend_table([found]))["change of rate"], row(trend_table([found]))["p"]) == (None, None)


OFFSETS = {1: -1.0, 2: 0.0, 3: 1.0}


def seeded(spread: float, within_runs: bool = False) -> Series:
    levels = []
    for index, (x, mean) in enumerate({1000.0: 1.5, 2000.0: 1.4, 3000.0: 1.25}.items()):
        sign = 1 if within_runs else (-1) ** index
        levels.append((x, {seed: mean + spread * offset * sign for seed, offset in OFFSETS.items()}))
    return Series("TTT bits per byte", "train.steps", levels, within_runs=within_runs)


def test_a_bend_is_judged_by_the_noise_between_seeds() -> None:
    clear, noisy = (row(trend_table([seeded(spread)])) for spread in (0.001, 0.1))
    assert clear["significant"] == "2 of 2"
    assert clear["change of rate"] == pytest.approx(-0.05)
    assert clear["p"] == "p < 0.0001"
    assert noisy["significant"] == "0 of 2"
    assert noisy["p"] == "p = 0.74"
    assert statement(seeded(0.001)).endswith("significant differences of neighbours: 2 of 2.")


def test_the_test_of_a_bend_by_hand() -> None:
    # Contrast 1, -2, 1 of means of three with standard deviation 0.1: error 0.1 * sqrt(6 / 3), 6 degrees of
    # freedom.
    found = bend_test(seeded(0.1))
    assert found is not None
    assert found.difference == pytest.approx(-0.05)
    assert found.p == pytest.approx(0.7357, abs=1e-3)


def test_within_runs_what_runs_share_is_no_noise() -> None:
    # Every run is off by its own constant: all their differences are equal, nothing is left to test.
    found = seeded(0.1, within_runs=True)
    assert bend_test(found) is None
    assert significance(found).startswith("cannot be tested")
    assert row(rate_table([found]))["±"] == pytest.approx(0.0, abs=1e-12)


def test_rates_are_given_for_a_stretch_that_fits() -> None:
    def unit(name: str, x: Sequence[float]) -> float:
        return Series("loss", name, [(place, {1: place}) for place in x]).unit

    assert unit("train.steps", [100, 200, 300]) == 1000
    assert unit("optim.newton_schulz_steps", [3, 5, 7]) == 1
    assert unit("model.layers", [7, 9, 11]) == 1
    assert unit("model.width", [128, 256, 512]) == 100
    assert unit("optim.matrix_lr", [0.01, 0.02, 0.04]) == pytest.approx(0.01)
