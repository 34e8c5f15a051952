"""Reading files: their bytes, text, JSON and digests. What cannot be read is a ``PgolfError``."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits; read in blocks."""
    with reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading bytes."""
    try:
        opened = path.open("rb")
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error
    with opened as file:
        try:
            yield file
        except OSError as error:
            raise _refused(path, error) from error


def read_bytes(path: Path) -> bytes:
    """A file's bytes."""
    with reading(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """A file's text, which must be UTF-8, with line ends as ``\\n``; a byte-order mark is no part of it."""
    try:
        return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        where = f"byte {error.start:,}"
        raise PgolfError(f"{path}: not UTF-8 text ({where}); name another file or convert it") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PgolfError(f"{path}: not valid JSON ({error})") from error


def is_file(path: Path) -> bool:
    """Whether there is a file, as far as this process may know; also of what can be no path."""
    try:
        return path.is_file()
    except PermissionError as error:
        raise _refused(path, error) from error
    except OSError:
        return False


def _refused(path: Path, error: OSError | ValueError) -> PgolfError:
    """Imports what is said about refused paths when it is needed: scoring goes without it."""
    from pgolf.runtime.paths import read_error

    return read_error(path, error)
