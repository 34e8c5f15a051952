"""Locks: one process at a time works on something, and a lock ends with the process that holds it.

A lock is a file. Where the file system has flock (on Windows LockFileEx), that decides: the system lets go
of it when the process is gone, on another machine too. Where it has not, the file's existence decides: it is
made exclusively, and taken over if the process that it names has ended. Only the machine of that process can
find that out; on another one the file is left for the user to judge. Whoever ends cleanly removes the file.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import lock_descriptor

from pgolf.errors import PgolfError
from pgolf.runtime.paths import write_error
from pgolf.runtime.processes import birth, host
from pgolf.runtime.writing import flush_to_disk, make_folders, remove_empty

LOCK = ".lock"
"""Name of the lock file in a folder; names of files that help it begin so."""
NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
"""What file systems answer that have no flock."""
# Seconds between two attempts, and for what takes another process a moment.
_PAUSE, _PATIENCE = 0.02, 5.0
_held: set[tuple[int, int, str]] = set()


@dataclass(frozen=True)
class Holder:
    """What a lock file says about the process that wrote it."""

    pid: int
    host: str
    born: str
    """See ``processes.birth``; not known: empty."""
    since: str
    """When it took the lock, in ISO format."""
    command: str
    flock: bool
    """Whether flock decides, so that the process is gone if flock says so."""

    @classmethod
    def here(cls, *, flock: bool) -> Holder:
        """This process."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), host(), birth(os.getpid()) or "", now, shlex.join(sys.argv), flock)

    @classmethod
    def read(cls, handle: int) -> Holder | None:
        """The one named in an open file; None where none is."""
        # Without the first byte: on Windows nobody else can read that of a file that is locked.
        os.lseek(handle, 1, os.SEEK_SET)
        try:
            return cls(**json.loads(b"{" + os.read(handle, 1 << 20)))
        except (ValueError, TypeError):
            return None

    def write(self, handle: int) -> None:
        """Name it in an open file."""
        content = json.dumps(asdict(self)).encode()
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, content)
        os.ftruncate(handle, len(content))
        flush_to_disk(handle)  # On a network file system only then others see it.

    def is_gone(self) -> bool:
        """Whether it has ended for certain: it was on this machine, and its number is free or another's."""
        if self.host != host():
            return False
        born = birth(self.pid)
        return born is None or bool(born and self.born and born != self.born)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}: {self.command}"


class Held(PgolfError):
    """Another process holds the lock, as far as can be known."""

    def __init__(self, path: Path, what: str, holder: Holder | None, *, flock: bool) -> None:
        who = str(holder) if holder is not None else "it left no name"
        remedy = "wait until it has ended, or choose another place"
        if not flock or (holder is not None and holder.host != host()):
            remedy += f"; if that process has certainly ended, delete {path}"
        super().__init__(f"{_subject(path)}: another process works on this {what} ({who}); {remedy}")


class Lock:
    """A lock that this process tries to get, and then holds until it is released.

    Attributes:
        left_by: who held it before and ended without releasing it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what = path, what
        self.left_by: Holder | None = None
        self._made: list[Path] = []
        self._handle: int | None = None

    def attempt(self, *, patient: bool) -> bool:
        """Whether it is held now; ``Held`` if another process holds it.

        If not, trying again may help, the patient while somebody writes a name.
        """
        self._made = make_folders(self.path.parent) + self._made
        try:
            handle, new = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            handle, new = self._open(), False
        try:
            flock, holder = _flock(handle), Holder.read(handle)
            unknown = holder is None or holder.is_gone()
            if flock is False:
                # Somebody may have had it for a moment only, and the name is not there yet.
                if not (patient and unknown):
                    raise Held(self.path, self._what, holder, flock=True)
            elif flock:
                # One that has no flock where it is: then flock says nothing about it.
                if holder is not None and not holder.flock and not unknown:
                    raise Held(self.path, self._what, holder, flock=False)
                # A file that is no longer there was released in the meantime, and nothing was left.
                self.left_by = (holder or self.left_by) if _is_at(handle, self.path) else None
                self._sign(handle, flock=True)
            elif new:
                self._sign(handle, flock=False)
            else:
                self._remove_if_left(handle, holder, patient)
        finally:
            if self._handle is None:
                os.close(handle)
        return self._handle is not None

    def release(self) -> None:
        """Remove the file, and folders that were made for it and are still empty."""
        if self._handle is not None:
            # While it is held: whoever opened it before finds that it is no longer the one at that path.
            with contextlib.suppress(OSError):
                if _is_at(self._handle, self.path):
                    self.path.unlink()
            os.close(self._handle)
            if os.name == "nt":  # No open file can be deleted there: not before, nor while others have it.
                with contextlib.suppress(OSError):
                    self.path.unlink()
        remove_empty(self._made)

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR)
        except PermissionError as error:
            # Another user's, who may be at work.
            raise Held(self.path, self._what, holder_of(self.path), flock=False) from error

    def _sign(self, handle: int, *, flock: bool) -> None:
        try:
            Holder.here(flock=flock).write(handle)
        except OSError:
            if _is_at(handle, self.path):
                self.path.unlink()
            raise
        # Whoever waited too long for this name may have given this process up.
        if _is_at(handle, self.path):
            self._handle = handle

    def _remove_if_left(self, handle: int, holder: Holder | None, patient: bool) -> None:
        """Without flock: remove the file of a process that has ended, so that another attempt can make it."""
        if os.fstat(handle).st_size == 0:
            if patient:
                return  # The name is being written, or whoever should was killed just before.
        elif holder is None or not holder.is_gone():
            raise Held(self.path, self._what, holder, flock=False)
        # Of several that find this out, one removes the file; all of them then try to make it anew.
        turn = self.path.with_name(f"{self.path.name}.taking")
        try:
            os.close(os.open(turn, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError as error:
            if patient:
                return
            raise Held(turn, self._what, None, flock=False) from error
        try:
            if _is_at(handle, self.path) and Holder.read(handle) == holder:
                self.path.unlink()
                self.left_by = holder or self.left_by
        finally:
            turn.unlink(missing_ok=True)


@contextlib.contextmanager
def held(path: Path, what: str, note: Callable[[str], None], *, wait: bool = False) -> Iterator[None]:
    """Hold a lock meanwhile. A thread that holds it already goes on holding it.

    Args:
        path: the lock's file; its folder is made.
        what: what the lock is for, for messages: "run".
        note: hears of a lock that a process left, and of waiting.
        wait: for the process that holds it.

    Raises:
        PgolfError: another process holds it, or the file cannot be written.
    """
    try:
        key = (os.getpid(), threading.get_ident(), os.path.realpath(path))
    except ValueError as error:
        raise write_error(path, error) from error
    if key in _held:
        yield
        return
    lock, waited = None, False
    while lock is None:
        try:
            lock = take(path, what)
        except Held as error:
            if not wait:
                raise
            if not waited:
                note(f"waiting for another process; {error}")
            waited = True
            time.sleep(5 * _PAUSE)
    if lock.left_by is not None:
        note(f"{_subject(path)}: going on where a process that has ended left its lock ({lock.left_by})")
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        lock.release()


def take(path: Path, what: str) -> Lock:
    """Take a lock; ``Held`` if another process holds it, a ``PgolfError`` if its file cannot be written."""
    lock, ours, deadline = Lock(path, what), False, time.monotonic() + _PATIENCE
    try:
        while not ours:
            in_time = time.monotonic() < deadline
            # Gone between two steps: the folder or the file was removed by whoever held the lock.
            with contextlib.suppress(FileNotFoundError) if in_time else contextlib.nullcontext():
                ours = lock.attempt(patient=in_time)
            if not ours:
                time.sleep(_PAUSE)
    except (OSError, ValueError) as error:
        raise write_error(_subject(path), error) from error
    finally:
        if not ours:
            lock.release()
    return lock


def holder_of(path: Path) -> Holder | None:
    """Who has signed a lock's file; None where there is none, or nobody has yet."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return Holder.read(handle)
    finally:
        os.close(handle)


def _flock(handle: int) -> bool | None:
    """Whether flock gives the lock to this process; None where the file system has no flock."""
    try:
        return lock_descriptor(handle, blocking=False)
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise


def _subject(path: Path) -> Path:
    return path.parent if path.name == LOCK else path


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
