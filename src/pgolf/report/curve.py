"""The picture of a run: losses over the steps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pgolf.runtime.terminal import plain
from pgolf.runtime.writing import write_bytes
from pgolf.train.metrics import read_metrics

_LOSS, _LOSS_LIGHT, _VALIDATION = "#1f4e8c", "#9db8d9", "#c2410c"
# The smoothed loss averages over about this part of the run, so that short and long ones read alike.
_SMOOTHED_PART = 1 / 30


def draw_curve(metrics: Path, out: Path, title: str) -> None:
    """Draw training loss, validation and the learning-rate scale of a ``metrics.jsonl`` as a PNG.

    Both losses share one scale, nats per token on the left; on the right it is read as the validation text's
    bits per byte, which are in a fixed proportion to its nats per token.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_metrics(metrics)
    steps = [entry for entry in entries if "train_loss" in entry]
    validations = [entry for entry in entries if "val_bpb" in entry]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    x = [entry["step"] for entry in steps]
    losses = [entry["train_loss"] for entry in steps]
    axis.plot(x, losses, color=_LOSS_LIGHT, linewidth=0.7, label="training loss, each step")
    axis.plot(x, smoothed(losses), color=_LOSS, linewidth=1.8, label="training loss, smoothed")
    axis.set_xlabel("step")
    axis.set_ylabel("loss (nats per token)")
    axis.margins(x=0.02)
    axis.grid(alpha=0.25)
    axis.spines["top"].set_visible(False)
    if validations:
        _draw_validations(axis, validations)
    _draw_schedule(axis, steps)
    if axis.get_lines():
        axis.legend(loc="upper right", frameon=False)
    # A name may hold anything, also what matplotlib would take for a formula.
    axis.set_title(plain(title), loc="left", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(out, buffer.getvalue())


def _draw_validations(axis: Any, validations: list[dict[str, Any]]) -> None:
    last = validations[-1]
    axis.plot(
        [entry["step"] for entry in validations],
        [entry["val_loss"] for entry in validations],
        color=_VALIDATION,
        # Dashed: between the points nothing was measured.
        linestyle="--",
        linewidth=1.1,
        marker="o",
        markersize=5.5,
        markeredgecolor="white",
        label="validation, last weights",
    )
    axis.annotate(
        f"{last['val_bpb']:.3f} bits per byte",
        (last["step"], last["val_loss"]),
        xytext=(2, 42),
        textcoords="offset points",
        color=_VALIDATION,
        ha="right",
        va="bottom",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )
    if last["val_loss"] > 0 and last["val_bpb"] > 0:
        bits = last["val_bpb"] / last["val_loss"]
        right = axis.secondary_yaxis("right", functions=(lambda nats: nats * bits, lambda bpb: bpb / bits))
        right.set_ylabel("validation (bits per byte)", color=_VALIDATION)
        right.tick_params(axis="y", colors=_VALIDATION)


def _draw_schedule(axis: Any, steps: list[dict[str, Any]]) -> None:
    # A strip along the bottom: the shape matters, not the value.
    strip = axis.inset_axes((0, 0, 1, 0.12), transform=axis.transAxes, zorder=0)
    strip.fill_between(
        [e["step"] for e in steps], [e["lr_scale"] for e in steps], color="#000000", alpha=0.07
    )
    strip.set_ylim(0, 1.05)
    strip.set_xlim(axis.get_xlim())
    strip.axis("off")
    strip.text(0.03, 0.25, "learning-rate scale", transform=strip.transAxes, fontsize=7, color="#666666")


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
