"""The text column of Parquet and Arrow files, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgolf.data.records import Bad, as_text, shown
from pgolf.data.streams import Advance
from pgolf.errors import PgolfError
from pgolf.runtime.paths import utf8_name

_ROWS = 256
_STRINGS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")


def import_pyarrow(path: Path) -> Any:
    """The package that reads these files, with its parts that are used here.

    Raises:
        PgolfError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise PgolfError(
            f"{path}: needs pyarrow to be read; install it with pip install 'pgolf[parquet]'"
        ) from error
    return pyarrow


def read_columns(path: Path, column: str, advance: Advance) -> Iterator[str | Bad]:
    """The values of the text column of a .parquet or .arrow file, row by row.

    The column holds strings of any kind, or bytes that are UTF-8; dictionaries of these are looked up. Dots
    in its name lead into structures.

    Raises:
        PgolfError: damaged, or there is no such column of text.
    """
    arrow = import_pyarrow(path)
    rows = _parquet if path.name.lower().endswith(".parquet") else _arrow
    row = 0
    try:
        for array in rows(arrow, path, column, advance):
            if arrow.types.is_dictionary(array.type):
                array = array.dictionary_decode()
            for value in _values(array):
                yield as_text(value, column, f"row {row}")
                row += 1
    except arrow.ArrowException as error:
        kind = "Parquet" if rows is _parquet else "Arrow"
        raise PgolfError(f"{path}: damaged or not {kind} ({str(error).splitlines()[0]})") from error


def _parquet(arrow: Any, path: Path, column: str, advance: Advance) -> Iterator[Any]:
    size = path.stat().st_size
    rows = told = 0
    with utf8_name(path) as readable, arrow.parquet.ParquetFile(readable) as file:
        steps = _way_to(arrow, path, file.schema_arrow, column)
        # Group by group: pyarrow cannot put nested dictionaries of two groups into one batch.
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[".".join(steps)]):
                yield _at(arrow, batch, steps)
                rows += batch.num_rows
                done = size * rows // file.metadata.num_rows
                advance(done - told)
                told = done


def _arrow(arrow: Any, path: Path, column: str, advance: Advance) -> Iterator[Any]:
    size = path.stat().st_size
    told = 0
    with utf8_name(path) as readable, arrow.OSFile(str(readable)) as file:
        # Two layouts have this ending: the stream, which `datasets` writes, and the file, which begins with
        # its name.
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        with arrow.ipc.open_file(file) if is_file else arrow.ipc.open_stream(file) as batches:
            steps = _way_to(arrow, path, batches.schema, column)
            each = map(batches.get_batch, range(batches.num_record_batches)) if is_file else batches
            for batch in each:
                yield _at(arrow, batch, steps)
                done = min(size, file.tell())
                advance(done - told)
                told = done
    advance(size - told)


def _way_to(arrow: Any, path: Path, schema: Any, column: str) -> list[str]:
    """The names that lead to the text column: its own, or those of the structures around it first."""
    types = {field.name: field.type for field in schema}
    steps, rest = [], column
    while rest not in types:
        outer, dot, rest = rest.partition(".")
        if not dot or not arrow.types.is_struct(types.get(outer, arrow.null())):
            raise PgolfError(
                f'{path}: has no string column "{column}" (columns: {shown(_names(arrow, schema))}); '
                "name the one that holds the text with --text-column"
            )
        steps.append(outer)
        types = {field.name: field.type for field in types[outer]}
    kind = types[rest].value_type if arrow.types.is_dictionary(types[rest]) else types[rest]
    if str(kind) not in _STRINGS:
        raise PgolfError(
            f'{path}: column "{column}" holds {types[rest]}, not text (columns: {shown(_names(arrow, schema))}); '
            "name the one that holds the text with --text-column"
        )
    return [*steps, rest]


def _names(arrow: Any, schema: Any) -> Iterator[str]:
    for field in schema:
        if arrow.types.is_struct(field.type):
            yield from (f"{field.name}.{inner.name}" for inner in field.type)
        else:
            yield field.name


def _at(arrow: Any, batch: Any, steps: list[str]) -> Any:
    array = batch.column(batch.schema.get_field_index(steps[0]))
    for name in steps[1:]:
        array = arrow.compute.struct_field(array, [name])
    return array


def _values(array: Any) -> list[str | bytes | None]:
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:  # One of them; bytes are looked at one by one.
        return [scalar.as_buffer().to_pybytes() if scalar.is_valid else None for scalar in array]
