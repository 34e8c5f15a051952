"""How a mistake is worded where it is made in Python: options of the command line become arguments."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from pgolf.errors import PgolfError

_SETTING = re.compile(r"--set ([\w.]+=[^\s;,)]+)")
_OPTION = re.compile(r"(?<!\w)--([a-z]+(?:-[a-z]+)*)(?: ([A-Z]+)\b)?")
_NAMES = {"set": "overrides", "resume": "resume=True", "no-score": "score=False", "format": "out"}


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    """Inside, the text of a ``PgolfError`` speaks of arguments, such as data=DIR instead of --data DIR.

    Its ``lines``, which the command prints, stay; so does what stands between backticks, which is a command.
    """
    try:
        yield
    except PgolfError as error:
        parts = re.split("(`[^`]*`)", str(error))
        error.args = ("".join(part if part.startswith("`") else _as_arguments(part) for part in parts),)
        raise


def _as_arguments(text: str) -> str:
    def argument(found: re.Match[str]) -> str:
        name = _NAMES.get(found[1], found[1].replace("-", "_"))
        return f"{name}={found[2]}" if found[2] else name

    return _OPTION.sub(argument, _SETTING.sub(r'overrides="\1"', text))
