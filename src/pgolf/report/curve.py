"""The picture of a run: losses over the steps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pgolf.files import write_bytes
from pgolf.train.metrics import read_metrics

_SMOOTHING = 0.95


def draw_curve(metrics: Path, out: Path, title: str) -> None:
    """Draw training loss, validation BPB and the learning-rate scale of a ``metrics.jsonl`` as a PNG."""
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
    axis.plot(x, losses, color="#9db8d9", linewidth=0.8, label="training loss, each step")
    axis.plot(x, _smoothed(losses), color="#1f4e8c", linewidth=1.6, label="training loss, smoothed")
    axis.set_xlabel("step")
    axis.set_ylabel("training loss (nats per token)")
    axis.grid(alpha=0.25)
    right = axis.twinx()
    xs, bpbs = [entry["step"] for entry in validations], [entry["val_bpb"] for entry in validations]
    right.plot(xs, bpbs, color="#c2410c", marker="o", markersize=4, linewidth=1.2, label="validation")
    if validations:
        right.annotate(
            f"{bpbs[-1]:.3f}",
            (xs[-1], bpbs[-1]),
            xytext=(-4, 8),
            textcoords="offset points",
            color="#c2410c",
            ha="right",
        )
    right.set_ylabel("validation (bits per byte)", color="#c2410c")
    right.tick_params(axis="y", colors="#c2410c")
    _draw_schedule(axis, steps)
    lines = [*axis.get_lines(), *right.get_lines()]
    axis.legend(handles=lines, loc="upper right", frameon=False)
    axis.set_title(title, loc="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(out, buffer.getvalue())


def _draw_schedule(axis: Any, steps: list[dict[str, Any]]) -> None:
    # A strip along the bottom: the shape matters, not the value.
    strip = axis.inset_axes((0, 0, 1, 0.12), transform=axis.transAxes, zorder=0)
    strip.fill_between([e["step"] for e in steps], [e["lr_scale"] for e in steps], color="#000000", alpha=0.07)
    strip.set_ylim(0, 1.05)
    strip.set_xlim(axis.get_xlim())
    strip.axis("off")
    strip.text(0.01, 0.25, "learning-rate scale", transform=strip.transAxes, fontsize=7, color="#666666")


def _smoothed(values: list[float]) -> list[float]:
    """Exponential mean without the bias of its start."""
    result, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        result.append(total / weight)
    return result
