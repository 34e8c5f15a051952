"""Axes and charts: numbers land where they belong, whatever they are."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from pgolf.report.axes import Scale, log_ticks, padded, thinned, tick_labels, ticks
from pgolf.report.content import Areas, LineChart, Series, Waterfall
from pgolf.report.svg import WIDTH, areas, line_chart, squarified, waterfall


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)


def chart(points: list[tuple[float, float]], **more: object) -> LineChart:
    return LineChart("t", "x", "y", [Series("s", points, "dots")], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (1.7338, 1.8023), (-3.0, 12.0), (0.0, 20000.0), (1e-7, 3e-7)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low - 1e-12 <= value <= high + 1e-12 for value in found)
    labels = tick_labels(found)
    assert len(set(labels)) == len(found)


def test_tick_labels() -> None:
    assert tick_labels([0.0, 5000.0, 10000.0]) == ["0", "5k", "10k"]
    assert tick_labels([1.7, 1.75, 1.8]) == ["1.70", "1.75", "1.80"]
    assert tick_labels([200.0, 400.0]) == ["200", "400"]
    assert tick_labels([0.0, 2e6]) == ["0", "2M"]
    assert tick_labels([3.0]) == ["3"]


def test_log_ticks() -> None:
    assert log_ticks(9.0, 1100.0) == [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
    assert log_ticks(0.9, 2e6)[:3] == [1.0, 10.0, 100.0]
    assert len(log_ticks(31.0, 47.0)) >= 3


def test_scales() -> None:
    assert Scale(0, 10, 100, 200)(5) == 150
    assert Scale(1, 100, 0, 10, log=True)(10) == pytest.approx(5)
    assert Scale(3, 3, 0, 10)(3) == 0
    assert padded([2.0])[0] < 2.0 < padded([2.0])[1]
    assert padded([0.0])[0] < 0.0 < padded([0.0])[1]


def test_thinning_keeps_the_mean_and_the_end() -> None:
    points = [(float(x), float(x % 7)) for x in range(10_000)]
    thin = thinned(points, 100)
    assert len(thin) == 100
    assert thin[-1] == points[-1]
    assert sum(y for _, y in thin) / 100 == pytest.approx(3.0, abs=0.1)
    assert thinned(points[:50], 100) == points[:50]


def places(text: str) -> list[tuple[float, float]]:
    circles = parsed(text).iter("circle")
    return [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in circles]


def test_points_are_drawn_in_their_places() -> None:
    found = places(line_chart(chart([(0.0, 1.0), (5.0, 2.0), (10.0, 3.0)]), "k"))
    (x0, y0), (x1, y1), (x2, y2) = found
    assert x0 < x1 < x2 <= WIDTH
    assert y0 > y1 > y2 > 0
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.2)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.2)


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
    text = line_chart(chart(points, log_x=log_x), "k")
    parsed(text)
    drawn = re.sub(r"<(title|desc).*?</\1>|no data", "", text)
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_what_is_too_high_is_cut_off() -> None:
    points = [(float(x), 100.0 if x == 0 else 1.0 + x / 10) for x in range(10)]
    whole, cut = (places(line_chart(chart(points, highest=highest), "k")) for highest in (None, 2.0))
    assert max(y for _, y in cut[1:]) - min(y for _, y in cut[1:]) > 100
    assert max(y for _, y in whole[1:]) - min(y for _, y in whole[1:]) < 10


def test_a_waterfall_goes_from_value_to_value() -> None:
    text = waterfall(Waterfall("w", "BPB", ("raw", 1.80), [("up", 1.81), ("down", 1.70)], "final"), "k")
    tree = parsed(text)
    up, down = (
        next(rect for rect in tree.iter("rect") if rect.attrib["class"] == kind) for kind in ("up", "down")
    )
    end = float(up.attrib["x"]) + float(up.attrib["width"])
    assert float(down.attrib["x"]) + float(down.attrib["width"]) == pytest.approx(end, abs=0.2)
    assert float(down.attrib["width"]) == pytest.approx(11 * float(up.attrib["width"]), rel=0.02)
    words = [element.text for element in tree.iter("text")]
    assert {"+0.0100", "\u22120.1100", "1.8000", "1.7000", "final"} <= set(words)
    assert "down -0.1100" in next(tree.iter("desc")).text


def test_areas_are_as_large_as_their_parts() -> None:
    sizes = [50.0, 30.0, 10.0, 5.0, 5.0]
    boxes = squarified(sizes, (0.0, 0.0, 40.0, 25.0))
    for size, (x, y, width, height) in zip(sizes, boxes, strict=True):
        assert width * height == pytest.approx(size * 10)
        assert 0 <= x <= x + width <= 40 + 1e-9
        assert 0 <= y <= y + height <= 25 + 1e-9
    assert squarified([], (0.0, 0.0, 1.0, 1.0)) == []
    parts = [("g", f"t{index}", float(index)) for index in range(5)]
    rects = list(parsed(areas(Areas("a", "bytes", parts), "k")).iter("rect"))
    assert len(rects) == 4
