"""What the user sees while something runs: bars on a terminal, a few lines elsewhere; always on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pgolf.evaluate.evaluate import EvalResult

stderr = Console(stderr=True, highlight=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Show nothing meanwhile, neither bars nor lines: a library does not speak unless asked."""
    before, stderr.quiet = stderr.quiet, True
    try:
        yield
    finally:
        stderr.quiet = before


def say(line: str) -> None:
    """Show a line as it is."""
    stderr.print(line, markup=False, soft_wrap=True)


def _watched() -> bool:
    return stderr.is_terminal and not stderr.quiet


class TrainingView:
    """A progress bar with loss, speed and time left; validations as lines above it."""

    def __init__(self, steps: int, done: int = 0) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=stderr,
            disable=not _watched(),
        )
        self._task: TaskID = self._bar.add_task("train", total=steps, completed=done, figures="")

    def __enter__(self) -> TrainingView:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Move the bar."""
        figures = f"loss {loss:.3f}  {_rate(tokens_per_second)} tokens/s"
        self._bar.update(self._task, completed=step, figures=figures)

    def validation(self, step: int, result: EvalResult) -> None:
        """Print a validation."""
        stderr.print(f"step {step:>6}  validation {result.val_bpb:.4f} bits per byte ({result.val_loss:.4f} nats)")

    def note(self, text: str) -> None:
        """Print a remark."""
        stderr.print(text)


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work counted in units; call the yielded function with (done, total)."""
    columns = (TextColumn(label), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=stderr, disable=not _watched()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def working(label: str) -> Iterator[Callable[[str], None]]:
    """A line for work of unknown length; call the yielded function with what is being done."""
    with Progress(
        TextColumn(label),
        TextColumn("{task.fields[what]}"),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=not _watched(),
    ) as line:
        task = line.add_task(label, total=None, what="")
        yield lambda what: line.update(task, what=what)


def _rate(value: float) -> str:
    return f"{value / 1000:.1f}k" if value < 1e6 else f"{value / 1e6:.2f}M"
