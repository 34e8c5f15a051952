"""How the commands print: tables that fit the terminal with every number and name whole, labelled lines,
sentences.

A table that is too wide loses columns, the least important first, and says which. If what cannot be left out
does not fit either, each row becomes a block of labelled lines; those may be longer than the terminal, but
nothing is cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgolf.runtime.terminal import plain, spelled

stdout = Console(highlight=False)
# Where nobody watches, no column is left out, and texts of several words are folded so that a row has this
# width.
_FILE_WIDTH = 160
_NOTHING = {"", "-"}
_WORD = re.compile(r"\s*\S+")


def say(text: str) -> None:
    """Print a sentence; on a terminal its lines end between words."""
    _print_lines(_sentence(text))


def print_table(rows: Sequence[tuple[str, str]], title: str) -> None:
    """Labelled lines."""
    names = [_cell(name) for name, _ in rows]
    values = _Column("", [_cell(value) for _, value in rows], folds=True)
    label = max(map(cell_len, names), default=0)
    room = _width() - label - _frame(2)
    _print_title(title)
    if room < values.narrowest:
        _print_block(list(zip(names, values.cells, strict=True)))
        return
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for name, value in zip(names, values.cells, strict=True):
        table.add_row(Text(name), Text("\n".join(wrapped(value, room))))
    _print(table)


def print_columns(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str,
    left: Sequence[str] = (),
    drop: Sequence[str] = (),
    fold: Sequence[str] = (),
) -> None:
    """A table with a header.

    Args:
        header: names of the columns, each another; a name may have several lines.
        rows: their cells.
        title: stands above.
        left: columns aligned left as the first one is; the others are aligned right.
        drop: columns that may be left out where the terminal is too narrow, the least important first.
        fold: columns of texts whose words may take several lines.
    """
    columns = [
        _Column(name, [_cell(row[index]) for row in rows], name in fold, index == 0 or name in left)
        for index, name in enumerate(header)
    ]
    kept = _kept(columns, drop if stdout.is_terminal else (), _width())
    _print_title(title)
    if stdout.is_terminal and _least(kept) > _width():
        for cells in zip(*(column.cells for column in columns), strict=True):
            _print_block([(column.label, cell) for column, cell in zip(columns, cells, strict=True)])
        return
    _share(kept, _width())
    table = Table()
    for column in kept:
        table.add_column(column.name, justify="left" if column.left else "right", no_wrap=True)
    for index in range(len(rows)):
        table.add_row(*(Text("\n".join(wrapped(column.cells[index], column.width))) for column in kept))
    _print(table)
    if missing := [column.label for column in columns if column not in kept]:
        say(f"left out: {', '.join(missing)}; a wider terminal or --json shows them")


@dataclass(eq=False)
class _Column:
    name: str
    cells: Sequence[str]
    folds: bool = False
    left: bool = True

    def __post_init__(self) -> None:
        self._head = max(map(cell_len, self.name.split("\n")))
        self.width = max([self._head, *map(cell_len, self.cells)])

    @property
    def label(self) -> str:
        return " ".join(self.name.split())

    @property
    def narrowest(self) -> int:
        """Least width in which no word is cut."""
        if not self.folds:
            return self.width
        return max([self._head, *(cell_len(word) for cell in self.cells for word in _words(cell))])


def _kept(columns: Sequence[_Column], drop: Sequence[str], width: int) -> list[_Column]:
    """What is left when as many of the columns ``drop`` as must be are left out, in this order, empty ones
    first.
    """
    kept = list(columns)
    empty = [column.name for column in columns if set(column.cells) <= _NOTHING]
    for name in sorted(drop, key=lambda name: name not in empty):
        if _least(kept) <= width:
            return kept
        kept = [column for column in kept if column.name != name]
    # What does not fit without them is printed as blocks, with all of them.
    return kept if _least(kept) <= width else list(columns)


def _least(columns: Sequence[_Column]) -> int:
    return sum(column.narrowest for column in columns) + _frame(len(columns))


def _frame(columns: int) -> int:
    """Characters between and around the columns of a table."""
    return 3 * columns + 1


def _share(columns: Sequence[_Column], width: int) -> None:
    """Narrow the columns that fold, the widest first, until all fit or none can be narrower."""
    excess = sum(column.width for column in columns) + _frame(len(columns)) - width
    narrowest = {id(column): column.narrowest for column in columns}
    while excess > 0:
        able = [column for column in columns if column.width > narrowest[id(column)]]
        if not able:
            return
        max(able, key=lambda column: column.width).width -= 1
        excess -= 1


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters; a longer word has a longer line, and no word is divided."""
    lines = [""]
    for found in _WORD.finditer(text):
        longer = lines[-1] + found[0]
        if lines[-1] and cell_len(longer) > width:
            lines.append(found[0].lstrip())
        else:
            lines[-1] = longer
    return lines


def _words(text: str) -> list[str]:
    """The words of a text; spaces at its beginning, which align numbers, belong to the first."""
    found = _WORD.findall(text)
    return found[:1] + [word.lstrip() for word in found[1:]]


def _print_block(rows: Sequence[tuple[str, str]]) -> None:
    """Labelled lines without a frame, and an empty one: of any length, so that nothing is cut."""
    label = max((cell_len(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        first, *others = wrapped(value.strip(), max(_width() - label - 2, 1))
        lines += [
            f"{name}{' ' * (label - cell_len(name))}  {first}",
            *(f"{' ' * label}  {line}" for line in others),
        ]
    _print_lines([*(line.rstrip() for line in lines), ""])


def _print_title(title: str) -> None:
    _print_lines(_sentence(title), "italic")


def _sentence(text: str) -> list[str]:
    return wrapped(_cell(text), stdout.width) if stdout.is_terminal else [_cell(text)]


def _print_lines(lines: Sequence[str], style: str = "") -> None:
    for line in lines:
        stdout.print(Text(line, style), soft_wrap=True)


def _print(table: Table) -> None:
    """A table that fits a terminal; elsewhere it may have any width."""
    if stdout.is_terminal:
        stdout.print(table)
    elif not stdout.quiet:
        wide = Console(file=stdout.file, highlight=False, width=1_000_000, force_terminal=False)
        wide.print(table)


def _width() -> int:
    return stdout.width if stdout.is_terminal else _FILE_WIDTH


def _cell(text: str) -> str:
    return spelled(plain(text), stdout.encoding)
