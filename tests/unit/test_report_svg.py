"""Charts: numbers land where they belong, whatever they are."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from importlib import resources

import pytest

from pgolf.report.content import (
    Bars,
    Interval,
    Intervals,
    LineChart,
    Series,
    Waterfall,
    in_seconds,
    number,
    p_text,
    shown,
    signed,
)
from pgolf.report.draw import COLORS, WIDTH, svg, thinned

Box = tuple[float, float, float, float]


def chart(points: list[tuple[float, float]], **more: object) -> LineChart:
    return LineChart("t", "x", "y", [Series("s", points, "dots")], **more)  # type: ignore[arg-type]


def dots(text: str) -> list[tuple[float, float, str]]:
    """(x, y, what is shown under the pointer) of each."""
    uses = [(use, use.find("title")) for use in ET.fromstring(text).iter("use")]
    return [
        (float(use.get("x")), float(use.get("y")), title.text) for use, title in uses if title is not None
    ]


def boxes(text: str) -> dict[str, Box]:
    """(left, top, width, height) of every filled shape by its colour and place."""
    found = {}
    for path in ET.fromstring(text).iter("path"):
        color = re.search(r"fill: var\(--(c\d)\)", path.get("style", ""))
        numbers = [float(part) for part in re.findall(r"-?[\d.]+", path.get("d", ""))]
        if color and "clip-path" in path.attrib:
            x, y = numbers[::2], numbers[1::2]
            found[f"{color[1]} {len(found)}"] = (min(x), min(y), max(x) - min(x), max(y) - min(y))
    return found


def words(text: str) -> list[str | None]:
    return [element.text for element in ET.fromstring(text).iter("text")]


def test_thinning_keeps_the_mean_and_the_end() -> None:
    points = [(float(x), float(x % 7)) for x in range(10_000)]
    thin = thinned(points, 100)
    assert len(thin) == 100
    assert thin[-1] == points[-1]
    assert sum(y for _, y in thin) / 100 == pytest.approx(3.0, abs=0.1)
    assert thinned(points[:50], 100) == points[:50]


def test_points_are_drawn_in_their_places() -> None:
    text = svg(chart([(0.0, 1.0), (5.0, 2.0), (10.0, 3.0)]), "k")
    (x0, y0, tip), (x1, y1, _), (x2, y2, _) = dots(text)
    assert 0 < x0 < x1 < x2 <= WIDTH
    assert y0 > y1 > y2 > 0
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.2)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.2)
    assert tip == "s: 1 at 0"
    assert "y by x. s: from 1 at 0 to 3 at 10" in text


@pytest.mark.parametrize("log_x", [False, True])
def test_axes_have_round_numbers_that_differ(log_x: bool) -> None:
    for low, high in ((1.7338, 1.8023), (9.0, 1100.0), (31.0, 47.0), (1.0, 2e6), (1e-7, 3e-7)):
        text = svg(chart([(low, low), (high, high)], log_x=log_x), "k")
        ticks = [word for word in words(text) if word not in ("x", "y")]
        assert 5 <= len(ticks) <= 18
        if high == 2e6:
            assert "2M" in ticks


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1.0, 1.0)],
        [(1.0, 2.0), (1.0, 3.0)],
        [(0.0, 0.0)] * 3,
        [(1.0, math.nan), (2.0, 1.0)],
        [(1.0, math.inf)],
    ],
)
@pytest.mark.parametrize("log_x", [False, True])
def test_odd_points_make_a_chart_too(points: list[tuple[float, float]], log_x: bool) -> None:
    text = svg(chart(points, log_x=log_x), "k")
    ET.fromstring(text)
    drawn = re.sub(r"<(title|desc).*?</\1>|no data", "", text)
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_what_is_too_high_is_cut_off() -> None:
    points = [(float(x), 100.0 if x == 0 else 1.0 + x / 10) for x in range(10)]
    whole, cut = (dots(svg(chart(points, highest=highest), "k")) for highest in (None, 2.0))
    assert max(y for _, y, _ in cut[1:]) - min(y for _, y, _ in cut[1:]) > 100
    assert max(y for _, y, _ in whole[1:]) - min(y for _, y, _ in whole[1:]) < 10


def test_a_waterfall_goes_from_value_to_value() -> None:
    text = svg(Waterfall("w", "BPB", ("raw", 1.80), [("up", 1.81), ("down", 1.70)], "final"), "k")
    (up, a), (down, b) = list(boxes(text).items())[:2]
    assert (up, down) == ("c1 0", "c2 1"), "worse is red, better green"
    assert b[0] + b[2] == pytest.approx(a[0] + a[2], abs=0.2)
    assert b[2] == pytest.approx(11 * a[2], rel=0.02)
    assert {"+0.0100", "\u22120.1100", "1.8000", "1.7000", "final", "raw"} <= set(words(text))
    assert "down -0.1100" in ET.fromstring(text).findtext("desc")


def test_bars_are_as_long_as_their_parts() -> None:
    parts = [("g", "a", 30.0), ("h", "b", 40.0), ("g", "c", 60.0), ("empty", "d", 0.0)]
    text = svg(Bars("a", "bytes", parts), "k")
    (_, c), (_, a), (_, b) = boxes(text).items()
    assert c[2] == pytest.approx(2 * a[2], abs=0.3)
    assert a[0] == pytest.approx(c[0] + c[2], abs=0.3)
    assert b[2] / a[2] == pytest.approx(4 / 3, abs=0.02)
    assert c[1] == a[1] < b[1]
    assert {"g", "h", "90, 69 %", "40, 31 %"} <= set(words(text))
    assert "g: c, 60 bytes" in text
    assert "empty" not in text


def test_a_chart_has_no_font_or_colour_of_its_own() -> None:
    text = svg(chart([(0.0, 1.0), (5.0, 2.0)]), "k")
    assert not re.search("#[0-9a-f]{3}", text)
    assert "font-family" not in text
    assert "<style" not in text
    assert svg(chart([(0.0, 1.0), (5.0, 2.0)]), "k") == text
    assert "var(--c0)" in text
    style = (resources.files("pgolf.report") / "page.css").read_text("utf-8")
    assert all(f"--c{index}: {color};" in style for index, color in enumerate(COLORS)), "light as in a PNG"


def test_how_numbers_are_written() -> None:
    assert [signed(value) for value in (0.01234, -0.01, -0.00001, 0.0)] == [
        "+0.0123",
        "-0.0100",
        "0.0000",
        "0.0000",
    ]
    assert [p_text(p) for p in (0.00001, 0.035)] == ["p < 0.0001", "p = 0.035"]
    assert [number(value) for value in (9000.0, 0.02, 1.2345678)] == ["9,000", "0.02", "1.235"]
    assert [shown(value, 2) for value in (1e-7, 0.0, True, float("inf"))] == [
        "1.0e-07",
        "0.00",
        "True",
        "inf",
    ]
    assert [in_seconds(seconds) for seconds in (None, 1.25, 99.6)] == ["", "in 1.2 s", "in 100 s"]


def test_values_with_their_mean_and_interval() -> None:
    rows = [Interval("base", 2.0, 1.0, 3.0, [1.5, 2.5]), Interval("x" * 99, 3.0, None, None, [3.0])]
    text = svg(Intervals("t", "bits per byte", rows, "n"), "k")
    (x0, y0, tip), (x1, y1, _), (x2, y2, _) = dots(text)
    assert x0 < x1 < x2 and y0 == y1 < y2 and tip == "1.5"
    shown = words(text)
    assert {"base", "2.0000", "3.0000"} <= set(shown)
    assert any(word and word.startswith("xxx") and word.endswith("...") and len(word) < 60 for word in shown)
    lines = [
        path.get("d", "") for path in ET.fromstring(text).iter("path") if "--c0" in path.get("style", "")
    ]
    [ends] = [[float(part) for part in re.findall(r"-?[\d.]+", line)] for line in lines]
    assert ends[0] < x0 < x1 < ends[2] and ends[1] == ends[3] == pytest.approx(y0, abs=0.2)
