"""What the audited code does beside computing: files, sockets, processes; and whether it learns.

Python tells an *audit hook* of every file it opens, every socket and every process. A hook cannot be removed,
so one is installed once and listens only while a ``Watch`` is open. What native code opens by itself is not
told.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from pgolf.runtime.environment import FOLDER

_open_watches: list[Watch | Relay] = []
# Looking at an event must not report events of its own.
_looking = threading.local()

_MOST_EVENTS = 1000
_PROCESSES = {"os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn", "os.exec"}
_MODULES = (".py", ".pyc", ".pyi", ".so", ".pyd", ".dll", ".dylib", ".pth")
# The machine's own description, random numbers, devices.
_MACHINE = ("/proc/", "/sys/", "/dev/", "/etc/")
# What torch.compile runs, and where it and the memory's compiler keep what they made.
_COMPILERS = re.compile(r"gcc|g\+\+|cc|c\+\+|clang|clang\+\+|ld|ldconfig|as|ptxas|nvcc|cuobjdump")
_COMPILER_FOLDERS = (
    *(f"{os.sep}torchinductor_", f"{os.sep}.triton{os.sep}", f"{os.sep}triton{os.sep}"),
    f"{os.sep}pgolf{os.sep}compiled-",
)


@dataclass(frozen=True)
class Event:
    """One thing that was done."""

    kind: str
    """validation, file, socket, process, or compiler (which is allowed)."""
    what: str
    """The path, address or command."""
    phase: str
    """loading or scoring."""


@dataclass
class Watch:
    """Records what happens while it is open (``with watch:``)."""

    artifact: Path | None = None
    """The file or folder that may be read."""
    data: Path | None = None
    """The folder of the validation text."""
    phase: str = "loading"
    events: list[Event] = field(default_factory=list)

    def __enter__(self) -> Watch:
        _install()
        self._artifact = "" if self.artifact is None else os.path.realpath(self.artifact)
        self._data = "" if self.data is None else os.path.realpath(self.data)
        self._environment = _environment()
        _open_watches.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _open_watches.remove(self)

    def take(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Record an event of Python's if it matters."""
        if name == "open":
            kind, what = self._opened(*arguments[:3])
        elif name.startswith("socket.") and name not in ("socket.gethostname", "socket.sethostname"):
            kind, what = "socket", " ".join(str(argument) for argument in (name, *arguments[1:]))
        elif name == "subprocess.Popen" or name in _PROCESSES:
            kind, what = self._started(name, arguments)
        else:
            return
        if kind:
            event = Event(kind, what[:200], self.phase)
            if len(self.events) < _MOST_EVENTS and event not in self.events:
                self.events.append(event)

    def of_kind(self, *kinds: str) -> list[Event]:
        """The recorded events of some kinds."""
        return [event for event in self.events if event.kind in kinds]

    def _opened(self, path: Any, mode: Any, flags: Any) -> tuple[str, str]:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return "", ""  # an open file's number
        real = os.path.realpath(os.fsdecode(path))
        flags = flags if isinstance(flags, int) else 0
        writes = set(str(mode or "")) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if any(folder in real for folder in _COMPILER_FOLDERS):
            return "compiler", real
        if "__pycache__" in real or real == os.devnull:
            return "", ""
        if writes:
            return "file", f"{real} (written)"
        if real.startswith("/proc/") and real.endswith("/mem"):
            return "file", real  # the memory of a process
        # One may lie in the other; the inner one counts.
        known = [root for root in (self._artifact, self._data) if root and _within(real, root)]
        if known:
            return _in_data(real) if max(known, key=len) == self._data else ("", "")
        ours = real.endswith(_MODULES) or real.startswith(_MACHINE)
        return ("", "") if ours or any(_within(real, at) for at in self._environment) else ("file", real)

    def _started(self, name: str, arguments: tuple[Any, ...]) -> tuple[str, str]:
        command = " ".join(str(argument) for argument in arguments[:2])
        if name == "subprocess.Popen":
            executable, words = arguments[0], arguments[1]
            first = executable or (words if isinstance(words, str) else words[0])
            command = words if isinstance(words, str) else " ".join(map(str, words))
            compiler = _COMPILERS.fullmatch(Path(os.fsdecode(first)).name)
            if compiler or "torch/_inductor/compile_worker" in command:
                return "compiler", command
        return "process", f"{name} {command}"


def _in_data(real: str) -> tuple[str, str]:
    name = Path(real).name
    if "_val_" in name:
        return "validation", real
    # The tokenizer and the list of the files are no text.
    return ("", "") if name.endswith((".model", ".json")) else ("file", real)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _environment() -> list[str]:
    """Folders of this Python and its packages; never one that user data lies in, as the temporary folder."""
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(torch.__file__).parent), str(FOLDER)}
    paths |= {path for name, path in sysconfig.get_paths().items() if name not in ("scripts", "data")}
    real = {os.path.realpath(path) for path in paths}
    return sorted(real - {os.sep, os.path.realpath(tempfile.gettempdir()), os.path.realpath(Path.home())})


@functools.cache
def _install() -> None:
    sys.addaudithook(_hook)


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    if not _open_watches or getattr(_looking, "now", False):
        return
    _looking.now = True
    try:
        for watch in tuple(_open_watches):
            # An exception here would stop what is being watched.
            with contextlib.suppress(Exception):
                watch.take(name, arguments)
    finally:
        _looking.now = False


class Relay:
    """Keeps what this process does, from now on, for a ``Watch`` of another one."""

    def __init__(self) -> None:
        self._events: dict[str, tuple[str, list[Any]]] = {}
        self._known = 0
        _install()
        _open_watches.append(self)

    def take(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Keep an event of Python's if it may matter."""
        told = [_told(argument) for argument in arguments[:3]]
        if name == "open" and isinstance(told[0], str):
            told[0] = os.path.realpath(told[0])
        elif name != "subprocess.Popen" and name not in _PROCESSES and not name.startswith("socket."):
            return
        self._events.setdefault(repr((name, told)), (name, told))

    def taken(self) -> list[tuple[Any, ...]]:
        """What is new since the last call: name and arguments, as JSON values."""
        new = list(self._events.values())[self._known :]
        self._known += len(new)
        return [(name, *told) for name, told in new]


def _told(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return [_told(each) for each in argument]
    if isinstance(argument, (str, bytes, os.PathLike)):
        return os.fsdecode(argument)
    return argument if argument is None or isinstance(argument, int) else str(argument)


def relayed(name: str, arguments: list[Any]) -> None:
    """Let the watches of this process take what a ``Relay`` kept in another."""
    _hook(name, tuple(arguments))


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """What this thread does inside is no watch's business."""
    before, _looking.now = getattr(_looking, "now", False), True
    try:
        yield
    finally:
        _looking.now = before


@dataclass
class Learning:
    """Counts gradients and optimizer steps while ``watched``; they only decide how a finding is named."""

    gradients: int = 0
    steps: int = 0

    @property
    def seen(self) -> bool:
        """Whether anything was learned by gradients."""
        return bool(self.gradients or self.steps)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Count in the code inside."""

        def step(*_: object) -> None:
            self.steps += 1

        def counting(function: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                self.gradients += 1
                return function(*arguments, **options)

            return call

        handle = register_optimizer_step_post_hook(step)
        plain = {name: getattr(torch.autograd, name) for name in ("backward", "grad")}
        try:
            for name, function in plain.items():
                setattr(torch.autograd, name, counting(function))
            yield
        finally:
            for name, function in plain.items():
                setattr(torch.autograd, name, function)
            handle.remove()
