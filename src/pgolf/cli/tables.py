"""How the verbs print: JSON, sentences, and tables with every number and name whole.

A table that is too wide for the terminal loses columns, the least important first, and says which. If what
cannot be left out does not fit either, each row becomes a block of labelled lines, which may be longer.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgolf.runtime.terminal import plain, spelled

stdout = Console(highlight=False)
# Where nobody watches, no column is left out, and texts of several words are folded to rows of this width.
_FILE_WIDTH = 160
_NOTHING = {"", "-"}
# A percent sign stays with its number.
_WORD = re.compile(r"\s*\S+(?: %(?!\w))?")


def print_json(value: Any) -> None:
    """One object on one line."""
    print(json.dumps(value))


def print_mistake(message: str, *problems: str) -> None:
    """What the user got wrong, as one line on standard error, and a line for each of several problems."""
    # Spaces inside a line may be those of a file's name.
    lines = [plain(re.sub(r"\s*\n\s*", " ", text.strip())) for text in (message, *problems)]
    print("pgolf: error:", "\n  ".join(lines), file=sys.stderr, flush=True)


def print_result(value: Any, as_json: bool, rows: list[tuple[str, str]], title: str) -> None:
    """The value as JSON, or its rows as a table."""
    if as_json:
        print_json(value)
    else:
        print_table(rows, title)


def lines(result: Mapping[str, Any], forms: Mapping[str, str]) -> list[tuple[str, str]]:
    """A result as labelled lines: each label's form, such as "{pack[bytes]:,} bytes", filled in.

    A line is left out where an entry that its form names is missing, None, empty or of another kind.
    """
    known = []
    for label, form in forms.items():
        names = [name for _, name, _, _ in Formatter().parse(form) if name]
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if all(Formatter().get_field(name, (), result)[0] not in (None, "") for name in names):
                known.append((label, form.format_map(result)))
    return known


def in_words(key: str) -> str:
    """The name of a recorded fact: "tokenizer (SHA-256)" for tokenizer_sha256."""
    return key.replace("_sha256", " (SHA-256)").replace("_", " ")


def formatted(row: Mapping[str, Any], forms: Mapping[str, str]) -> list[str]:
    """The entries of a row that ``forms`` names, each in its form; "-" for None."""
    return ["-" if row[key] is None else form.format(row[key]) for key, form in forms.items()]


def noted(row: Mapping[str, Any], key: str) -> str:
    """An entry, with the row's note in parentheses if there is one."""
    return f"{row[key]} ({row['note']})" if row["note"] else str(row[key])


def print_comparison(rows: Iterable[Mapping[str, Any]], title: str) -> None:
    """What ``compress.compare.compare_coders`` found, as JSON values, as a table."""
    seconds = "{:.2f} s"
    forms = {"bytes": "{:,}", "percent": "{:.2f} %", "encode_seconds": seconds, "decode_seconds": seconds}
    header = ("coder", "bytes", "of torch.save\n+ zstd-22", "encode", "decode")
    shown = [(noted(row, "coder"), *formatted(row, forms)) for row in rows]
    print_columns(header, shown, title, drop=("encode", "decode", header[2]))


def say(text: str, style: str = "") -> None:
    """Print a sentence; on a terminal its lines end between words."""
    shown = _printable(text)
    for line in wrapped(shown, stdout.width) if stdout.is_terminal else [shown]:
        _print_line(line, style)


def print_table(rows: Sequence[tuple[str, str]], title: str) -> None:
    """Labelled lines."""
    names, values = (_Column("", [row[index] for row in rows], index == 1) for index in range(2))
    block = list(zip(names.cells, values.cells, strict=True))
    _print_grid([names, values], [block], title, headed=False)


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
        _Column(name, [row[index] for row in rows], name in fold, index == 0 or name in left)
        for index, name in enumerate(header)
    ]
    kept = _kept(columns, drop) if stdout.is_terminal else columns
    cells = zip(*(column.cells for column in columns), strict=True)
    blocks = [[(c.label, cell) for c, cell in zip(columns, row, strict=True)] for row in cells]
    _print_grid(kept, blocks, title)
    if missing := [column.label for column in columns if column not in kept]:
        say(f"left out: {', '.join(missing)}; a wider terminal or --json shows them")


@dataclass(eq=False)
class _Column:
    name: str
    cells: Sequence[str]
    folds: bool = False
    left: bool = True

    def __post_init__(self) -> None:
        self.cells = [_printable(cell) for cell in self.cells]
        self.label = " ".join(self.name.split())
        head = max(map(cell_len, self.name.split("\n")))
        self.width = max([head, *map(cell_len, self.cells)])
        self.narrowest = self.width  # In which no word is cut.
        if self.folds:
            self.narrowest = max([head, *(cell_len(w) for cell in self.cells for w in _words(cell))])


def _kept(columns: Sequence[_Column], drop: Sequence[str]) -> Sequence[_Column]:
    """What is left when as many of the columns ``drop`` as must be go, in this order, empty ones first."""
    kept = columns
    empty = [column.name for column in columns if set(column.cells) <= _NOTHING]
    for name in sorted(drop, key=lambda name: name not in empty):
        if _least(kept) <= _width():
            break
        kept = [column for column in kept if column.name != name]
    # What does not fit without them is printed as blocks, with all of them.
    return kept if _least(kept) <= _width() else columns


def _print_grid(
    columns: Sequence[_Column], blocks: Sequence[list[tuple[str, str]]], title: str, headed: bool = True
) -> None:
    """The columns as a table, or where it does not fit the blocks."""
    say(title, "italic")
    if _least(columns) > _width() and (stdout.is_terminal or not headed):
        for block in blocks:
            _print_block(block)
        return
    table = Table(show_header=headed)
    widths = _shared_width(columns)
    for column in columns:
        table.add_column(column.name, justify="left" if column.left else "right", no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(
            *(Text("\n".join(wrapped(cell, width))) for cell, width in zip(row, widths, strict=True))
        )
    if stdout.is_terminal:
        stdout.print(table)
    elif not stdout.quiet:  # It may have any width.
        Console(file=stdout.file, highlight=False, width=1_000_000, force_terminal=False).print(table)


def _least(columns: Sequence[_Column]) -> int:
    return sum(column.narrowest for column in columns) + _frame(columns)


def _frame(columns: Sequence[_Column]) -> int:
    """Characters between and around the columns of a table."""
    return 3 * len(columns) + 1


def _shared_width(columns: Sequence[_Column]) -> list[int]:
    """Widths of the columns: those that fold are narrowed, the widest first, until all fit or none can be."""
    widths = [column.width for column in columns]
    for _ in range(sum(widths) + _frame(columns) - _width()):
        able = [i for i, column in enumerate(columns) if widths[i] > column.narrowest]
        if able:
            widths[max(able, key=widths.__getitem__)] -= 1
    return widths


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters; a longer word has a longer line, and no word is divided."""
    lines = [""]
    for word in _WORD.findall(text):
        longer = lines[-1] + word
        if lines[-1] and cell_len(longer) > width:
            lines.append(word.lstrip())
        else:
            lines[-1] = longer
    return lines


def _words(text: str) -> list[str]:
    """The words of a text; spaces at its beginning, which align numbers, belong to the first."""
    return [word.lstrip() if index else word for index, word in enumerate(_WORD.findall(text))]


def _print_block(rows: Sequence[tuple[str, str]]) -> None:
    """Labelled lines without a frame, and an empty one: of any length, so that nothing is cut."""
    label = max((cell_len(name) for name, _ in rows), default=0)
    for name, value in rows:
        for line in wrapped(value.strip(), max(_width() - label - 2, 1)):
            _print_line(f"{name}{' ' * (label - cell_len(name))}  {line}".rstrip())
            name = ""
    _print_line("")


def _print_line(line: str, style: str = "") -> None:
    stdout.print(Text(line, style), soft_wrap=True)


def _width() -> int:
    return stdout.width if stdout.is_terminal else _FILE_WIDTH


def _printable(text: str) -> str:
    return spelled(plain(text), stdout.encoding)
