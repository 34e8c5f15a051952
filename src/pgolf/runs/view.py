"""What the user sees of a training: a bar, and a line for each validation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from rich.progress import BarColumn, TaskID

from pgolf.evaluate.evaluate import EvalResult
from pgolf.runtime.progress import Bars, Elapsed, Remaining, counting, tell, words


class TrainingView:
    """A progress bar with loss, speed and time left; validations as lines above it."""

    def __init__(self, steps: int, done: int = 0) -> None:
        label, bar, count = words("training"), BarColumn(), words("{task.completed:.0f}/{task.total:.0f}")
        loss, speed = words("{task.fields[loss]}"), words("{task.fields[speed]}")
        elapsed, remaining = Elapsed(), Remaining()
        self._bar = Bars(
            (label, bar, count, loss, speed, elapsed, remaining),
            drop=((elapsed,), (speed,), (label,), (remaining,), (loss,)),
        )
        self._others = ExitStack()
        self._evaluations: dict[str, Callable[[int, int], None]] = {}
        self._task: TaskID = self._bar.add_task("training", total=steps, completed=done, loss="", speed="")

    def __enter__(self) -> TrainingView:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        self._others.close()

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Move the bar."""
        speed = f"{_rate(tokens_per_second)} tokens/s"
        self._bar.update(self._task, completed=step, loss=f"loss {loss:.3f}", speed=speed)

    def validation(self, step: int, result: EvalResult) -> None:
        """Print a validation."""
        tell(f"step {step:>6}  validation {result.val_bpb:.4f} bits per byte ({result.val_loss:.4f} nats)")

    def evaluation(self, what: str, done: int, total: int) -> None:
        """Move a bar of its own, which comes after that of training and those of earlier evaluations."""
        if what not in self._evaluations:
            self._bar.stop()
            self._others.close()
            self._evaluations[what] = self._others.enter_context(counting(what))
        self._evaluations[what](done, total)

    def note(self, text: str) -> None:
        """Print a remark."""
        tell(text)


def _rate(value: float) -> str:
    return f"{value / 1000:.1f}k" if value < 1e6 else f"{value / 1e6:.2f}M"
