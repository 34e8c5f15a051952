"""How a mistake is worded where it is made in Python: options of the command line become arguments."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

from pgolf.errors import Interrupted, PgolfError

_SETTING = re.compile(r"--set ([\w.]+=[^\s;,)]+)")
_OPTION = re.compile(r"(?<!\w)--([a-z]+(?:-[a-z]+)*)(?: ([A-Z]+)\b)?")
_COMMAND = re.compile(r"`pgolf (train|pack|eval|audit|report|study|compress|decompress)\b([^`]*)`")
_NAMES = {"set": "overrides", "resume": "resume=True", "no-score": "score=False", "format": "out"}


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    """Inside, what went wrong is told in arguments and calls, such as data=DIR instead of --data DIR.

    The ``lines`` of a ``PgolfError``, which the command prints, stay, and so does a command between backticks
    that is no function of the library.
    """
    try:
        yield
    except (PgolfError, Interrupted) as error:
        parts = re.split("(`[^`]*`)", str(error))
        said = [_COMMAND.sub(_call, part) if part.startswith("`") else _arguments(part) for part in parts]
        error.args = ("".join(said),)
        raise


def _arguments(text: str) -> str:
    def argument(found: re.Match[str]) -> str:
        name = _NAMES.get(found[1], found[1].replace("-", "_"))
        return f"{name}={found[2]}" if found[2] else name

    return _OPTION.sub(argument, _SETTING.sub(r'overrides="\1"', text))


def _call(found: re.Match[str]) -> str:
    """`pgolf train --resume --out runs/a` as a call."""
    given: list[str] = []
    for word in found[2].split():
        if word.startswith("--"):
            given.append(_arguments(word))
        elif given and given[-1].isidentifier():
            given[-1] += f"={json.dumps(word)}"
        else:
            given.append(json.dumps(word))
    name = {"eval": "evaluate"}.get(found[1], found[1])
    return f"`pgolf.{name}({', '.join(given)})`"
