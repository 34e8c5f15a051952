"""Folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.runtime.locks import make_folders, remove_empty
from pgolf.runtime.paths import write_error
from pgolf.runtime.writing import exchange, flush_folder, hidden_place, sync_folder

# Others that clear up in the same moment are met less often in a row.
_TRIES = 100


@contextlib.contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside ``out``; on success it becomes ``out``, on failure it is removed.

    So are then the folders above it that were made for it, if they are empty. What a killed process of this
    machine left of the same folder is removed first.

    Args:
        out: the folder to make.
        replace: remove an existing ``out`` once the new one is complete.

    Raises:
        PgolfError: ``out`` is taken, cannot be written, or the disk is full.
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
