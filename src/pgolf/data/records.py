"""The text of a record, or why it has none that can be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Bad:
    """A document that cannot be used."""

    reason: str
    """In a few words; documents that are left out are counted by it."""
    message: str
    """Where it is and what is wrong."""
    remedy: str = "mend the file"


def text_of(record: Any, column: str, where: str) -> str | Bad:
    """The text of a JSON value: a string itself, or the field of an object.

    Args:
        record: the value.
        column: the field's name; dots lead into nested objects, where no field has the whole name.
        where: the place, for the message.
    """
    if isinstance(record, str):
        return as_text(record, column, where)
    if not isinstance(record, dict):
        return Bad(
            "no such column", f'{where} has no field "{column}": it is {type(record).__name__}, not an object'
        )
    try:
        return as_text(_field(record, column), column, where)
    except KeyError:
        return Bad(
            "no such column",
            f'{where} has no field "{column}" (it has: {shown(_names(record))})',
            "name the one that holds the text with --text-column",
        )


def as_text(value: Any, column: str, where: str) -> str | Bad:
    """A value of the text column as a string; bytes have to be UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return Bad("not UTF-8", f'{where}: "{column}" is not UTF-8')
    if not isinstance(value, str):
        reason = "null" if value is None else "not a string"
        return Bad(reason, f'{where}: "{column}" is {type(value).__name__}, not a string')
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair.
            return Bad(
                "not valid Unicode",
                f'{where}: "{column}" is not valid Unicode (a lone surrogate, or bytes that are not UTF-8)',
            )
    return value


def shown(names: Iterable[str]) -> str:
    """Names of columns for a message: not too many, and none that controls a terminal."""
    listed = [name if name.isprintable() else ascii(name) for name in names]
    more = [f"and {len(listed) - _NAMES_SHOWN} more"] if len(listed) > _NAMES_SHOWN else []
    return ", ".join([*listed[:_NAMES_SHOWN], *more]) or "none"


def _field(record: Any, column: str) -> Any:
    if record is None:
        return None
    if not isinstance(record, dict):
        raise KeyError(column)
    if column in record:
        return record[column]
    outer, dot, inner = column.partition(".")
    if not dot:
        raise KeyError(column)
    return _field(record[outer], inner)


def _names(record: dict[str, Any]) -> Iterable[str]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield name
