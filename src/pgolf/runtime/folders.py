"""Folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.runtime.locks import LOCK, Held, Lock, make_folders, remove_empty, take
from pgolf.runtime.paths import write_error
from pgolf.runtime.writing import exchange, flush_folder, hidden_name, sync_folder

# Others that begin, or clear up, in the same moment are met less often in a row.
_TRIES = 100


@contextlib.contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside ``out``; on success it becomes ``out``, on failure it is removed.

    So are then the folders above it that were made for it, if they are empty. What a killed process left
    behind is removed first. A lock inside tells such leftovers from the work of another process that is still
    running.

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
        _remove_leftovers(out)
        folder, lock, made = _begin(out)
    except (OSError, ValueError) as error:
        raise write_error(out, error) from error
    try:
        yield folder
        flush_folder(folder)
        _put(folder, out)
        lock.path = out / LOCK
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        if lock.path.parent == folder:
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        remove_empty(made)
    sync_folder(out.parent)
    _remove_leftovers(out)


def _begin(out: Path) -> tuple[Path, Lock, list[Path]]:
    """A new hidden folder, its lock, and all the folders that were made, the innermost first."""
    made: list[Path] = []
    try:
        for number in range(_TRIES):
            folder = out.with_name(f"{_prefix(out)}{os.getpid()}{f'-{number}' * (number > 0)}")
            try:
                # Again each time: another process may have removed those above, which were made for its own
                # and empty.
                made = make_folders(folder.parent) + made
                folder.mkdir()
                made.insert(0, folder)
                return folder, take(folder / LOCK, "folder"), made
            except (FileExistsError, FileNotFoundError, Held):
                # Another thread's, or somebody took it for a leftover before it was locked; or there can be
                # no folder.
                if number + 1 == _TRIES:
                    raise
        raise AssertionError("the last try returns or raises")
    except BaseException:
        remove_empty(made)
        raise


def _put(folder: Path, out: Path) -> None:
    if out.exists():
        exchange(folder, out)  # The old one is a leftover then.
    else:
        folder.rename(out)


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
