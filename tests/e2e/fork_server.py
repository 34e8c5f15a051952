"""Processes that start at once: forked from one that has imported torch and pgolf, which takes seconds.

They are real processes: they can be killed, hold locks and get signals. ``Forked`` is one that a test starts;
``python()`` is for everything that starts ``python -m pgolf`` by itself (a launcher, a shell).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from tests.e2e.fork_client import FORWARDED, answer, ask

CLIENT = Path(__file__).with_name("fork_client.py")
ROOT = Path(__file__).resolve().parents[2]
# What the command imports only when it needs it.
LATE = ("torch._dynamo", "matplotlib.figure", "submitit", "tests.e2e.rank_process")


class Forked:
    """A process in its own session, with a part of what `subprocess.Popen` has.

    Args:
        words: what follows ``python``.
        cwd: working folder.
        errors: file for its standard error; nothing else is kept.
    """

    def __init__(self, *words: str | Path, cwd: Path, errors: Path | None = None) -> None:
        with Path(os.devnull).open("r+b") as nothing, (errors or Path(os.devnull)).open("ab") as said:
            files = [nothing.fileno(), nothing.fileno(), said.fileno()]
            place = python().with_name("socket")
            self._answers = ask(str(place), list(map(str, words)), str(cwd), dict(os.environ), files)
        self.pid = answer(self._answers)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, below zero for a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs after ``timeout`` seconds.
        """
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = answer(self._answers)
            self._answers.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def python() -> Path:
    """A program like Python whose processes start at once. All test processes share one server."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = Path(tempfile.gettempdir(), f"pgolf-{run}") if run else Path(tempfile.mkdtemp(prefix="pgolf-"))
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "socket").exists():
            # It serves until pytest ends, which for a worker of xdist is its parent.
            session = os.getppid() if run else os.getpid()
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.fork_server", str(folder), str(session)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            _await(folder, server)
    return folder / "python"


@contextlib.contextmanager
def python_with(sources: Path, library: Path) -> Iterator[Path]:
    """A program as above whose processes import pgolf from elsewhere.

    Args:
        sources: the folder that holds the package.
        library: what it is to take for Python's own library, when it makes a corpus of that.
    """
    with tempfile.TemporaryDirectory(prefix="pgolf-") as name:  # A socket's path must be short.
        folder = Path(name)
        server = Forked(
            *("-m", "tests.e2e.fork_server", folder, str(os.getpid()), sources, library), cwd=ROOT
        )
        try:
            _await(folder, server)
            yield folder / "python"
        finally:
            server.kill()
            server.wait()


def _await(folder: Path, server: Forked | subprocess.Popen[bytes]) -> None:
    """Write the program into ``folder`` and wait until it can be used."""
    words = shlex.join([sys.executable, "-S", "-E", str(CLIENT), str(folder / "socket")])
    (folder / "python").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    (folder / "python").chmod(0o755)
    while not (folder / "socket").exists():
        assert server.poll() is None, "the server could not start"
        time.sleep(0.01)


def start(*arguments: str | Path, cwd: Path) -> Forked:
    """``pgolf`` with these arguments."""
    return Forked("-m", "pgolf", *arguments, cwd=cwd)


def serve(folder: Path, session: int, sources: Path | None = None, library: Path | None = None) -> None:
    """Start what clients ask for, until the process with the number ``session`` is gone."""
    if sources is not None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("pgolf", "tests")]:
            del sys.modules[name]
        sys.path.insert(0, str(sources))
    for name in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch
    import typer.main

    from pgolf.cli.main import app
    from pgolf.data import corpus

    torch.set_num_threads(1)
    if library is not None:
        corpus.python_corpus = functools.partial(corpus.python_corpus, library)  # type: ignore[assignment]
    # Which shell a user types in would be found by looking at the parent process; here there may be none.
    os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    typer.main.get_command = functools.cache(typer.main.get_command)  # type: ignore[assignment]
    typer.main.get_command(app)
    os.fsync = lambda handle: None  # As in tests/conftest.py.
    sys.executable = str(folder / "python")
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "new"))
        listening.listen(16)
        listening.settimeout(1)
        (folder / "new").rename(folder / "socket")
        while _runs(session):
            with contextlib.suppress(TimeoutError):
                connection, _ = listening.accept()
                if os.fork() == 0:
                    listening.close()
                    _keep(connection)
                connection.close()
    shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _keep(connection: socket.socket) -> NoReturn:
    """Start one process, tell its client what becomes of it, and kill it when the client is gone."""
    connection.settimeout(None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, 8, 3)
    content = connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
    process = os.fork()
    if process == 0:
        connection.close()
        _become(content, files)
    for file in files:
        os.close(file)
    ended, killed = 0, False
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(process.to_bytes(8, "big", signed=True))
        while not ended:
            if not killed and select.select([connection], [], [], 0.01)[0]:
                os.kill(process, signal.SIGKILL)
                killed = True
            ended, status = os.waitpid(process, 0 if killed else os.WNOHANG)
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
    os._exit(0)


def _become(content: bytes, files: Sequence[int]) -> NoReturn:
    """Do what a client has asked for, in this process."""
    words, folder, environment, deaf, mask = json.loads(content)
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.umask(mask)
    os.environ.clear()
    os.environ.update(environment)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN if number in deaf else signal.SIG_DFL)
    if signal.SIGINT not in deaf:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 1
    try:
        _run(words[words[0] == "-u" :])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _run(words: list[str]) -> None:
    kind, rest = words[0], words[1:]
    if kind == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv = [kind, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-":
        sys.path.insert(0, "")
        sys.argv = words
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
