"""A run's losses as a curve of plain characters, while it trains and after it."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pgolf.errors import PgolfError
from pgolf.runs.records import RunRecord, is_run, read_run
from pgolf.runtime.exclusive import is_worked_on
from pgolf.runtime.terminal import plain

_TRAINING, _VALIDATION = ".", "o"
_LABEL = 9
_LEAST = 9


def frames(folder: Path, size: Callable[[], tuple[int, int]], pause: float = 1.0) -> Iterator[list[str]]:
    """Lines that show a run: anew after every ``pause`` (s) while a process works on it; the last ones stay.

    Args:
        folder: of the run.
        size: of the terminal, columns and lines, which no frame exceeds (but 20 columns and 9 lines).
        pause: between two frames.

    Raises:
        PgolfError: the folder holds no run, or one that has no step yet and that nobody works on.
    """
    while True:
        # Asked first: what is written before the lock goes must be in the last frame.
        busy = is_worked_on(folder)
        columns, rows = size()
        if busy and not is_run(folder):
            yield [f"{plain(str(folder))}: the run has not begun yet"]
        else:
            yield _frame(read_run(folder), busy, columns, rows)
        if not busy:
            return
        time.sleep(pause)


def _frame(run: RunRecord, busy: bool, columns: int, rows: int) -> list[str]:
    status = f"{plain(str(run.folder))}: {', '.join(_status(run, busy))}"
    about = textwrap.wrap(status, columns, break_on_hyphens=False)
    if not run.metrics:
        if not busy:
            raise PgolfError(f"{run.folder}: no step is done yet, so there is no curve; train it first")
        return about
    return [*about, *curve(run.metrics, columns, min(rows - len(about) - 1, 20))]


def _status(run: RunRecord, busy: bool) -> Iterator[str]:
    steps, last = (
        run.recipe.get("train.steps", 0),
        next((e for e in run.metrics[::-1] if "train_loss" in e), {}),
    )
    if run.state != "training":
        yield f"{run.state} after {run.steps} steps" + ("; at work on the rest" if busy else "")
    elif busy:
        yield f"step {run.steps} of {steps}"
    else:
        yield f"stopped after step {run.steps} of {steps}; the same command goes on (train: with --resume)"
    if last:
        yield f"loss {last['train_loss']:.4f}"
    if busy and run.state == "training" and last:
        speed = last["tokens_per_second"]
        yield f"{speed:,.0f} tokens per second"
        if not run.recipe.get("train.wallclock_seconds"):
            left = (steps - run.steps) * run.recipe.get("train.batch_tokens", 0) / max(speed, 1.0)
            yield f"{left / 60:.0f} min left" if left >= 100 else f"{left:.0f} s left"
    scores = {name: run.score(name) for name in ("raw", *run.evaluations)}
    shown = [f"{name} {score:.4f}" for name, score in scores.items() if score is not None]
    if shown:
        yield f"bits per byte: {', '.join(shown)}"


def curve(metrics: Sequence[Mapping[str, Any]], columns: int, rows: int) -> list[str]:
    """Training loss (``.``, the mean of the steps of a column) and validation loss (``o``) over the steps.

    Args:
        metrics: entries of ``metrics.jsonl``, at least one; losses in nats per target.
        columns: of the whole picture; at least 20 are taken.
        rows: lines of the whole picture; at least 6 are taken.

    Returns:
        The lines, all of them ASCII and at most ``columns`` long.
    """
    width, height = max(columns - _LABEL - 2, _LEAST), max(rows - 3, 3)
    last = max(max(int(entry["step"]) for entry in metrics), 1)
    points: dict[str, dict[int, list[float]]] = {_TRAINING: {}, _VALIDATION: {}}
    for entry in metrics:
        column = max(int(entry["step"]) - 1, 0) * width // last
        for sign, key in ((_TRAINING, "train_loss"), (_VALIDATION, "val_loss")):
            if key in entry:
                points[sign].setdefault(column, []).append(float(entry[key]))
    means = [(sign, column, fmean(found)) for sign in points for column, found in points[sign].items()]
    high, low = (choose(value for _, _, value in means) for choose in (max, min))
    picture = [[" "] * width for _ in range(height)]
    for sign, column, value in means:
        picture[round((high - value) / ((high - low) or 1.0) * (height - 1))][column] = sign
    labels = {
        row: f"{high - (high - low) * row / (height - 1):{_LABEL}.4f}" for row in (0, height // 2, height - 1)
    }
    drawn = [f"{labels.get(row, ''):{_LABEL}} |{''.join(line).rstrip()}" for row, line in enumerate(picture)]
    legend = f"{_TRAINING} training loss, {_VALIDATION} validation loss (nats per target)"
    return [
        *drawn,
        f"{'':{_LABEL}} +{'-' * width}",
        f"{'step 1':>{_LABEL + 3}}{last:>{width - 1},}",
        textwrap.shorten(legend, max(columns, 20), placeholder=""),
    ]
