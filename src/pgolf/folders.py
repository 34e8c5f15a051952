"""Folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.locks import LOCK, Held, Lock, take
from pgolf.paths import write_error
from pgolf.writing import flush_to_disk, hidden_name, sync_folder


@contextlib.contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside ``out``; on success it becomes ``out``, on failure it is removed.

    What a killed process left behind is removed first. A lock inside tells such leftovers from the work of another
    process that is still running.

    Args:
        out: the folder to make.
        replace: remove an existing ``out`` once the new one is complete.

    Raises:
        PgolfError: ``out`` is taken, cannot be written, or the disk is full.
    """
    try:
        out = Path(os.path.realpath(out))
        if not replace and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
            raise PgolfError(f"{out}: already exists; choose another folder or delete it")
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        folder, lock = _begin(out)
    except (OSError, ValueError) as error:
        raise write_error(out, error) from error
    try:
        yield folder
        _sync(folder)
        _put(folder, out)
        lock.path = out / LOCK
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        if lock.path.parent == folder:
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()
    sync_folder(out.parent)
    _remove_leftovers(out)


def _begin(out: Path) -> tuple[Path, Lock]:
    for number in itertools.count():
        folder = out.with_name(f"{_prefix(out)}{os.getpid()}{f'-{number}' * (number > 0)}")
        try:
            folder.mkdir()
            return folder, take(folder / LOCK, "folder")
        except (FileExistsError, FileNotFoundError, Held):
            # Another thread's, or somebody took it for a leftover before it was locked.
            continue
    raise AssertionError("counting does not end")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flush_to_disk(handle)
    finally:
        os.close(handle)


def _put(folder: Path, out: Path) -> None:
    if not out.exists():
        folder.rename(out)
        return
    # Moved aside, as some file systems rename only to names that are free.
    old = folder.with_name(f"{folder.name}-old")
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise


def _prefix(out: Path) -> str:
    return f"{hidden_name(out)}.partial-"


def _remove_leftovers(out: Path) -> None:
    # Those that cannot be seen or removed are ignored, like those that another process works on.
    with contextlib.suppress(OSError):
        for folder in out.parent.iterdir():
            if folder.name.startswith(_prefix(out)):
                with contextlib.suppress(PgolfError):
                    lock = take(folder / LOCK, "folder")
                    shutil.rmtree(folder, ignore_errors=True)
                    lock.release()
