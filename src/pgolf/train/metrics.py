"""``metrics.jsonl``: one object per step and one per validation, written as training goes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes
from pgolf.runtime.paths import write_error
from pgolf.runtime.writing import write_bytes
from pgolf.train.trackers import Tracker

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Reading a loss waits for the device that computes it; there the losses of so many steps are read together.
_STEPS_PER_READING = 16


class Metrics:
    """Appends to ``metrics.jsonl``.

    A step is ``{"step", "train_loss" (nats per target), "lr_scale", "tokens_per_second"}``, a validation
    ``{"step", "val_loss" (nats per target), "val_bpb" (bits per byte)}``. ``step`` counts finished steps.
    Without a path nothing is written; the losses are looked at all the same.

    Args:
        path: of the file.
        from_step: finished steps; what the file says of later ones is dropped.
        tokens_per_step: targets.
        trackers: also receive what is written.
        steps_per_reading: losses that are read, checked and written together.
    """

    def __init__(
        self,
        path: Path | None,
        from_step: int,
        tokens_per_step: int,
        trackers: Sequence[Tracker] | None = None,
        steps_per_reading: int = 1,
    ) -> None:
        self.path, self.steps_per_reading = path, steps_per_reading
        self.trackers = trackers or ()
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
        """Record a finished step; ``loss`` is a scalar tensor, which must not change until it is read."""
        self._pending.append((step, loss.detach(), scale))
        if len(self._pending) >= self.steps_per_reading:
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
                what = f"the training loss became {loss} in step {step}"
                raise PgolfError(f"{what}; lower the optim.*_lr rates")
        now = time.perf_counter()
        self.tokens_per_second = len(losses) * self.tokens_per_step / max(now - self._clock, 1e-9)
        self._clock, self.last_loss = now, losses[-1]
        rate = round(self.tokens_per_second, 1)
        entries = [
            {"step": step, "train_loss": loss, "lr_scale": scale, "tokens_per_second": rate}
            for (step, _, scale), loss in zip(self._pending, losses, strict=True)
        ]
        self._append(entries)
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
        for tracker in self.trackers:
            tracker.add(entries)


def steps_per_reading(device: torch.device) -> int:
    """How many losses to read together: on the CPU each at once; a device must not wait for us."""
    return 1 if device.type == "cpu" else _STEPS_PER_READING


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All entries of a metrics file; a last line cut off by a crash is left out, and so is what is none."""
    if not path.is_file():
        return []
    entries = []
    for line in read_bytes(path).decode("utf-8", "replace").splitlines():
        try:
            entries.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return [entry for entry in entries if _is_entry(entry)]


def _is_entry(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        return False
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in found.values())
