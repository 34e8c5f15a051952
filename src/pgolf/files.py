"""Files that are either whole or absent: atomic writes and digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pgolf.errors import PgolfError


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits, read in blocks of one MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` for writing bytes; on success it becomes ``path``.

    The content is flushed to the disk before the rename, so a crash at any moment leaves either
    the old file or the whole new one. On any failure the temporary file is removed.

    Raises:
        PgolfError: the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Before long work: make sure that a file can be written to ``path`` at its end.

    Raises:
        PgolfError: it is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise PgolfError(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise write_error(path, error) from error


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        PgolfError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise PgolfError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def utf8_name(path: Path) -> Iterator[Path]:
    """A name of a file to read that is UTF-8, for libraries that can open no other: its own, or the open file's."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        PgolfError: the file is absent or not JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise PgolfError(f"{path}: not valid JSON ({error})") from error


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: only then is a rename in it durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_error(path: Path, error: OSError) -> PgolfError:
    """What to tell the user when writing to ``path`` failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PgolfError(f"{path}: the disk is full; free some space and run the command again")
    return PgolfError(f"{path}: cannot be written ({error.strerror or error}); choose another folder")
