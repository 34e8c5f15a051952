"""How the threads of an operation wait for each other: for ever ready, or asleep.

Two threads that share an operation of fifty microseconds are faster than one only if the one that is done
first stays ready. Where another program wants the core, that makes everything several times slower. OpenMP
reads the setting when torch is first imported.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_POLICY = "OMP_WAIT_POLICY"
_LOOKS, _PAUSE = 4, 0.005
_set_here = False


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
        threads = len(os.sched_getaffinity(0))
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
