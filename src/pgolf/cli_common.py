"""What the commands share: options, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

stdout = Console(highlight=False)
# Where nobody watches, a table of many columns is not squeezed into what the console takes for a terminal's width.
_FILE_WIDTH = 240

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe; repeatable.")
]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="Prepared folder, or a bare folder of *_train_*.bin and *_val_*.bin.")
]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", help="SentencePiece model, where the data folder holds none.")
]
DeviceName = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; default: CUDA if there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def epilog(*examples: str) -> str:
    """The examples at the end of a command's help."""
    # \b keeps click from re-flowing the lines.
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)


def print_json(value: Any) -> None:
    """One object on one line."""
    print(json.dumps(value))


def print_mistake(message: str) -> None:
    """What the user got wrong, as one line on standard error."""
    print(f"pgolf: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def print_result(value: Any, as_json: bool, rows: list[tuple[str, str]], title: str) -> None:
    """The value as JSON, or its rows as a table."""
    if as_json:
        print_json(value)
    else:
        print_table(rows, title)


def print_table(rows: Sequence[tuple[str, str]], title: str) -> None:
    """Labelled lines."""
    table = Table(title=plain(title), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(plain(name), plain(value))
    stdout.print(table)


def print_columns(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str,
    left: Sequence[str] = (),
    spare: str | None = None,
    wrap: bool = False,
) -> None:
    """A table with a header; the first column and those named in ``left`` are aligned left, the others right.

    The column named ``spare`` is left out where the terminal is too narrow for all; with ``wrap`` long texts take
    several lines.
    """
    console = stdout if stdout.is_terminal else Console(highlight=False, width=_FILE_WIDTH)
    table = Table(title=plain(title), title_justify="left")
    for index, name in enumerate(header):
        first = index == 0
        table.add_column(
            name, justify="left" if first or name in left else "right", no_wrap=not (first or wrap), overflow="fold"
        )
    for row in rows:
        table.add_row(*map(plain, row))
    if (
        spare is not None
        and Measurement.get(console, console.options.update_width(_FILE_WIDTH), table).maximum > console.width
    ):
        kept = [index for index, name in enumerate(header) if name != spare]
        print_columns([header[i] for i in kept], [[row[i] for i in kept] for row in rows], title, left)
        return
    console.print(table)


def plain(text: str) -> Text:
    """Text that a terminal shows as it is, whatever a file's author wrote into it."""
    return Text("".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text))


def flat_rows(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as labelled lines, keys joined by dots."""
    rows = []
    for key, entry in value.items():
        if entry in ({}, []):
            rows.append((f"{prefix}{key}", "none"))
        elif isinstance(entry, dict):
            rows += flat_rows(entry, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _text(entry)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def print_comparison(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """What ``compress.compare.compare_coders`` found, as JSON values, as a table."""
    shown = [
        (
            f"{row['coder']} ({row['note']})" if row["note"] else row["coder"],
            *(
                form.format(value) if (value := row[key]) is not None else "-"
                for key, form in (
                    ("bytes", "{:,}"),
                    ("percent", "{:.2f} %"),
                    ("encode_seconds", "{:.2f} s"),
                    ("decode_seconds", "{:.2f} s"),
                )
            ),
        )
        for row in rows
    ]
    print_columns(("coder", "bytes", "of torch.save\n+ zstd-22", "encode", "decode"), shown, title)


def print_profile(found: Mapping[str, Any]) -> None:
    """What ``train.profile`` found, as JSON values, as a table."""
    from pgolf.train.profile import Operation, as_table

    if found["operations"]:
        header, rows = as_table([Operation(**operation) for operation in found["operations"]])
        print_columns(header, rows, title=f"slowest operations of a step; trace in {found['trace']}")
