"""Paths that the system refuses: what the user is told; and names for libraries that take only some."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pgolf.errors import PgolfError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = "make it accessible to you, or choose another place"
_FREE = "free some space and run the command again"
_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EISDIR: "it is a folder; name a file",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EEXIST: "a part of the path is a file or a broken link; check the path",
    errno.ELOOP: "a link in the path leads back to itself; check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "raise the limit on a file's size (`ulimit -f`), or choose another disk",
    errno.EROFS: "the disk is read-only; choose a folder on another one",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "the machine has too many open files; close other programs",
    errno.EIO: "the disk is damaged or was removed; check it",
    errno.ESTALE: "the network file system has lost it; try again",
}
# What is the user's to mend even where the system does not say for which file.
_NAMELESS = (*_FULL, errno.EMFILE, errno.ENFILE, errno.EIO)


def read_error(path: Path, error: OSError | ValueError) -> PgolfError:
    """What to tell the user when reading ``path`` failed."""
    return PgolfError(f"{path}: cannot be read ({reason(error)}); {_remedy(error, 'check the path')}")


def write_error(path: Path, error: OSError | ValueError) -> PgolfError:
    """What to tell the user when writing to ``path`` failed."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return PgolfError(f"{path}: the disk is full; {_FREE}")
    remedy = _remedy(error, "choose another folder")
    return PgolfError(f"{path}: cannot be written ({reason(error)}); {remedy}")


def path_error(error: OSError | ValueError | RuntimeError) -> PgolfError | None:
    """What to tell the user when nobody knows what was tried; None where the error is none of theirs."""
    if isinstance(error, OSError):
        name = error.filename
        named = isinstance(name, (str, bytes, os.PathLike))
        if not named and error.errno not in _NAMELESS:
            return None
        what = f"{error.strerror}; {_remedy(error, 'check it and run the command again')}"
        return PgolfError(f"{os.fsdecode(name)}: {what}" if named else what)
    if isinstance(error, UnicodeEncodeError):
        around = error.object[max(error.start - 100, 0) : error.end + 100]
        return PgolfError(f"{around}: has characters that this cannot write; rename what has this name")
    if isinstance(error, UnicodeDecodeError):
        where = f"its byte {error.start + 1}"
        return PgolfError(f"a file is not UTF-8 text where one is wanted ({where}); convert it")
    if isinstance(error, RuntimeError):
        # So pathlib says it, in versions of Python before 3.13.
        return PgolfError(f"{error}; mend it") if str(error).startswith("Symlink loop") else None
    if "null byte" in str(error) or "null character" in str(error):
        return PgolfError("a path has a NUL character, which no file's name can have; correct it")
    return None


def reason(error: OSError | ValueError) -> str:
    """What the system says."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _remedy(error: OSError | ValueError, otherwise: str) -> str:
    return _REMEDIES.get((isinstance(error, OSError) and error.errno) or 0, otherwise)


@contextlib.contextmanager
def utf8_name(path: Path) -> Iterator[Path]:
    """A name of a file to read that is UTF-8, for libraries that can open no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path
