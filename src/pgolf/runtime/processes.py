"""Which process is which, so that what one left can be told from what it works on; and how its threads wait.

Two threads that share an operation of fifty microseconds are faster than one only if the one that is done
first stays ready. Where another program wants the core, that makes everything several times slower. OpenMP
reads the setting when torch is first imported.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT_NAMESPACE = "pid:[4026531836]"
_POLICY = "OMP_WAIT_POLICY"
_LOOKS, _PAUSE = 4, 0.005
_set_here = False


def machine_memory() -> int:
    """Bytes of memory that this machine has, free or not; more than any has where the system does not say."""
    if not hasattr(os, "sysconf"):
        return 1 << 62
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gib(size: int) -> str:
    """Bytes as people read them: GiB, or MiB below one."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{math.ceil(size / 2**20)} MiB"


def host() -> str:
    """This machine's name, and where process numbers are a container's own, that container's number space."""
    return platform.node() + _namespace()


def host_mark() -> str:
    """``host()`` as 8 hexadecimal digits, for file names."""
    return hashlib.sha256(host().encode(errors="surrogateescape")).hexdigest()[:8]


def birth(pid: int) -> str | None:
    """A word that tells a process of this machine from any other that has its number before or after it.

    Empty where the system cannot say; None if the process has ended.
    """
    if os.name == "nt":
        return ""  # There ``os.kill`` would end it.
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass  # It lives, and is another user's.
    try:
        # The name, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    # A zombie has ended; only its parent has not asked for it yet.
    return None if fields[0] in (b"Z", b"X") else f"{boot}/{int(fields[19])}"


def cores() -> int:
    """How many of the machine's cores this process may use; where the system does not say, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def handling(handler: Any, *signals: signal.Signals) -> Iterator[None]:
    """Meanwhile have a handler, as ``signal.signal`` takes it, for these signals.

    Only the main thread may set handlers; elsewhere the caller's stay.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def end_with(parent: int) -> None:
    """From now on, end this process soon after its parent, which cannot do that when it is killed.

    Not on Windows, where a process keeps the number of a parent that has ended.

    ``parent`` is its number, from itself: it may have ended before this process asks for it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _namespace() -> str:
    try:
        name = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
    return "" if name == _ROOT_NAMESPACE else f" {name}"


def let_threads_wait() -> None:
    """Have waiting threads sleep if other programs use the cores now and the user has not said how to wait.

    Otherwise OpenMP's default stays, which on a machine that is otherwise idle is the fastest.
    """
    global _set_here
    if _POLICY not in os.environ and "GOMP_SPINCOUNT" not in os.environ and cores_are_taken():
        os.environ[_POLICY] = "passive"
        _set_here = True


@contextlib.contextmanager
def default_waiting() -> Iterator[None]:
    """Within it new processes do not inherit what ``let_threads_wait`` has set."""
    chosen = os.environ.pop(_POLICY) if _set_here else None
    try:
        yield
    finally:
        if chosen is not None:
            os.environ[_POLICY] = chosen


def cores_are_taken() -> bool:
    """Whether other programs leave fewer cores than threads of this process will work together.

    In a container the other programs are those of the whole machine, as are the cores. False where the system
    does not tell, and for one thread, which waits for none.
    """
    try:
        threads = cores()
        with contextlib.suppress(ValueError):  # As OpenMP does with what is no number.
            threads = min(int(os.environ.get("OMP_NUM_THREADS", threads)), threads)
        # Much of what runs is over at once, so cores are taken only if they are at every look.
        return threads > 1 and all(_others(look) > (os.cpu_count() or 1) - threads for look in range(_LOOKS))
    except (OSError, ValueError, IndexError, AttributeError):
        return False


def _others(look: int) -> int:
    time.sleep(_PAUSE if look else 0)
    # The fourth number is of the threads that run or could, this one too: "0.90 2.36 5.25 1/81 9360".
    running = Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]
    return int(running) - 1
