"""Charts as SVG text, drawn by hand: no script, no font and no colour of its own.

Colours are classes of the page's style sheet, which knows light and dark. Every chart is 460 units wide, so
that it can be read on a phone as it stands and side by side with others on a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pgolf.report.axes import Scale, log_ticks, padded, thinned, tick_labels, ticks
from pgolf.report.content import Areas, LineChart, Series, Waterfall

WIDTH = 460
COLORS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 20, 42
# Of a tick's label, as wide as a phone shows it.
_DIGIT = 8.4


def line_chart(chart: LineChart, key: str) -> str:
    """A chart with axes, its band, lines and points; ``key`` is unique on the page."""
    height = 280
    every = [point for series in chart.series for point in series.points]
    seen = [(x, y) for x, y in every if math.isfinite(x) and math.isfinite(y) and (x > 0 or not chart.log_x)]
    if not seen:
        return _svg(
            key, chart.title, "nothing to draw", 60, [_text(WIDTH / 2, 34, "no data", "middle", "muted")]
        )
    bottom, right = height - _BOTTOM, WIDTH - _RIGHT
    xs = [x for x, _ in seen] + [x for x, _, _ in chart.band]
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else padded(xs)
    # Room for the points at both ends.
    if chart.log_x:
        room = max(xs) / min(xs)
        x_low, x_high = min(xs) / (1.05 * room**0.02), max(xs) * (1.05 * room**0.02)
    elif any(series.style in ("dots", "points") for series in chart.series):
        x_low, x_high = x_low - 0.02 * (x_high - x_low), x_high + 0.02 * (x_high - x_low)
    ys = [y for _, y in seen] + [y for _, *both in chart.band for y in both]
    y_low, y_high = padded([y for y in ys if chart.highest is None or y <= chart.highest] or ys)
    y_scale = Scale(y_low, y_high, bottom, _TOP)
    y_ticks = ticks(y_low, y_high, 5)
    left = max(_LEFT, math.ceil(_DIGIT * max(map(len, tick_labels(y_ticks)))) + 10)
    x_scale = Scale(x_low, x_high, left, right, chart.log_x)
    x_ticks = log_ticks(x_low, x_high) if chart.log_x else ticks(x_low, x_high, 5)
    parts = [*_grid(x_scale, x_ticks, y_scale, y_ticks, chart)]
    parts.append(f'<clipPath id="{key}p"><rect x="{left}" y="{_TOP}" width="{right - left}"')
    parts[-1] += f' height="{bottom - _TOP}"/></clipPath><g clip-path="url(#{key}p)">'
    if chart.band:
        upper = [(x_scale(x), y_scale(high)) for x, _, high in chart.band]
        lower = [(x_scale(x), y_scale(low)) for x, low, _ in reversed(chart.band)]
        parts.append(f'<path class="band" d="{_path([*upper, *lower])}Z"/>')
    for series in chart.series:
        parts += _series(series, x_scale, y_scale)
    parts.append("</g>")
    return _svg(key, chart.title, _described(chart), height, parts)


def _grid(x_scale: Scale, xs: list[float], y_scale: Scale, ys: list[float], chart: LineChart) -> list[str]:
    bottom, left, right = y_scale.start, x_scale.start, x_scale.end
    parts = []
    for value, label in zip(ys, tick_labels(ys), strict=True):
        y = y_scale(value)
        parts.append(f'<line class="grid" x1="{_n(left)}" y1="{_n(y)}" x2="{right}" y2="{_n(y)}"/>')
        parts.append(_text(left - 6, y + 4, label, "end", "tick"))
    for value, label in zip(xs, tick_labels(xs), strict=True):
        x = x_scale(value)
        parts.append(f'<line class="axis" x1="{_n(x)}" y1="{bottom}" x2="{_n(x)}" y2="{bottom + 4}"/>')
        # A label at the very edge would be cut.
        anchor = "end" if x > right - 8 else "middle"
        parts.append(_text(min(x, right + 8 if anchor == "end" else x), bottom + 17, label, anchor, "tick"))
    parts.append(f'<line class="axis" x1="{_n(left)}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts.append(_text(right, bottom + 34, chart.x_label, "end", "label"))
    parts.append(_text(4, 11, chart.y_label, "start", "label"))
    return parts


def _series(series: Series, x_scale: Scale, y_scale: Scale) -> list[str]:
    points = [(x, y) for x, y in series.points if math.isfinite(y) and (x > 0 or not x_scale.log)]
    if not points:
        return []
    color = series.color % COLORS
    places = [(x_scale(x), y_scale(y)) for x, y in (points if series.style == "points" else thinned(points))]
    parts = []
    if series.style != "points":
        parts.append(f'<path class="{series.style} s{color}" d="{_path(places)}"/>')
    if series.style in ("dots", "points") or len(points) == 1:
        radius = 4 if len(points) < 60 else 2.5
        for (x, y), (left, top) in zip(points, places, strict=False):
            tip = escape(f"{series.name}: {_number(y)} at {_number(x)}")
            place = f'cx="{_n(left)}" cy="{_n(top)}" r="{radius}"'
            parts.append(f'<circle class="dot f{color}" {place}><title>{tip}</title></circle>')
    return parts


def _described(chart: LineChart) -> str:
    """The chart in words, for those who do not see it."""
    said = []
    for series in chart.series:
        if series.points:
            (x, y), (end, last) = series.points[0], series.points[-1]
            said.append(
                f"{series.name}: from {_number(y)} at {_number(x)} to {_number(last)} at {_number(end)}"
            )
    return f"{chart.y_label} by {chart.x_label}. " + "; ".join(said)


def waterfall(chart: Waterfall, key: str) -> str:
    """Bars from one value to the next; the axis shows the range of the values, not zero."""
    numbers = [chart.first[1], *(value for _, value in chart.steps)]
    row, top, left = 34, 8, 140
    low, high = padded(numbers, 0.12)
    scale = Scale(low, high, left, WIDTH - 62)
    bottom = top + row * (len(chart.steps) + 2)
    parts = []
    values = ticks(low, high, 4)
    for value, label in zip(values, tick_labels(values), strict=True):
        x = _n(scale(value))
        parts.append(f'<line class="grid" x1="{x}" y1="{top}" x2="{x}" y2="{bottom}"/>')
        parts.append(_text(scale(value), bottom + 16, label, "middle", "tick"))
    parts.append(_text(WIDTH - 6, bottom + 34, chart.unit, "end", "label"))
    parts += _total(scale, chart.first[0], numbers[0], top, row)
    for index, (name, value) in enumerate(chart.steps):
        before, y = numbers[index], top + row * (index + 1)
        change = value - before
        kind = "down" if change < 0 else "up"
        start, end = sorted((scale(before), scale(value)))
        parts.append(_text(left - 8, y + row / 2 + 4, name, "end", "name"))
        wide = _n(max(end - start, 1.5))
        parts.append(
            f'<rect class="{kind}" x="{_n(start)}" y="{y + 7}" width="{wide}" height="{row - 14}" rx="2"/>'
        )
        for place, edge in ((before, y - 7), (value, y + 7)):
            x = _n(scale(place))
            parts.append(
                f'<line class="link" x1="{x}" y1="{edge}" x2="{x}" y2="{edge + 14 + (row - 14) * (edge > y)}"/>'
            )
        parts.append(
            _text(end + 6, y + row / 2 + 4, f"{change:+.4f}".replace("-", "\u2212"), "start", kind + "-text")
        )
    parts += _total(scale, chart.last, numbers[-1], top + row * (len(chart.steps) + 1), row)
    changes = (
        f"{name} {value - before:+.4f}" for (name, value), before in zip(chart.steps, numbers, strict=False)
    )
    words = f"{chart.first[0]} {numbers[0]:.4f}; {'; '.join(changes)}; {chart.last} {numbers[-1]:.4f}"
    return _svg(key, chart.title, words, bottom + 42, parts)


def _total(scale: Scale, name: str, value: float, y: float, row: float) -> list[str]:
    middle = y + row / 2
    return [
        _text(scale.start - 8, middle + 4, name, "end", "name strong"),
        f'<line class="total" x1="{_n(scale.start)}" y1="{middle}" x2="{_n(scale(value))}" y2="{middle}"/>',
        f'<circle class="dot ink" cx="{_n(scale(value))}" cy="{middle}" r="5"/>',
        _text(scale(value) + 9, middle + 4, f"{value:.4f}", "start", "name strong"),
    ]


def areas(chart: Areas, key: str) -> str:
    """Rectangles as large as their parts: one column of them per group, the largest first."""
    height, gap = 300, 1.5
    groups: dict[str, list[tuple[str, float]]] = {}
    for group, name, size in chart.parts:
        if size > 0:
            groups.setdefault(group, []).append((name, size))
    totals = {group: sum(size for _, size in parts) for group, parts in groups.items()}
    order = sorted(groups, key=lambda group: (-totals[group], group))
    parts: list[str] = []
    outer = squarified([totals[group] for group in order], (0.0, 0.0, float(WIDTH), float(height)))
    for color, (group, (x, y, width, tall)) in enumerate(zip(order, outer, strict=True)):
        inside = sorted(groups[group], key=lambda part: (-part[1], part[0]))
        for (name, size), box in zip(
            inside, squarified([size for _, size in inside], (x, y, width, tall)), strict=True
        ):
            left, top, w, h = box
            tip = escape(f"{group}: {name}, {size:,.0f} {chart.unit}")
            parts.append(
                f'<rect class="area f{color % COLORS}" x="{_n(left + gap / 2)}" y="{_n(top + gap / 2)}"'
                f' width="{_n(max(w - gap, 0.3))}" height="{_n(max(h - gap, 0.3))}"><title>{tip}</title></rect>'
            )
        share = f"{100 * totals[group] / sum(totals.values()):.0f} %"
        for words, line in ((group, 0), (f"{totals[group]:,.0f}", 1), (share, 2)):
            if width > 8 * len(words) + 8 and tall > 18 * (line + 1) + 4:
                parts.append(
                    _text(
                        x + 8,
                        y + 20 + 17 * line,
                        words,
                        "start",
                        f"on-area s{color % COLORS}" + (" strong" if not line else ""),
                    )
                )
    words = "; ".join(f"{group} {totals[group]:,.0f} {chart.unit}" for group in order)
    return _svg(key, chart.title, words, height, parts)


Box = tuple[float, float, float, float]


def squarified(sizes: Sequence[float], box: Box) -> list[Box]:
    """Divide a box (x, y, width, height) among sizes (descending), in rectangles that are as square as can
    be.

    Bruls, Huizing and van Wijk, "Squarified treemaps", 2000.
    """
    boxes: list[Box] = []
    x, y, width, height = box
    rest, total = list(sizes), math.fsum(sizes)
    while rest:
        scale = width * height / total if total > 0 else 0.0
        side = min(width, height)
        count = 1
        while count < len(rest) and _worst(rest[: count + 1], side, scale) <= _worst(
            rest[:count], side, scale
        ):
            count += 1
        row, rest = rest[:count], rest[count:]
        part = math.fsum(row)
        thick = part * scale / side if side > 0 else 0.0
        along = 0.0
        for size in row:
            long = side * size / part if part > 0 else 0.0
            boxes.append((x, y + along, thick, long) if width >= height else (x + along, y, long, thick))
            along += long
        if width >= height:
            x, width = x + thick, width - thick
        else:
            y, height = y + thick, height - thick
        total -= part
    return boxes


def _worst(row: Sequence[float], side: float, scale: float) -> float:
    """The worst ratio of sides among the rectangles of a row."""
    part = math.fsum(row) * scale
    largest, smallest = max(row) * scale, min(row) * scale
    if part <= 0 or smallest <= 0 or side <= 0:
        return math.inf
    return max(side**2 * largest / part**2, part**2 / (side**2 * smallest))


def _svg(key: str, title: str, description: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-labelledby="{key}t {key}d">'
        f'<title id="{key}t">{escape(title)}</title><desc id="{key}d">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, words: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if index else 'M'}{_n(x)} {_n(y)}" for index, (x, y) in enumerate(points))


def _n(value: float) -> str:
    # A tenth of a unit is less than what a screen shows; "-0" would differ from machine to machine.
    return f"{round(value, 1) + 0.0:g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:,.4g}"
