"""What the commands share: options, and how results are printed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli.tables import print_columns, print_table
from pgolf.runtime.paths import path_error
from pgolf.runtime.terminal import plain

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe; repeatable."),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", help="Prepared folder, or a bare folder of *_train_*.bin and *_val_*.bin."),
]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", help="SentencePiece model, where the data folder holds none.")
]
DeviceName = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:N; default: CUDA if there.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def epilog(*examples: str) -> str:
    """The examples at the end of a command's help."""
    # \b keeps click from re-flowing the lines.
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)


def check_data_paths(data: Path | None, tokenizer: Path | None) -> None:
    """For jobs that may not open what they are given: a misspelled name is a mistake all the same.

    Raises:
        PgolfError: the folder or the file is not there.
    """
    from pgolf.data.dataset import check_folder
    from pgolf.data.tokenizer import check_model

    if data is not None:
        check_folder(data)
    if tokenizer is not None:
        check_model(tokenizer)


def print_json(value: Any) -> None:
    """One object on one line."""
    print(json.dumps(value))


def print_mistake(message: str) -> None:
    """What the user got wrong, as one line on standard error."""
    # Spaces inside a line may be those of a file's name.
    line = plain(re.sub(r"\s*\n\s*", " ", message.strip()))
    print(f"pgolf: error: {line}", file=sys.stderr, flush=True)


def print_result(value: Any, as_json: bool, rows: list[tuple[str, str]], title: str) -> None:
    """The value as JSON, or its rows as a table."""
    if as_json:
        print_json(value)
    else:
        print_table(rows, title)


@contextmanager
def paths_are_mistakes() -> Iterator[None]:
    """Inside, what the system says about a path, and a name or text that is no UTF-8, become a
    ``PgolfError``.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if (mistake := path_error(error)) is None:
            raise
        raise mistake from error


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
    header = ("coder", "bytes", "of torch.save\n+ zstd-22", "encode", "decode")
    print_columns(header, shown, title, drop=("encode", "decode", header[2]))


def print_profile(found: Mapping[str, Any]) -> None:
    """What ``train.profile`` found, as JSON values, as a table."""
    from pgolf.train.profile import Operation, as_table

    if found["operations"]:
        header, rows = as_table([Operation(**operation) for operation in found["operations"]])
        title = f"slowest operations of a step; trace in {found['trace']}"
        print_columns(header, rows, title, drop=("calls per step", "CPU share", "GPU share", "CPU ms"))
