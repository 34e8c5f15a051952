"""Files and folders that are whole or absent, and brought to the disk; what fails is a ``PgolfError``."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pgolf.errors import PgolfError
from pgolf.runtime.paths import reason, write_error
from pgolf.runtime.processes import birth, host_mark

# What file systems answer that cannot bring a file or a folder to the disk when asked; other errors are real.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF)
_LONGEST_NAME = 100


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` for writing bytes; on success it becomes ``path``.

    The content is flushed to the disk before the rename, so a crash at any moment leaves either the old file
    or the whole new one. On any failure (a ``PgolfError``) the temporary file is removed, and so is what a
    killed process of this machine left. Permissions are what the user's umask leaves. A device or a pipe
    stays what it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What is no file stays what it is.
        temporary = None if _is_device(path) else hidden_place(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        handle = os.open(temporary, flags, 0o666) if temporary else os.open(path, os.O_WRONLY)
    except (OSError, ValueError) as error:
        raise write_error(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            flush_to_disk(file.fileno())
        if temporary is not None:
            try:
                temporary.replace(path)
            except FileExistsError:
                exchange(temporary, path).unlink()
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise
    sync_folder(path.parent)


def hidden_place(path: Path) -> Path:
    """A free hidden name beside ``path``, which tells the process that uses it.

    What killed processes of this machine left under such names for the same ``path`` is removed first.
    """
    prefix = f"{hidden_name(path)}.{host_mark()}-"
    with contextlib.suppress(OSError):  # Leftovers are no reason to fail.
        for found in path.parent.iterdir():
            leftover = re.fullmatch(rf"{re.escape(prefix)}(\d+)-[0-9a-f]{{8}}\.partial(-old)?", found.name)
            if leftover and birth(int(leftover[1])) is None:
                shutil.rmtree(found, ignore_errors=True) if found.is_dir() else found.unlink()
    return path.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}.partial")


def hidden_name(path: Path) -> str:
    """How names of temporary files and folders for ``path`` begin; long ones are cut, and still differ."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        mark = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        # Characters of several bytes count as such, and none is cut in half.
        while len(os.fsencode(name)) > _LONGEST_NAME - 20:
            name = name[:-1]
        name = f"{name}-{mark}"
    return f".{name}"


def exchange(new: Path, path: Path) -> Path:
    """Put ``new`` in the place of the file or folder ``path``, and return where that is now.

    Renames only to names that are free; if the second one fails the first is undone.
    """
    old = new.with_name(f"{new.name}-old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    return old


def _is_device(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_writable(path: Path) -> None:
    """Before long work: make sure that ``path`` is no folder, and that a file can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(path.stat().st_mode):
                raise PgolfError(f"{path}: is a folder; name a file")
        if not _is_device(path):
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except (OSError, ValueError) as error:
        raise write_error(path, error) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def remove_file(path: Path) -> None:
    """Delete a file, if it is there."""
    try:
        path.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        remedy = "check its folder's permissions"
        raise PgolfError(f"{path}: cannot be deleted ({reason(error)}); {remedy}") from error


def flush_to_disk(handle: int) -> None:
    """Bring an open file or folder to the disk, where its file system can be asked to."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def flush_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, where its file system can be asked to."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # One may be allowed to write into a folder and not to read it.
    try:
        flush_to_disk(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: only then is a rename in it durable."""
    try:
        flush_folder(folder)
    except OSError as error:
        lost = f"the disk reports {error.strerror or error} and may lose it"
        raise PgolfError(f"{folder}: what was written is there, but {lost}; check the disk") from error


# Others that clear up in the same moment are met less often in a row.
_TRIES = 100


@contextlib.contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside ``out``; on success it becomes ``out``, on failure it is removed.

    So are then the folders above it that were made for it, if they are empty. What a killed process of this
    machine left of the same folder is removed first. ``replace`` removes an existing ``out`` once the new
    one is complete; otherwise one that holds anything is a ``PgolfError``.
    """
    made: list[Path] = []
    try:
        try:
            out = Path(os.path.realpath(out))
            if not replace and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
                raise PgolfError(f"{out}: already exists; choose another folder or delete it")
            folder = _begin(out, made)
        except ValueError as error:  # No path at all.
            raise write_error(out, error) from error
        try:
            yield folder
            flush_folder(folder)
            old = exchange(folder, out) if out.exists() else folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        remove_empty(made)
    if old != out:
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(out.parent)


def _begin(out: Path, made: list[Path]) -> Path:
    """A new hidden folder; adds those above it that were missing to ``made``, the innermost first."""
    for _ in range(_TRIES):
        # Again each time: another process may have removed those that it made, which were empty.
        made[:0] = make_folders(out.parent)
        folder = hidden_place(out)
        with contextlib.suppress(FileNotFoundError):
            folder.mkdir()
            return folder
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; those that were missing, the innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            made.insert(0, folder)
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove those of some folders that are there and empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
