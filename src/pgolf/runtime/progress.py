"""What the user sees while something runs: bars on a terminal, a few lines elsewhere; always on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

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


def _watched() -> bool:
    return stderr.is_terminal and not stderr.quiet


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
        super().__init__(*columns, console=stderr, disable=not _watched(), transient=transient)

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


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work counted in units; call the yielded function with (done, total)."""
    what, bar, share = words("{task.description}"), BarColumn(), words("{task.percentage:3.0f}%")
    elapsed, remaining = TimeElapsedColumn(), TimeRemainingColumn()
    with Bars((what, bar, share, elapsed, remaining), drop=((elapsed,), (remaining,), (what,))) as progress:
        task = progress.add_task(plain(label), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def working(label: str) -> Iterator[Callable[[str], None]]:
    """A line for work of unknown length; call the yielded function with what is being done."""
    what, doing, elapsed = words("{task.description}"), words("{task.fields[what]}"), TimeElapsedColumn()
    with Bars((what, doing, elapsed), drop=((elapsed,), (doing,)), transient=True) as line:
        task = line.add_task(plain(label), total=None, what="")
        yield lambda text: line.update(task, what=plain(text))
