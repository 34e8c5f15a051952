"""Other systems, as far as Linux can stand for them: what Windows' Python lacks is taken away."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pgolf.runtime import locks, processes, terminal
from tests.e2e.fork_server import Forked

# By Python's documents these are not on Windows. Packages of others are there already and keep theirs.
LACKING = """
import importlib, os, pkgutil, signal, sys

MODULES = "fcntl grp pwd resource termios tty pty syslog readline posix".split()
OS = (
    "fork forkpty getuid geteuid getgid getegid getgroups getpgid getsid setsid setpgid killpg nice uname "
    "sysconf getloadavg sched_getaffinity sched_setaffinity pread pwrite preadv pwritev lockf mkfifo mknod "
    "chown fchown fchmod statvfs fstatvfs openpty wait wait3 wait4 waitid posix_fallocate sendfile O_CLOEXEC"
)
SIGNAL = (
    "SIGKILL SIGUSR1 SIGUSR2 SIGHUP SIGALRM SIGQUIT SIGCHLD SIG_BLOCK SIG_SETMASK pthread_sigmask sigwait"
)
for name in [name for name in sys.modules if name.partition(".")[0] == "pgolf"]:
    del sys.modules[name]
# torch and transformers ask which system this is, and take it for Linux.
for name in (*MODULES, "transformers"):
    sys.modules[name] = None
for place, names in ((os, OS), (signal, SIGNAL)):
    for name in names.split():
        delattr(place, name)

import pgolf

seen = []
for module in pkgutil.walk_packages(pgolf.__path__, "pgolf."):
    try:
        if module.name != "pgolf.__main__":
            importlib.import_module(module.name)
            seen.append(module.name)
    except ModuleNotFoundError as error:
        # Extras may be missing.
        assert error.name not in MODULES and not error.name.startswith("pgolf"), module.name
assert len(seen) > 150, seen

from pathlib import Path

from pgolf.data.encode import _without_interrupts
from pgolf.launch.jobs import Child
from pgolf.runtime.processes import cores, machine_memory

assert cores() >= 1 and machine_memory() > 1 << 30
with _without_interrupts():
    assert Child(["true"], Path("log"), Path.cwd(), {}).wait() == 0
"""


def test_every_module_can_be_imported_and_work_without_what_windows_lacks(workshop: Path) -> None:
    errors = workshop / "errors"
    code = LACKING + (
        "from pgolf.cli.main import main\n"
        "sys.argv = 'pgolf train --recipe tiny.toml --set train.steps=3 --data data --out windows'.split()\n"
        "main()\n"
    )
    assert Forked("-c", code, cwd=workshop, errors=errors).wait(60) == 0, errors.read_text()
    assert (workshop / "windows" / "model.safetensors").is_file()
    assert not (workshop / "windows" / ".lock").exists()


class Windows(SimpleNamespace):
    """``os`` of another system."""

    name = "nt"

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


def test_where_an_open_file_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def refusing(path: Path, missing_ok: bool = False) -> None:
        for open_file in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if open_file.samefile(path):
                    raise PermissionError(13, "The process cannot access the file")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)
    monkeypatch.setattr(locks, "os", Windows())
    path = tmp_path / "run" / locks.LOCK
    with locks.held(path, "run", print), pytest.raises(locks.Held):
        locks.take(path, "run")
    assert list(tmp_path.iterdir()) == []


def test_a_console_of_text_spells_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "os", Windows())
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content := io.BytesIO(), "cp1252"))
    with terminal.patient_streams():
        print("\u00e9 \u2603", flush=True)
    assert content.getvalue() == b"\xe9 \\u2603" + os.linesep.encode()


def test_no_process_is_ended_by_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    # On Windows ``os.kill(pid, 0)`` ends the process.
    monkeypatch.setattr(processes, "os", SimpleNamespace(name="nt"))
    assert processes.birth(os.getpid()) == ""


def test_the_first_byte_of_a_locked_file_is_not_read(tmp_path: Path) -> None:
    # On Windows the lock is on that byte, and reading it fails.
    with locks.held(tmp_path / "lock", "run", print):
        content = (tmp_path / "lock").read_bytes()
        (tmp_path / "lock").write_bytes(b"?" + content[1:])
        holder = locks.holder_of(tmp_path / "lock")
        assert holder is not None and holder.pid == os.getpid()
