"""Charts, drawn by Matplotlib: as SVG that a page carries in itself, or as PNG; and the curve of a run.

The SVG has no font, no colour of its own and nothing that depends on when or where it was made: text stays
text in the page's font, and colours are variables of the page's style sheet, which knows light and dark.
Every chart of a page is 460 units wide, so that it can be read on a phone and beside others on a wide screen.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgolf.report.content import Bars, Chart, Intervals, LineChart, Series, Waterfall, number
from pgolf.runtime.terminal import plain
from pgolf.runtime.writing import write_bytes
from pgolf.train.metrics import read_metrics

WIDTH = 460
COLORS = ("#1f5fa8", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#a16207", "#be185d", "#4b5563")
INK, SOFT, GRID, CARD = "#1c2430", "#566072", "#e8eaee", "#ffffff"
# As page.css calls them.
_VARIABLES = {color: f"var(--c{index})" for index, color in enumerate(COLORS)}
_VARIABLES |= {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--grid)", CARD: "var(--card)"}
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "savefig.facecolor": "none",
}
# Width, dashes and opacity of lines. Between the points of "dots" nothing was measured.
_LINES = {"line": (2, "-", 1), "faint": (0.8, "-", 0.4), "dots": (1.3, "--", 1), "points": (0, "none", 1)}
# Wide enough for a character of a label in most fonts.
_LETTER = 8.4
# Room for the names of rows.
_NAMES = 140.0
# Points of a line that are drawn.
_MOST_POINTS = 600
# A drawn object whose name begins so has texts for the pointer: one for itself, or one for each point.
_TIP, _BETWEEN = "tip:", "\N{LINE SEPARATOR}"


def svg(chart: Chart, key: str) -> str:
    """A chart as an SVG element; ``key`` is a word that no other chart of the page has."""
    import matplotlib

    buffer, nothing = io.BytesIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": key}), warnings.catch_warnings():
        # A character that Matplotlib's own font lacks may be in the page's.
        warnings.simplefilter("ignore")
        draw: Any = {
            LineChart: line_figure,
            Waterfall: _waterfall,
            Bars: _bars,
            Intervals: _intervals,
        }[type(chart)]
        draw(chart).savefig(buffer, format="svg", metadata=nothing)
    root = ET.fromstring(buffer.getvalue())
    for element in root.iter():
        _tidy(element)
    for style in [part for part in root if part.find("style") is not None]:
        root.remove(style)
    for name, text in (("desc", _described(chart)), ("title", chart.title)):
        root.insert(0, _element(name, text, {"id": f"{key}{name[0]}"}))
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{key}t {key}d"}
    return ET.tostring(root, encoding="unicode")


def _element(name: str, text: str, attributes: dict[str, str]) -> ET.Element:
    element = ET.Element(name, attributes)
    element.text = plain(text)
    return element


def _tip(*texts: str) -> str:
    """The name of a drawn object that has these texts for the pointer."""
    return _TIP + _BETWEEN.join(map(plain, texts))


def _tidy(element: ET.Element) -> None:
    """Leave out of an element what the page has of its own, and round what no screen shows."""
    element.tag = element.tag.rpartition("}")[2]
    element.text = element.text if (element.text or "").strip() else None
    element.tail = None
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    if element.tag == "g" and (name := attributes.pop("id", "")).startswith(_TIP):
        texts = name.removeprefix(_TIP).split(_BETWEEN)
        points = [part for part in element.iter() if part.tag.endswith("}use")]
        for part, text in zip(points if len(points) == len(texts) else [element], texts, strict=False):
            part.insert(0, _element("title", text, {}))
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    for name in attributes.keys() & {"d", "x", "y", "width", "height", "transform"}:
        text = " ".join(attributes[name].split())
        attributes[name] = re.sub(r"\d+\.\d+", lambda found: f"{round(float(found[0]), 1):g}", text)
    if "style" in attributes:
        style = re.sub(r"font-family:[^;]*;? ?", "", attributes["style"])
        # So do versions of Matplotlib before 3.10.
        style = re.sub(r"font: (?:(\w+) )?([\d.]+px)[^;]*", r"font-weight: \1; font-size: \2", style)
        attributes["style"] = re.sub("#[0-9a-f]{6}", lambda found: _VARIABLES.get(found[0], found[0]), style)
    element.attrib = attributes


def png(figure: Any, out: Path, dpi: int = 150) -> None:
    """Write a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=CARD)
    write_bytes(out, buffer.getvalue())


def new_figure(width: float, height: float, **layout: Any) -> Any:
    """A figure of a size in units of 1/72 inch."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), **layout)


def place(axis: Any, left: float, right: float, top: float, bottom: float) -> None:
    """Put axes so many units from the edges of their figure."""
    width, height = 72 * axis.figure.get_size_inches()
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axis.set_position(box)


def line_figure(
    chart: LineChart, width: float = WIDTH, height: float = 280, margins: tuple[float, float] = (14, 32)
) -> Any:
    """A chart with axes, its band, lines and points; ``margins`` are those on the right and above."""
    figure = new_figure(width, height)
    series = [(part, _drawable(part, chart.log_x)) for part in chart.series]
    seen = [y for _, points in series for _, y in points if chart.highest is None or y <= chart.highest]
    if not seen:
        figure.text(0.5, 0.5, "no data", ha="center", color=SOFT)
        return figure
    axis = figure.add_axes((0, 0, 1, 1))
    if chart.log_x:
        axis.set_xscale("log")
    if chart.band:
        axis.fill_between(*zip(*chart.band, strict=True), color=COLORS[0], alpha=0.16, linewidth=0)
    for part, points in series:
        if points:
            _draw_series(axis, part, points)
    axis.set_ylim(*_padded([*seen, *(y for _, *both in chart.band for y in both)], 0.06))
    axis.margins(x=0.02)
    axis.grid(axis="y")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    set_ticks(axis.xaxis, chart.log_x)
    set_ticks(axis.yaxis)
    axis.set_xlabel(_short(chart.x_label), loc="right")
    label = axis.set_title(_short(chart.y_label), loc="left", fontsize=12, color=SOFT, pad=12)
    longest = max(len(text) for text in axis.yaxis.get_major_formatter().format_ticks(axis.get_yticks()))
    left = max(50.0, _LETTER * longest + 10)
    place(axis, left, *margins, 42)
    label.set_x((4 - left) / (width - left - margins[0]))
    return figure


def _padded(values: Sequence[float], part: float) -> tuple[float, float]:
    """A range around values with some room, also around a single one."""
    low, high = min(values), max(values)
    room = part * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _drawable(series: Series, log_x: bool) -> list[tuple[float, float]]:
    """Its points, without those that have no place on the chart."""
    least = 0.0 if log_x else -math.inf
    return [(x, y) for x, y in series.points if least < x < math.inf and math.isfinite(y)]


def _draw_series(axis: Any, series: Series, points: list[tuple[float, float]]) -> None:
    if series.style != "points":
        points = thinned(points, _MOST_POINTS)
    form: dict[str, Any] = dict(zip(("linewidth", "linestyle", "alpha"), _LINES[series.style], strict=True))
    if series.style in ("dots", "points") or len(points) == 1:
        form |= {"marker": "o", "markersize": 7 if len(points) < 60 else 5, "markeredgecolor": CARD}
        form["gid"] = _tip(*(f"{series.name}: {number(y)} at {number(x)}" for x, y in points))
    color, label = COLORS[series.color % len(COLORS)], plain(series.name)
    axis.plot(*zip(*points, strict=True), color=color, label=label, **form)


def set_ticks(part: Any, log: bool = False) -> None:
    """Round numbers along an x-axis or y-axis, large ones in thousands or millions."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

    low, high = part.get_view_interval()
    narrow = LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,))
    part.set_major_locator(narrow if log else MaxNLocator(5, steps=[1, 2, 5, 10]))
    part.set_minor_locator(NullLocator())
    large = max(abs(low), abs(high)) >= 10_000
    part.set_major_formatter(EngFormatter(sep="") if large else ScalarFormatter(useOffset=False))


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most ``most`` points: the means of neighbours, the last point as it is."""
    if len(points) <= most:
        return list(points)
    edges = [index * (len(points) - 1) // (most - 1) for index in range(most)]
    parts = [points[first:end] for first, end in itertools.pairwise(edges)]
    means = [tuple(math.fsum(side) / len(part) for side in zip(*part, strict=True)) for part in parts]
    return [*means, points[-1]]  # type: ignore[list-item]


def _short(name: str, room: float = WIDTH) -> str:
    """As much of a name as has room in so many units."""
    most = int(room / _LETTER) - 1
    return plain(name if len(name) <= most else f"{name[: most - 3]}...")


def _rows(names: Sequence[str], right: float, unit: str) -> Any:
    """Axes of a new figure, with a row for each name from above to below."""
    figure = new_figure(WIDTH, 34 * len(names) + 50)
    axis = figure.add_axes((0, 0, 1, 1))
    place(axis, _NAMES, right, 8, 42)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), [_short(name, _NAMES) for name in names], color=INK)
    axis.tick_params(length=0)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.grid(axis="x")
    axis.set_xlabel(plain(unit), loc="right")
    return axis


def _beside(axis: Any, text: str, x: float, row: float, **form: Any) -> None:
    axis.annotate(text, (x, row), (7, 0), textcoords="offset points", va="center", **form)


def _waterfall(chart: Waterfall) -> Any:
    """Bars from one value to the next; the axis shows the range of the values, not zero."""
    names = [chart.first[0], *(name for name, _ in chart.steps), chart.last]
    axis = _rows(names, 62, chart.unit)
    axis.set_xlim(*_padded(chart.values, 0.12))
    set_ticks(axis.xaxis)
    for row, (_, old, new) in enumerate(chart.changes(), 1):
        color = COLORS[2] if new < old else COLORS[1]
        axis.barh(row, new - old, left=old, height=0.6, color=color)
        axis.plot([old, old], [row - 0.7, row - 0.3], color=SOFT, linewidth=1, linestyle=":")
        _beside(axis, f"{new - old:+.4f}".replace("-", "\u2212"), max(old, new), row, color=color)
    for row, value in ((0, chart.values[0]), (len(chart.values), chart.values[-1])):
        axis.plot([axis.get_xlim()[0], value], [row, row], color=INK, linewidth=1.5, linestyle=":")
        axis.plot([value], [row], marker="o", markersize=9, color=INK)
        _beside(axis, f"{value:.4f}", value, row, weight="bold")
    return axis.figure


def _bars(chart: Bars) -> Any:
    """A bar per group, the largest first, made of its parts."""
    totals = chart.totals()
    texts = [f"{size:,.0f}, {100 * size / sum(totals.values()):.0f} %" for size in totals.values()]
    axis = _rows(list(totals), _LETTER * max(map(len, texts), default=0), chart.unit)
    for row, group in enumerate(totals):
        left = 0.0
        for name, size in sorted(chart.parts_of(group), key=lambda part: -part[1]):
            form = {"color": COLORS[row % len(COLORS)], "edgecolor": CARD, "linewidth": 0.4}
            tip = _tip(f"{group}: {name}, {size:,.0f} {chart.unit}")
            axis.barh(row, size, left=left, height=0.7, gid=tip, **form)
            left += size
        _beside(axis, texts[row], left, row)
    set_ticks(axis.xaxis)
    return axis.figure


def _intervals(chart: Intervals) -> Any:
    """A row for each thing: its name, below it the values, their mean and its interval."""
    figure = new_figure(WIDTH, 46 * len(chart.rows) + 50)
    axis = figure.add_axes((0, 0, 1, 1))
    place(axis, 14, 76, 8, 42)
    axis.set_ylim(len(chart.rows) - 0.5, -0.5)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x")
    axis.set_xlabel(plain(chart.unit), loc="right")
    for row, (name, mean, low, high, values) in enumerate(chart.rows):
        axis.text(0, row - 0.3, _short(name), va="center", transform=axis.get_yaxis_transform())
        if low is not None and high is not None:
            axis.plot([low, high], [row + 0.15] * 2, color=COLORS[0], linewidth=2, solid_capstyle="butt")
        form = {"markersize": 7, "markeredgecolor": CARD, "gid": _tip(*map(number, values))}
        axis.plot(values, [row + 0.15] * len(values), "o", color=COLORS[1], **form)
        axis.plot([mean], [row + 0.15], "|", color=INK, markersize=15, markeredgewidth=2.5)
        end = max(value for value in (*values, mean, high) if value is not None)
        _beside(axis, f"{mean:.4f}", end, row + 0.15, weight="bold")
    set_ticks(axis.xaxis)
    return figure


def _described(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    if isinstance(chart, Bars):
        return "; ".join(f"{group} {size:,.0f} {chart.unit}" for group, size in chart.totals().items())
    if isinstance(chart, Intervals):
        return f"{chart.unit}. " + "; ".join(f"{row.name} {row.mean:.4f}" for row in chart.rows)
    if isinstance(chart, Waterfall):
        said = [f"{name} {new - old:+.4f}" for name, old, new in chart.changes()]
        ends = f"{chart.first[0]} {chart.first[1]:.4f}", f"{chart.last} {chart.values[-1]:.4f}"
        return "; ".join([ends[0], *said, ends[1]])
    said = []
    for series in chart.series:
        if series.points:
            (x, y), (end, last) = series.points[0], series.points[-1]
            said.append(f"{series.name}: from {number(y)} at {number(x)} to {number(last)} at {number(end)}")
    return f"{chart.y_label} by {chart.x_label}. " + "; ".join(said)


Entries = Sequence[Mapping[str, Any]]
# The smoothed loss averages over about this part of the run, so that short and long ones read alike.
_SMOOTHED_PART = 1 / 30
# The first part of a curve whose heights do not choose the chart's range.
_BEGINNING = 0.03


def points_of(entries: Entries, key: str) -> list[tuple[float, float]]:
    """(step, value) of every entry of ``metrics.jsonl`` that has this key."""
    return [(float(entry["step"]), float(entry[key])) for entry in entries if key in entry]


def loss_chart(entries: Entries) -> LineChart:
    """Training loss and validation in nats per token; the steep beginning may be cut off."""
    each = points_of(entries, "train_loss")
    smooth = smoothed([loss for _, loss in each])
    most = max([loss for _, loss in each], default=0.0)
    high = max(smooth[math.ceil(_BEGINNING * len(smooth)) :] or smooth, default=0.0)
    series = [
        Series("training, each step", each, "faint", 0),
        Series("training, smoothed", list(zip((step for step, _ in each), smooth, strict=True)), "line", 0),
        Series("validation, last weights", points_of(entries, "val_loss"), "dots", 1),
    ]
    cut = high < most
    note = "The beginning is higher than the chart." if cut else ""
    return LineChart("Loss", "step", "nats per token", series, highest=high if cut else None, note=note)


def draw_curve(metrics: Path, out: Path, title: str) -> None:
    """Draw the losses in a ``metrics.jsonl`` as a PNG, with the shape of the learning-rate schedule.

    The scale on the right reads both losses in the validation text's bits per byte, which are in a fixed
    proportion to its nats per token.
    """
    import matplotlib

    entries = read_metrics(metrics)
    with matplotlib.rc_context(STYLE):
        figure = line_figure(loss_chart(entries), 576, 324, margins=(54, 60))
        figure.text(0.007, 0.94, plain(title), fontsize=14)
        if figure.axes:
            axis = figure.axes[0]
            _draw_schedule(axis, points_of(entries, "lr_scale"))
            _draw_bits(axis, [entry for entry in entries if "val_bpb" in entry])
            axis.legend(loc="upper right", frameon=False, fontsize=10)
        png(figure, out)


def _draw_bits(axis: Any, validations: Entries) -> None:
    if not validations or not (validations[-1]["val_loss"] > 0 and validations[-1]["val_bpb"] > 0):
        return
    step, loss, bpb = (validations[-1][key] for key in ("step", "val_loss", "val_bpb"))
    text = f"{bpb:.3f} bits per byte"
    form = {"textcoords": "offset points", "ha": "right", "color": COLORS[1]}
    axis.annotate(text, (step, loss), (2, 42), **form)
    bits = bpb / loss
    right = axis.secondary_yaxis("right", functions=(lambda nats: nats * bits, lambda value: value / bits))
    right.set_ylabel("validation (bits per byte)", color=COLORS[1])
    right.tick_params(axis="y", colors=COLORS[1])
    right.spines["right"].set_visible(False)


def _draw_schedule(axis: Any, scales: Sequence[tuple[float, float]]) -> None:
    # A strip along the bottom: the shape matters, not the value.
    strip = axis.inset_axes((0, 0, 1, 0.12), zorder=0)
    strip.fill_between(*zip(*scales, strict=True), color=GRID)
    strip.set_ylim(0, 1.05)
    strip.set_xlim(axis.get_xlim())
    strip.axis("off")
    strip.text(0.03, 0.25, "learning-rate scale", transform=strip.transAxes, fontsize=8, color=SOFT)


def smoothed(values: list[float]) -> list[float]:
    """Exponential means from both sides, averaged: they lag behind in opposite directions."""
    forward, backward = _running_mean(values), _running_mean(values[::-1])[::-1]
    return [(one + other) / 2 for one, other in zip(forward, backward, strict=True)]


def _running_mean(values: list[float]) -> list[float]:
    """Exponential mean of everything so far, without the bias of its start."""
    decay = 1 - 1 / max(len(values) * _SMOOTHED_PART, 1.0)
    result, total, weight = [], 0.0, 0.0
    for value in values:
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append(total / weight)
    return result
