"""How the threads of an operation wait for each other: for ever ready, or asleep.

Two threads that share an operation of fifty microseconds are faster than one only if the one that is done first stays
ready. Where another program wants the core, that makes everything several times slower. OpenMP reads the setting when
torch is first imported.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_POLICY, _ASLEEP = "OMP_WAIT_POLICY", "passive"
_SAMPLES, _PAUSE = 4, 0.005


def let_threads_wait() -> None:
    """Have waiting threads sleep if other programs use the cores now and the user has not said how to wait.

    Otherwise OpenMP's default stays, which on a machine that is otherwise idle is the fastest.
    """
    if _POLICY in os.environ or "GOMP_SPINCOUNT" in os.environ or os.environ.get("OMP_NUM_THREADS") == "1":
        return
    if cores_are_taken():
        os.environ[_POLICY] = _ASLEEP


@contextlib.contextmanager
def default_waiting() -> Iterator[None]:
    """Within it new processes do not inherit how this one waits, as far as this program may have chosen it."""
    ours = os.environ.get(_POLICY) == _ASLEEP
    if ours:
        del os.environ[_POLICY]
    try:
        yield
    finally:
        if ours:
            os.environ[_POLICY] = _ASLEEP


def cores_are_taken() -> bool:
    """Whether other programs run on cores that this process could use; False where the system does not tell."""
    try:
        others = []
        for _ in range(_SAMPLES):
            # The fourth number is of the threads that run or could: "0.90 2.36 5.25 1/81 9360".
            running = Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]
            others.append(int(running) - 1)
            time.sleep(_PAUSE)
    except (OSError, ValueError, IndexError):
        return False
    # The least of several looks: much of what runs is over at once.
    return min(others) > (os.cpu_count() or 1) - len(os.sched_getaffinity(0))
