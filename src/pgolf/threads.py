"""How the threads of an operation wait for each other. Read by OpenMP when torch is first imported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_VARIABLE, _TURNS = "GOMP_SPINCOUNT", "2000"


def let_threads_wait() -> None:
    """Have threads wait actively for some microseconds, then asleep, unless the user has said how.

    Asleep at once, two threads are no faster than one: an operation of a small model is over before they are awake.
    Active for long, as by default, everything is several times slower as soon as another program wants a core.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(_VARIABLE, _TURNS)


@contextlib.contextmanager
def default_waiting() -> Iterator[None]:
    """Within it new processes do not inherit what ``let_threads_wait`` has set."""
    ours = os.environ.get(_VARIABLE) == _TURNS
    if ours:
        del os.environ[_VARIABLE]
    try:
        yield
    finally:
        if ours:
            os.environ[_VARIABLE] = _TURNS
