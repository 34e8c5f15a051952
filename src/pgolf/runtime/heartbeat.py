"""Signs of life, by which ranks tell one that works, for however long, from one that is stopped or gone.

Each rank's come from a thread of its own, so that compiling or packing does not hold them up. A process that
is stopped (SIGSTOP, a frozen container) gives none, nor does one whose machine or connection is gone.
"""

from __future__ import annotations

import atexit
import threading

import torch.distributed as dist

_INTERVAL = 3.0
"""Seconds between two signs."""


class Heartbeat:
    """This rank's signs of life, and what it sees of the others'.

    Args:
        store: common memory; asked through a connection of its own, as a wait on the other one would hold
            signs up.
        rank: 0-based place of this process.
        size: number of processes. All of them must have made theirs before the first ``beat``.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.interval = _INTERVAL
        self._origin, self._store = store, _connection(store)
        self._keys, self._own = [f"alive {other}" for other in range(size)], rank
        self._signs, self._seen, self._missed = 0, [b""] * size, [0] * size
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._store.set(self._keys[rank], "0")

    def start(self) -> None:
        """Beat until ``stop``, or the end of the process."""
        self._thread.start()
        atexit.register(self.stop)  # A thread inside the store must not live to see the interpreter go.

    def stop(self) -> None:
        """Give no more signs."""
        self._over.set()
        self._thread.join(2)
        atexit.unregister(self.stop)

    def beat(self) -> None:
        """Give a sign, and look for the others'."""
        self._signs += 1
        self._store.set(self._keys[self._own], str(self._signs))
        before, self._seen = self._seen, self._store.multi_get(self._keys)
        for rank, sign in enumerate(self._seen):
            self._missed[rank] = self._missed[rank] + 1 if sign == before[rank] else 0

    def silent(self, seconds: float) -> list[int]:
        """The ranks that have given no sign for so long.

        Time is counted in this rank's own beats: what holds up all of them, such as a laptop's sleep, is
        nobody's silence.
        """
        return [rank for rank, missed in enumerate(self._missed) if missed * self.interval >= seconds]

    def _go_on(self) -> None:
        while not self._over.wait(self.interval):
            try:
                self.beat()
            except RuntimeError:
                try:
                    self._store = _connection(self._origin)
                except RuntimeError:
                    return  # The store's keeper is gone: whoever waits for something finds out.


def _connection(store: dist.Store) -> dist.Store:
    return store.clone()  # type: ignore[attr-defined]
