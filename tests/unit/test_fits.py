"""Power laws and saturations through few points."""

from __future__ import annotations

import numpy as np
import pytest

from pgolf.study.fits import FORMS, Fit, Form, NoFit, fit

STEPS = [1000.0, 2000.0, 4000.0, 8000.0, 16000.0]


def law(x: float) -> float:
    return 1.05 + 30 * x**-0.5


def saturation(x: float) -> float:
    return 1.05 + 0.4 * float(np.exp(-x / 5000))


def fitted(points: list[tuple[float, float]], form: Form) -> Fit:
    found = fit(points, form)
    assert isinstance(found, Fit), found
    return found


def test_exact_points_give_the_curve_back() -> None:
    found = fitted([(x, law(x)) for x in STEPS], "power law")
    assert (found.a.value, found.b, found.shape.value) == pytest.approx((1.05, 30, 0.5), rel=1e-6)
    assert found.leave_one_out < 1e-8
    assert found.line[-1][1] == pytest.approx(law(16000))
    found = fitted([(x, saturation(x)) for x in STEPS], "saturation")
    assert (found.a.value, found.b, found.shape.value) == pytest.approx((1.05, 0.4, 5000), rel=1e-5)
    assert "exp(-x / 5000)" in found.formula


def test_leaving_points_out_tells_the_forms_apart() -> None:
    random = np.random.default_rng(3)
    for truth, right, wrong in ((law, "power law", "saturation"), (saturation, "saturation", "power law")):
        points = [(x, truth(x) + random.normal(0, 0.001)) for x in STEPS for _ in range(3)]
        curves = {form: fit(points, form) for form in FORMS}
        errors = {
            form: found.leave_one_out if isinstance(found, Fit) else np.inf for form, found in curves.items()
        }
        assert errors[right] < errors[wrong]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    hits = {"a": 0, "shape": 0, "curve": 0}
    for _ in range(60):
        points = [(x, law(x) + random.normal(0, 0.02)) for x in STEPS for _ in range(2)]
        found = fitted(points, "power law")
        for name, true in (("a", 1.05), ("shape", 0.5)):
            parameter = getattr(found, name)
            hits[name] += (parameter.low is None or parameter.low <= true) and (
                parameter.high is None or true <= parameter.high
            )
        x, _, low, high = found.line[30]
        hits["curve"] += low <= law(x) <= high
    assert all(count >= 51 for count in hits.values()), hits
    assert any(count < 60 for count in hits.values()), "intervals that always hold it are too wide"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_points_are_no_curve(form: Form, count: int) -> None:
    # Seeds do not help: they lie at the same x.
    found = fit([(x, law(x) + seed / 1000) for x in STEPS[:count] for seed in range(4)], form)
    assert isinstance(found, NoFit)
    assert "too few points" in found.reason


@pytest.mark.parametrize("form", FORMS)
def test_what_accelerates_or_does_not_move_is_no_curve(form: Form) -> None:
    falling_faster = [(x, 2 - (x / 16000) ** 2) for x in STEPS]
    found = fit(falling_faster, form)
    assert isinstance(found, NoFit)
    assert "do not bend" in found.reason
    assert isinstance(fit([(x, 1.1) for x in STEPS], form), NoFit)
    assert isinstance(fit([(x - 1000, law(x)) for x in STEPS], form), NoFit)


def test_four_points_do_not_bound_the_limit() -> None:
    # Published by #644 of openai/parameter-golf: TTT bits per byte over steps, one seed.
    points = [(9000, 1.116), (12000, 1.108), (15000, 1.104), (20000, 1.098), (25000, 1.094)]
    found = fitted([(float(x), y) for x, y in points], "power law")
    assert found.a.low is None
    assert found.shape.low is None
    assert found.a.high is not None
    assert found.a.high < 1.094


@pytest.mark.parametrize("form", FORMS)
def test_units_do_not_matter(form: Form) -> None:
    random = np.random.default_rng(5)
    points = [(x, law(x) + random.normal(0, 0.003)) for x in STEPS for _ in range(2)]
    found, scaled = fitted(points, form), fitted([(x / 1000, 1.4427 * y) for x, y in points], form)
    shape = 1.0 if form == "power law" else 1000.0
    assert scaled.shape.value == pytest.approx(found.shape.value / shape, rel=1e-4)
    assert scaled.a.value == pytest.approx(1.4427 * found.a.value, rel=1e-5)
    assert found.a.low is not None
    assert scaled.a.low == pytest.approx(1.4427 * found.a.low, rel=1e-4)
    assert scaled.leave_one_out == pytest.approx(1.4427 * found.leave_one_out, rel=1e-4)


def test_the_band_lies_around_the_curve_and_the_points_range() -> None:
    random = np.random.default_rng(6)
    found = fitted([(x, law(x) + random.normal(0, 0.003)) for x in STEPS for _ in range(2)], "power law")
    assert found.line[0][0] == pytest.approx(1000)
    assert found.line[-1][0] == pytest.approx(16000)
    assert all(low < y < high for _, y, low, high in found.line)
    assert found.line[-1][1] == pytest.approx(found.a.value + found.b * 16000**-found.shape.value)
    assert found.a.low is not None
    assert found.a.high is not None
    assert found.a.low < found.a.value < found.a.high
