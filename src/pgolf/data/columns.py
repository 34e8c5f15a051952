"""The text of a record, or why it has none: a field of JSON values, a column of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError
from pgolf.runtime.paths import utf8_name

Advance = Callable[[int], None]
"""Called with the number of bytes of the file that were consumed since the last call."""

_ROWS = 256
_STRINGS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
_NAMES_SHOWN = 20
_NAME_IT = "name the one that holds the text with --text-column"


@dataclass(frozen=True)
class Bad:
    """A document that cannot be used."""

    reason: str
    """In a few words; documents that are left out are counted by it."""
    message: str
    """Where it is and what is wrong."""
    remedy: str = "mend the file"


def text_of(record: Any, column: str, where: str) -> str | Bad:
    """The text of a JSON value: a string itself, or the field of an object; ``where`` names its place.

    Dots in the field's name lead into nested objects, where no field has the whole name.
    """
    if isinstance(record, str):
        return as_text(record, column, where)
    missing = f'{where} has no field "{column}"'
    if not isinstance(record, dict):
        return Bad("no such column", f"{missing}: it is {type(record).__name__}, not an object")
    try:
        return as_text(_field(record, column), column, where)
    except KeyError:
        inside = ((name, list(value) if isinstance(value, dict) else None) for name, value in record.items())
        names = shown(_names(inside))
        return Bad("no such column", f"{missing} (it has: {names})", _NAME_IT)


def as_text(value: Any, column: str, where: str) -> str | Bad:
    """A value of the text column as a string; bytes have to be UTF-8."""
    found = f'{where}: "{column}" is'
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return Bad("not UTF-8", f"{found} not UTF-8")
    if not isinstance(value, str):
        reason = "null" if value is None else "not a string"
        return Bad(reason, f"{found} {type(value).__name__}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair.
        why = "a lone surrogate, or bytes that are not UTF-8"
        return Bad("not valid Unicode", f"{found} not valid Unicode ({why})")
    return value


def shown(names: Iterable[str]) -> str:
    """Names of columns for a message: not too many, and none that controls a terminal."""
    listed = [name if name.isprintable() else ascii(name) for name in names]
    more = [f"and {len(listed) - _NAMES_SHOWN} more"] if len(listed) > _NAMES_SHOWN else []
    return ", ".join([*listed[:_NAMES_SHOWN], *more]) or "none"


def _names(fields: Iterable[tuple[str, list[str] | None]]) -> Iterator[str]:
    for name, inside in fields:
        yield from [name] if inside is None else [f"{name}.{inner}" for inner in inside]


def _field(record: Any, column: str) -> Any:
    if record is None:
        return None
    if isinstance(record, dict) and column in record:
        return record[column]
    outer, dot, inner = column.partition(".")
    if not dot or not isinstance(record, dict):
        raise KeyError(column)
    return _field(record[outer], inner)


def import_pyarrow(path: Path) -> Any:
    """The package that reads Parquet and Arrow files; a mistake where it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        remedy = "install it with pip install 'pgolf[parquet]'"
        raise PgolfError(f"{path}: needs pyarrow to be read; {remedy}") from error
    return pyarrow


def read_columns(path: Path, column: str, advance: Advance) -> Iterator[str | Bad]:
    """The values of the text column of a .parquet or .arrow file, row by row.

    The column holds strings of any kind, or bytes that are UTF-8; dictionaries of these are looked up. Dots
    in its name lead into structures. A file without it, or a damaged one, is a ``PgolfError``.
    """
    arrow = import_pyarrow(path)
    kind, batches = ("Parquet", _parquet) if path.name.lower().endswith(".parquet") else ("Arrow", _arrow)
    row = told = 0
    try:
        with utf8_name(path) as readable:
            for array, done in batches(arrow, path, readable, column):
                if arrow.types.is_dictionary(array.type):
                    array = array.dictionary_decode()
                for value in _values(array):
                    yield as_text(value, column, f"row {row}")
                    row += 1
                advance(done - told)
                told = done
    except arrow.ArrowException as error:
        raise PgolfError(f"{path}: damaged or not {kind} ({str(error).splitlines()[0]})") from error
    advance(path.stat().st_size - told)


def _parquet(arrow: Any, path: Path, readable: Path, column: str) -> Iterator[tuple[Any, int]]:
    """Batches of the column, with the part of the file that they have come to, in bytes."""
    size, rows = path.stat().st_size, 0
    with arrow.parquet.ParquetFile(readable) as file:
        steps = _way_to(arrow, path, file.schema_arrow, column)
        # Group by group: pyarrow cannot put nested dictionaries of two groups into one batch.
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[".".join(steps)]):
                rows += batch.num_rows
                yield _at(arrow, batch, steps), size * rows // file.metadata.num_rows


def _arrow(arrow: Any, path: Path, readable: Path, column: str) -> Iterator[tuple[Any, int]]:
    size = path.stat().st_size
    with arrow.OSFile(str(readable)) as file:
        # Two layouts have this ending: the stream, which `datasets` writes, and the file, which begins so.
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        with arrow.ipc.open_file(file) if is_file else arrow.ipc.open_stream(file) as batches:
            steps = _way_to(arrow, path, batches.schema, column)
            for batch in map(batches.get_batch, range(batches.num_record_batches)) if is_file else batches:
                yield _at(arrow, batch, steps), min(size, file.tell())


def _way_to(arrow: Any, path: Path, schema: Any, column: str) -> list[str]:
    """The names that lead to the text column: its own, or those of the structures around it first."""
    is_struct = arrow.types.is_struct
    names = shown(_names((f.name, [i.name for i in f.type] if is_struct(f.type) else None) for f in schema))
    types = {field.name: field.type for field in schema}
    steps, rest = [], column
    while rest not in types:
        outer, dot, rest = rest.partition(".")
        if not dot or not is_struct(types.get(outer, arrow.null())):
            raise PgolfError(f'{path}: has no string column "{column}" (columns: {names}); {_NAME_IT}')
        steps.append(outer)
        types = {field.name: field.type for field in types[outer]}
    kind = types[rest].value_type if arrow.types.is_dictionary(types[rest]) else types[rest]
    if str(kind) not in _STRINGS:
        found = f'column "{column}" holds {types[rest]}, not text (columns: {names})'
        raise PgolfError(f"{path}: {found}; {_NAME_IT}")
    return [*steps, rest]


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
