"""The losses of a run over its steps: as a chart of its report, and as the picture beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgolf.report.content import LineChart, Series
from pgolf.report.draw import COLORS, GRID, SOFT, STYLE, line_figure, png
from pgolf.runtime.terminal import plain
from pgolf.train.metrics import read_metrics

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
