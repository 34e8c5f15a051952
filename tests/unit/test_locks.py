"""Locks: with flock and without, held by a living process, left by a dead one, wanted by several at once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pgolf.errors import PgolfError
from pgolf.runtime import locks
from pgolf.runtime.locks import LOCK, Held, Holder, held, take
from pgolf.runtime.processes import birth

# What a second process does first.
START = """
import errno, fcntl, os, sys, time
from pathlib import Path
from pgolf.runtime.locks import Held, held, take

def no_flock(*arguments):
    raise OSError(errno.ENOSYS, "Function not implemented")

path, flock = Path(sys.argv[1]), sys.argv[2]
if flock == "no":
    fcntl.flock = no_flock
"""
HOLD = START + "lock = take(path, 'run'); print('ready', flush=True); time.sleep(600)"
RACE = (
    START
    + """
sys.stdin.readline()
try:
    lock = take(path, 'run')
except Held as error:
    print(error)
else:
    print('mine', flush=True)
    sys.stdin.readline()
    lock.release()
"""
)
# Reading, waiting and writing again loses counts unless nobody else is there meanwhile.
COUNT = (
    START
    + """
counter = path.with_name('counter')
for _ in range(30):
    with held(path, 'run', lambda line: None, wait=True):
        count = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(count + 1))
"""
)


@pytest.fixture(params=["yes", "no"])
def flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the file system has flock."""
    if request.param == "no":
        monkeypatch.setattr(fcntl, "flock", _fails(errno.ENOSYS))
    return str(request.param)


def _fails(number: int) -> Callable[..., Any]:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def _start(code: str, path: Path, flock: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, str(path), flock]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def _holder(path: Path, flock: str) -> Iterator[subprocess.Popen[str]]:
    process = _start(HOLD, path, flock)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _someone(**changes: Any) -> Holder:
    return replace(Holder.here(flock=False), **changes)


def _leave(path: Path, holder: Holder) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(holder)))


def test_who_comes_second_is_told_who_is_there_and_goes_on_when_that_one_was_killed(
    tmp_path: Path, flock: str
) -> None:
    path, notes = tmp_path / "run" / LOCK, list[str]()
    with _holder(path, flock) as process:
        with pytest.raises(PgolfError) as caught, held(path, "run", notes.append):
            pass
        said = str(caught.value)
        assert said.startswith(f"{path.parent}: another process works on this run (process {process.pid} on ")
        assert "wait until it has ended, or choose another place" in said and "\n" not in said
        assert (f"delete {path}" in said) == (flock == "no")
        assert notes == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        with held(path, "run", notes.append):
            [note] = notes
            assert f"left its lock (process {process.pid} on " in note
            assert Holder(**json.loads(path.read_text())).pid == os.getpid()
    assert list(path.parent.iterdir()) == []


def test_a_process_that_nobody_has_asked_for_has_ended(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # It stays a zombie.
    assert birth(process.pid) is None
    process.wait()
    assert birth(process.pid) is None
    assert birth(os.getpid()) == birth(os.getpid()) is not None


def test_one_that_released_it_between_two_steps_left_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / LOCK, fcntl.flock
    first = take(path, "run")

    def late(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.release()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = take(path, "run")
    assert second.left_by is None
    second.release()


@pytest.mark.parametrize("number", locks.NO_FLOCK)
def test_kinds_of_no_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(fcntl, "flock", _fails(number))
    lock = take(tmp_path / LOCK, "run")
    with pytest.raises(Held):
        take(tmp_path / LOCK, "run")
    lock.release()
    take(tmp_path / LOCK, "run").release()


def test_a_damaged_disk_is_no_missing_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _fails(errno.EIO))
    with pytest.raises(PgolfError, match=r"run: cannot be written \(Input/output error\)"):
        take(tmp_path / "run" / LOCK, "run")


def test_what_another_machine_left(tmp_path: Path, flock: str) -> None:
    path, notes = tmp_path / LOCK, list[str]()
    # flock says itself whether that process lives; without, nobody here can know.
    _leave(path, _someone(host="node7", flock=True))
    if flock == "yes":
        with held(path, "run", notes.append):
            assert "on node7" in notes[0]
    else:
        with pytest.raises(
            Held, match=rf"on node7, since .*if that process has certainly ended, delete {path}"
        ):
            take(path, "run")
    # One that had no flock there is not asked after by flock.
    _leave(path, _someone(host="node7", flock=False))
    with pytest.raises(Held, match=rf"certainly ended, delete {path}"):
        take(path, "run")
    path.unlink()
    take(path, "run").release()


def test_a_number_that_another_process_has_now(tmp_path: Path, flock: str) -> None:
    path = tmp_path / LOCK
    _leave(path, _someone(pid=os.getppid(), born="another boot/1"))
    lock = take(path, "run")
    assert lock.left_by is not None and lock.left_by.pid == os.getppid()
    lock.release()
    _leave(path, _someone(pid=os.getppid(), born=birth(os.getppid())))
    with pytest.raises(Held):
        take(path, "run")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff"])
def test_a_file_without_a_name_in_it(
    tmp_path: Path, flock: str, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    path = tmp_path / LOCK
    path.write_bytes(content)
    # An empty one is of a process that was killed in its first moment.
    if flock == "no" and content:
        with pytest.raises(Held, match=rf"it left no name.*delete {path}"):
            take(path, "run")
        path.unlink()
    take(path, "run").release()
    assert not path.exists()


def test_one_that_was_held_up_before_it_wrote_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", _fails(errno.ENOSYS))
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    path, taken, write = tmp_path / LOCK, list[locks.Lock](), Holder.write

    def late(holder: Holder, handle: int) -> None:
        monkeypatch.setattr(Holder, "write", write)
        taken.append(take(path, "run"))
        write(holder, handle)

    monkeypatch.setattr(Holder, "write", late)
    with pytest.raises(Held):
        take(path, "run")
    taken[0].release()
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain = tmp_path / LOCK, os.open
    _leave(path, _someone(pid=os.getppid(), born="another boot/1"))

    def of_another_user(name: Path, flags: int, mode: int = 0o777) -> int:
        if name == path and flags & os.O_RDWR and not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(name, flags, mode)

    monkeypatch.setattr(os, "open", of_another_user)
    with pytest.raises(Held, match=rf"\(process {os.getppid()} on .*delete {path}"):
        take(path, "run")


def test_one_that_was_killed_while_it_took_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _fails(errno.ENOSYS))
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    path, turn = tmp_path / LOCK, tmp_path / f"{LOCK}.taking"
    _leave(path, _someone(pid=os.getppid(), born="another boot/1"))
    turn.touch()
    with pytest.raises(Held, match=rf"delete {turn}"):
        take(path, "run")
    turn.unlink()
    take(path, "run").release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [False, True])
def test_of_several_at_the_same_moment_one_gets_it(tmp_path: Path, flock: str, left: bool) -> None:
    path = tmp_path / "run" / LOCK
    if left:
        _leave(path, _someone(pid=os.getppid(), born="another boot/1"))
    processes = [_start(RACE, path, flock) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline() for process in processes if process.stdout is not None]
    for process in processes:
        process.communicate("done\n", timeout=60)
    assert said.count("mine\n") == 1
    winner = processes[said.index("mine\n")].pid
    # Who looks at the moment in which the winner writes its name may find none.
    found = (f"(process {winner} on ", "(it left no name)")
    busy = [line for line in said if "another process works on this run" in line]
    assert len(busy) == 3 and all(any(name in line for name in found) for line in busy)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_those_who_wait_take_turns(tmp_path: Path, flock: str) -> None:
    (tmp_path / "counter").write_text("0")
    processes = [_start(COUNT, tmp_path / LOCK, flock) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "90"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_a_thread_may_hold_it_twice_and_two_threads_may_not(tmp_path: Path, flock: str) -> None:
    path, said = tmp_path / LOCK, list[str]()

    def other() -> None:
        try:
            with held(path, "run", said.append):
                said.append("taken")
        except PgolfError as error:
            said.append(str(error))

    with held(path, "run", said.append):
        with held(tmp_path / "." / LOCK, "run", said.append):
            pass
        assert path.is_file(), "the outer one still holds it"
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert f"(process {os.getpid()} on " in said.pop()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert said == ["taken"]


@pytest.mark.parametrize("end", [None, ValueError, KeyboardInterrupt])
def test_nothing_stays(tmp_path: Path, flock: str, end: type[BaseException] | None) -> None:
    with contextlib.suppress(ValueError, KeyboardInterrupt), held(tmp_path / "a" / "b" / LOCK, "run", print):
        if end is not None:
            raise end
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "a" / "b" / LOCK, "run", print):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_file_that_is_no_longer_ours_is_left_alone(tmp_path: Path, flock: str) -> None:
    path = tmp_path / LOCK
    lock = take(path, "run")
    path.unlink()  # As the user may, who is certain that we have ended.
    other = take(path, "run")
    lock.release()
    with pytest.raises(Held):
        take(path, "run")
    other.release()


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with held(tmp_path / "run" / LOCK, "run", print):
            assert stat.S_IMODE((tmp_path / "run" / LOCK).stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("file", "a part of the path is a file"),
        ("file/below", "a part of the path is a file"),
        ("x" * 300, "choose a shorter name"),
        ("nul\0l", "cannot be written"),
        ("link", "cannot be written"),
    ],
)
def test_places_where_no_lock_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, said: str
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(PgolfError, match=said), held(tmp_path / folder / LOCK, "run", print):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_full_disk_leaves_no_lock(tmp_path: Path, flock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", _fails(errno.ENOSPC))
        with pytest.raises(PgolfError, match="the disk is full"):
            take(tmp_path / "run" / LOCK, "run")
    assert list(tmp_path.iterdir()) == []
