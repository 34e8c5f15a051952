"""``metrics.jsonl``: one object per step and one per validation, written as training goes."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.files import write_bytes, write_error
from pgolf.train.tensorboard import EventFiles

# On a GPU, reading a loss waits for the device; pending steps are read together.
_PENDING_ON_DEVICE = 16


class Metrics:
    """Appends to ``metrics.jsonl``.

    A step is ``{"step", "train_loss" (nats per target), "lr_scale", "tokens_per_second"}``, a validation
    ``{"step", "val_loss" (nats per target), "val_bpb" (bits per byte)}``. ``step`` counts finished steps.
    Without a path nothing is written; the losses are looked at all the same. What is written also goes to ``events``.
    """

    def __init__(
        self, path: Path | None, from_step: int, tokens_per_step: int, events: EventFiles | None = None
    ) -> None:
        self.path = path
        self.events = events
        self.tokens_per_step = tokens_per_step
        self.last_loss = float("nan")
        self.tokens_per_second = 0.0
        self._pending: list[tuple[int, Tensor, float]] = []
        self._clock = time.perf_counter()
        if path is not None and path.is_file():
            kept = [entry for entry in read_metrics(path) if entry["step"] <= from_step]
            # Validation at the resumed step is repeated, so its old entry goes.
            kept = [entry for entry in kept if not ("val_bpb" in entry and entry["step"] == from_step)]
            write_bytes(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def step(self, step: int, loss: Tensor, scale: float) -> None:
        """Record a finished step; ``loss`` is a scalar tensor, read at once on the CPU, later on a device."""
        self._pending.append((step, loss.detach(), scale))
        if not loss.is_cuda or len(self._pending) >= _PENDING_ON_DEVICE:
            self.flush()

    def validation(self, step: int, loss: float, bpb: float) -> None:
        """Record a validation of the raw weights."""
        self.flush()
        self._append([{"step": step, "val_loss": loss, "val_bpb": bpb}])

    def restart_clock(self) -> None:
        """Leave what happened since the last step (a validation, say) out of the tokens per second."""
        self.flush()
        self._clock = time.perf_counter()

    def flush(self) -> None:
        """Read pending losses and write them.

        Raises:
            PgolfError: a loss is no finite number, or the disk is full.
        """
        if not self._pending:
            return
        losses = [float(loss) for _, loss, _ in self._pending]
        for (step, _, _), loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                raise PgolfError(f"the training loss became {loss} in step {step}; lower the optim.*_lr rates")
        now = time.perf_counter()
        self.tokens_per_second = len(losses) * self.tokens_per_step / max(now - self._clock, 1e-9)
        self._clock, self.last_loss = now, losses[-1]
        rate = round(self.tokens_per_second, 1)
        self._append(
            [
                {"step": step, "train_loss": loss, "lr_scale": scale, "tokens_per_second": rate}
                for (step, _, scale), loss in zip(self._pending, losses, strict=True)
            ]
        )
        self._pending.clear()

    def _append(self, entries: list[dict[str, Any]]) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
        except OSError as error:
            raise write_error(self.path, error) from error
        if self.events is not None:
            self.events.add(entries)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All entries of a metrics file; a last line cut off by a crash is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
