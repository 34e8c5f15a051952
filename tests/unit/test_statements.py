"""Sentences have to say what the numbers say, above all where published studies said something else.

The tables are those of openai/parameter-golf, pull requests #644, #1005, #1232, #1407 and #1424.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pgolf.study.fits import FORMS, fit
from pgolf.study.statements import (
    Series,
    bend_test,
    difference_statement,
    fit_statements,
    noise_statements,
    p_text,
    shape_statements,
    signed,
    terms_statement,
)
from pgolf.study.statistics import paired
from pgolf.study.terms import Terms

STEPS_644 = [9000, 12000, 15000, 20000, 25000]
FLOAT_644, TTT_644 = [1.135, 1.127, 1.122, 1.115, 1.109], [1.116, 1.108, 1.104, 1.098, 1.094]
MIB_644 = [14.94, 14.79, 14.52, 14.22, 13.75]
STEPS_1232 = [7000, 8000, 10000, 12000, 14000, 16000, 18000, 20000]
BPB_1232 = [1.2064, 1.2016, 1.1898, 1.1801, 1.1658, 1.1511, 1.1307, 1.1062]


def series(x: Sequence[float], y: Sequence[float], quantity: str = "TTT bits per byte") -> Series:
    levels = [(float(place), {1337: value}) for place, value in zip(x, y, strict=True)]
    return Series(quantity, "train.steps", levels)


@pytest.mark.parametrize("values", [FLOAT_644, TTT_644])
def test_a_study_of_diminishing_returns(values: list[float]) -> None:
    direction, bend = shape_statements(series(STEPS_644, values))
    assert "falls throughout" in direction
    assert bend.endswith("the fall diminishes throughout.")


def test_the_rates_of_a_study() -> None:
    _, bend = shape_statements(series(STEPS_644, TTT_644))
    assert "per 1,000 steps: -0.00267, -0.00133, -0.00120, -0.00080;" in bend


def test_what_is_monotonic_need_not_bend_one_way() -> None:
    direction, bend = shape_statements(series(STEPS_644, MIB_644, "artifact in MiB"))
    assert direction.startswith("Artifact in MiB falls throughout")
    assert (
        "neither accelerates nor diminishes throughout: it gets larger in 2 and smaller in 1 of 3 places"
        in bend
    )


def test_a_warmdown_that_accelerates_but_not_throughout() -> None:
    direction, bend = shape_statements(series(STEPS_1232, BPB_1232))
    assert (
        "falls throughout with train.steps: from 1.2064 at 7,000 to 1.1062 at 20,000 (8 values)" in direction
    )
    assert "larger in 5 and smaller in 1 of 6 places, and the last is 2.55 times the first" in bend
    assert shape_statements(series(STEPS_1232[2:], BPB_1232[2:]))[1].endswith(
        "the fall accelerates throughout."
    )
    # So no law that levels off is fitted to it.
    said = fit_statements(
        series(STEPS_1232, BPB_1232), [fit(series(STEPS_1232, BPB_1232).points, f) for f in FORMS]
    )
    assert len(said) == 2
    assert all("do not bend like" in sentence for sentence in said)


def test_what_is_not_monotonic() -> None:
    direction, bend = shape_statements(series([1, 2, 3, 4], [1.2, 1.1, 1.15, 1.05]))
    assert "is not monotonic in train.steps: it rises in 1 of 3 intervals" in direction
    assert "the lowest is 1.0500 at 4" in direction
    assert bend.endswith("the direction changes.")
    assert "does not change" in shape_statements(series([1, 2], [1.2, 1.2]))[0]
    assert shape_statements(series([1, 2, 3], [1.2, 1.1, 1.0]))[1].endswith("the fall is constant.")
    plateau = shape_statements(series([1, 2, 3, 4], [1.2, 1.1, 1.1, 1.0]))
    assert "rises in 0 of 3 intervals" in plateau[0]
    assert (
        "neither accelerates nor diminishes throughout: it gets larger in 1 and smaller in 1 of 2"
        in plateau[1]
    )
    assert shape_statements(series([1, 2, 3], [1.1, 1.1, 1.1]))[1].endswith("nothing changes.")
    assert shape_statements(series([1, 2, 4], [1.0, 1.1, 1.4]))[1].endswith(
        "the rise accelerates throughout."
    )


def test_one_seed_is_never_significant() -> None:
    (only,) = noise_statements(series(STEPS_644, TTT_644))
    assert "noise between seeds is unknown" in only
    # FlowRefiner against the base of #1232.
    said = difference_statement("flow", "base", "TTT bits per byte", {1337: 1.09279}, {1337: 1.09292}, None)
    assert (
        said
        == "flow: 0.0001 TTT bits per byte lower than base; one seed: whether that is more than noise cannot be said."
    )


def test_seeds_decide_what_is_significant() -> None:
    # 20,000 steps (#1407) and 50,000 steps (#1424) with the same three seeds.
    short, long = {1337: 1.0957, 42: 1.0962, 2024: 1.0962}, {1337: 1.0853, 42: 1.0857, 2024: 1.0865}
    test = paired([long[seed] for seed in short], list(short.values()))
    said = difference_statement("50k", "20k", "TTT bits per byte", long, short, test)
    assert said.startswith("50k: 0.0102 TTT bits per byte lower than 20k")
    # Differences 0.0104, 0.0105, 0.0097: t = 40.5, and with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    assert ", significant (paired p = 0.00061)." in said
    assert ", not significant (paired p = 0.06, Holm" in difference_statement(
        "50k", "20k", "TTT bits per byte", long, short, test, 0.06, 3
    )


def test_what_is_not_significant_says_how_many_seeds_it_takes() -> None:
    new, old = {1: 1.100, 2: 1.103, 3: 1.102}, {1: 1.102, 2: 1.103, 3: 1.106}
    test = paired(list(new.values()), list(old.values()))
    said = difference_statement("wide", "base", "TTT bits per byte", new, old, test)
    # Differences 0.002, 0 and 0.004: mean and standard deviation 0.002, so an effect of one standard
    # deviation.
    assert "0.0020 TTT bits per byte lower" in said
    assert "not significant (paired p = 0.23); with 10 seeds a side a true difference of this size" in said


def test_a_ttt_gain_is_one_of_ttt_alone() -> None:
    # #644 calls the whole way from the float model to the last score its gain from TTT.
    said = terms_statement("25k", Terms({"raw": 1.1088, "ttt": 1.0944}))
    assert said == (
        "25k: from raw float 1.1088 to TTT 1.0944 bits per byte: averaging, quantization, sliding windows and TTT "
        "-0.0144 (not measured apart)."
    )
    # #1005 gives all of them: TTT gains 0.0143, not the 0.0086 between the first and the last.
    said = terms_statement(
        "50k", Terms({"float": 1.0939, "packed": 1.1231, "sliding": 1.0996, "ttt": 1.0853})
    )
    assert said == (
        "50k: from averaged float 1.0939 to TTT 1.0853 bits per byte: quantization +0.0292, sliding windows -0.0235, "
        "TTT -0.0143, together -0.0086."
    )
    assert terms_statement("none", Terms({"ttt": 1.0944})) is None


def test_gains_compare_what_differs_in_one_thing() -> None:
    terms = Terms({"raw": 1.110, "float": 1.106, "packed": 1.124, "sliding": 1.100, "ttt": 1.093}, 14_473_337)
    expected = {"averaging_gain": 0.004, "quantization_gap": 0.018, "sliding_gain": 0.024, "ttt_gain": 0.007}
    assert {name: terms.get(name) for name in expected} == pytest.approx(expected)
    assert terms.get("bytes") == 14_473_337
    assert Terms({"packed": 1.1, "ttt": 1.0}).get("ttt_gain") is None


def seeded(spread: float, within_runs: bool = False) -> Series:
    means = {1000.0: 1.5, 2000.0: 1.4, 3000.0: 1.25}
    levels = [
        (
            x,
            {
                seed: mean + spread * offset * (1 if within_runs else (-1) ** index)
                for seed, offset in OFFSETS.items()
            },
        )
        for index, (x, mean) in enumerate(means.items())
    ]
    return Series("TTT bits per byte", "train.steps", levels, within_runs=within_runs)


OFFSETS = {1: -1.0, 2: 0.0, 3: 1.0}


def test_a_bend_is_judged_by_the_noise_between_seeds() -> None:
    clear, noisy = noise_statements(seeded(0.001)), noise_statements(seeded(0.1))
    assert clear[0].startswith("2 of 2 differences")
    assert "differs from the first by -0.05000 per 1,000 steps: a significant change of rate" in clear[1]
    assert noisy[0].startswith("0 of 2 differences")
    assert "no significant change of rate" in noisy[1]


def test_the_test_of_a_bend_by_hand() -> None:
    # Contrast 1, -2, 1 of means of three with standard deviation 0.1: error 0.1 * sqrt(6 / 3), 6 degrees of
    # freedom.
    found = bend_test(seeded(0.1))
    assert found is not None
    difference, p = found
    assert difference == pytest.approx(-0.05)
    assert p == pytest.approx(0.7357, abs=1e-3)


def test_within_runs_what_runs_share_is_no_noise() -> None:
    # Every run is off by its own constant: all their differences are equal, and there is nothing left to
    # test.
    assert bend_test(seeded(0.1, within_runs=True)) is None
    assert "can be tested" in noise_statements(seeded(0.1, within_runs=True))[0]


def test_a_fit_says_what_is_not_known() -> None:
    found = series(STEPS_644, TTT_644)
    law, saturation, better = fit_statements(found, [fit(found.points, form) for form in FORMS])
    assert "not bounded below" in law
    assert "levels off at 1.0624" in law
    assert "exp(-x /" in saturation
    assert "the power law predicts left-out points better" in better
    short = series(STEPS_644[:3], TTT_644[:3])
    assert "too few points: 3 different x" in fit_statements(short, [fit(short.points, "power law")])[0]
    # One reason for all is said once.
    assert len(fit_statements(short, [fit(short.points, form) for form in FORMS])) == 1


def test_rates_are_given_for_a_stretch_that_fits() -> None:
    def unit(name: str, x: Sequence[float]) -> float:
        return Series("loss", name, [(place, {1: place}) for place in x]).unit

    assert unit("train.steps", [100, 200, 300]) == 1000
    assert unit("optim.newton_schulz_steps", [3, 5, 7]) == 1
    assert unit("model.layers", [7, 9, 11]) == 1
    assert unit("model.width", [128, 256, 512]) == 100
    assert unit("optim.matrix_lr", [0.01, 0.02, 0.04]) == pytest.approx(0.01)


def test_nothing_has_no_sign() -> None:
    assert [signed(value) for value in (0.01234, -0.01, -0.00001, 0.0)] == [
        "+0.0123",
        "-0.0100",
        "0.0000",
        "0.0000",
    ]


def test_p_values_are_not_printed_as_nothing() -> None:
    assert p_text(0.00001) == "p < 0.0001"
    assert p_text(0.035) == "p = 0.035"
