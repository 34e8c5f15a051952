"""What the user sees while something runs: bars on a terminal, a few lines elsewhere; always on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pgolf.runtime.terminal import plain, spelled

stderr = Console(stderr=True, highlight=False)
_SHORTEST_BAR, _LONGEST_BAR = 8, 40


def tell(line: str) -> None:
    """Print a line; none of it is cut, folded or taken for markup."""
    stderr.print(Text(spelled(plain(line), stderr.encoding)), soft_wrap=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Show nothing meanwhile, neither bars nor lines: a library does not speak unless asked."""
    before, stderr.quiet = stderr.quiet, True
    try:
        yield
    finally:
        stderr.quiet = before


class Bars(Progress):
    """Progress whose columns are whole or left out, the least important first, so that no number is cut.

    Args:
        columns: from left to right; a bar takes what room the others leave, if that is enough for one.
        drop: groups of columns that may be left out where the terminal is too narrow, the least important
            first.
        transient: whether it goes when the work is done.
    """

    def __init__(
        self,
        columns: Sequence[ProgressColumn],
        drop: Sequence[Sequence[ProgressColumn]],
        transient: bool = False,
    ) -> None:
        self._drop = drop
        super().__init__(
            *columns, console=stderr, disable=stderr.quiet or not stderr.is_terminal, transient=transient
        )

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """The rows, in columns that fit."""
        tasks, whole, width = list(tasks), self.columns, stderr.width
        gone: list[object] = [column for column in whole if isinstance(column, BarColumn)]
        try:
            for group in ((), *self._drop):
                gone += group
                self.columns = tuple(column for column in whole if column not in gone)
                table = super().make_tasks_table(tasks)
                spare = width - Measurement.get(stderr, stderr.options.update_width(1000), table).maximum
                if spare >= 0:
                    break
            if spare > _SHORTEST_BAR:
                self.columns = tuple(
                    column for column in whole if column in self.columns or isinstance(column, BarColumn)
                )
                for column in self.columns:
                    if isinstance(column, BarColumn):
                        column.bar_width = min(spare - 1, _LONGEST_BAR)
                table = super().make_tasks_table(tasks)
            return table
        finally:
            self.columns = whole


def words(form: str) -> TextColumn:
    """A column of text, which is taken as it is."""
    return TextColumn(form, markup=False)


class Elapsed(TimeElapsedColumn):
    """Time since the beginning, which says so."""

    def render(self, task: Task) -> Text:
        return super().render(task).append(" elapsed")


class Remaining(TimeRemainingColumn):
    """Time to the end, which says so."""

    def render(self, task: Task) -> Text:
        return super().render(task).append(" left")


class Note(Protocol):
    """Hears what is being done, and of work that can be counted how many units of how many are done."""

    def __call__(self, what: str, done: int = 0, total: int = 0, /) -> None: ...


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work counted in units; call the yielded function with (done, total)."""
    what, bar, share = words("{task.description}"), BarColumn(), words("{task.percentage:3.0f}%")
    elapsed, remaining = Elapsed(), Remaining()
    with Bars((what, bar, share, elapsed, remaining), drop=((elapsed,), (remaining,), (what,))) as progress:
        task = progress.add_task(plain(label), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def working(label: str) -> Iterator[Note]:
    """A line for work of several kinds, each with a bar; call the yielded function with what is being done.

    The bar says how much of that kind is done; where nobody knows, it only moves.
    """
    what, doing, elapsed = words("{task.description}:"), words("{task.fields[what]}"), Elapsed()
    columns = (what, doing, BarColumn(), words("{task.fields[count]}"), elapsed)
    with Bars(columns, drop=((elapsed,), (columns[3],), (doing,)), transient=True) as line:
        task = line.add_task(plain(label), total=None, what="", count="")

        def note(text: str, done: int = 0, total: int = 0, /) -> None:
            count = f"{done:,}/{total:,}" if total else ""
            # None would leave the total as it is.
            line.tasks[0].total = total or None
            line.update(task, completed=done, what=plain(text), count=count)

        yield note
