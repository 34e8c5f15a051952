"""A team of many processes, on torch.distributed: NCCL between GPUs, gloo between CPUs and for small things.

Whoever starts the processes (torchrun, or a cluster's launcher) tells each one its place by environment
variables: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, and TORCHELASTIC_RESTART_COUNT. Nothing
else is read from there.

Two kinds of waiting:

* transfers, between ranks that do equal work: one that takes longer than ``TIMEOUT`` ends the job, so that a
  rank that hangs or is gone cannot hold the others for ever. torch says that the time is up, but not for
  whom; the signs of life (``Heartbeat``) name the rank;
* ``first`` and ``meet``, where the wait is as long as somebody's work, and so no time limit fits. If a rank
  dies, the launcher ends the job; one that gives no sign of life for ``TIMEOUT`` is not waited for.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.runtime.device import pick_device
from pgolf.runtime.team import Team

_INTERVAL = 3.0
"""Seconds between two signs."""


class Heartbeat:
    """Signs of life of this rank (0-based, of ``size``), and what it sees of the others'.

    They tell a rank that works, for however long, from one that is stopped or gone. A thread of its own
    gives them, so that compiling or packing does not hold them up, through a connection of its own to the
    ``store``, the common memory. All ranks must have made theirs before the first ``beat``.
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


T = TypeVar("T")

TIMEOUT = timedelta(seconds=60)
"""Longest wait for the other ranks in one transfer, and for a sign of life of each of them."""
_JOINING = timedelta(minutes=10)
_BUCKET = 8 << 20
"""Numbers (float32) that are summed in one transfer."""
# Its name since torch 2.13, and before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class LostContact(Exception):
    """Another rank is gone or hangs; one line that says what the transfer reported."""


class Ranks(Team):
    """This process (0-based ``rank`` of ``size``) among those that were started, with ``Team``'s methods.

    Its tensors are on the ``device``, and every rank has reached the ``store``, a common memory of small
    values. ``restarted``: whether this rank was told that it is not the first attempt; one that knows is
    enough.
    """

    _heartbeat: Heartbeat | None = None

    def __init__(
        self, rank: int, size: int, restarted: bool, device: torch.device, store: dist.Store
    ) -> None:
        self.rank, self.size, self._turn = rank, size, 0
        with self._contact():
            self.store = store = _own_room(store, rank, size)
            # On several machines only the launcher that lost a rank counts a restart.
            store.add("restarts", int(restarted))
            heartbeat = Heartbeat(store, rank, size)
            self.meet()
            heartbeat.start()
            self._heartbeat = heartbeat
            self.restarted = store.add("restarts", 0) > 0
            on_cuda = device.type == "cuda"
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
                store=dist.PrefixStore("transfers", store),
                rank=rank,
                world_size=size,
                timeout=TIMEOUT,
                device_id=device if on_cuda else None,
            )

    def leave(self) -> None:
        """End the work together."""
        self.meet()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        # The first rank may keep the common memory: nobody asks it after this.
        self.totals([0.0])
        dist.destroy_process_group()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Few large transfers, all of them under way at once."""
        with self._contact():
            flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
            for transfer in [dist.all_reduce(part, async_op=True) for part in flat.split(_BUCKET)]:
                transfer.wait()
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.detach().copy_(part.view_as(tensor))

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        self.meet()  # Loading before it may have taken longer on one than on another.
        with self._contact():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def collect(self, own: Tensor) -> Callable[[], Tensor]:
        everyone = own.new_empty((self.size * own.size(0), *own.shape[1:]))
        with self._contact():
            transfer = _all_gather(everyone, own.contiguous(), async_op=True)

        def wait() -> Tensor:
            with self._contact():
                transfer.wait()
            return everyone

        return wait

    def totals(self, values: Sequence[float]) -> list[float]:
        sums = torch.tensor(values, dtype=torch.float64)
        with self._contact():
            dist.all_reduce(sums)
        return sums.tolist()

    def gather(self, value: object) -> list[object]:
        """Text, not pickles: what a rank sends is never executed."""
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self.collect(torch.tensor([len(own)]))().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(own)] = own
        rows = self.collect(padded)().view(self.size, -1)
        return [json.loads(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def first(self, work: Callable[[], T]) -> T | None:
        self._turn += 1
        key = f"turn {self._turn}"
        if not self.is_first:
            self._wait(lambda: self.store.check([key]))
            outcome = json.loads(self.store.get(key))
            if outcome["mistake"] is not None:
                raise PgolfError(outcome["mistake"])
            if not outcome["done"]:
                raise LostContact(f"rank {self.rank} of {self.size}: rank 0 failed")
            return None
        outcome = {"done": False, "mistake": None}
        try:
            result = work()
            outcome["done"] = True
            return result
        except PgolfError as error:
            outcome["mistake"] = str(error)
            raise
        finally:
            self.store.set(key, json.dumps(outcome))

    def bytes_of_first(self, content: bytes | None) -> bytes:
        size = torch.tensor([0 if content is None else len(content)])
        self.copy_first([size])
        box = torch.zeros(int(size), dtype=torch.uint8)
        if content is not None:
            box.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.copy_first([box])
        return box.numpy().tobytes()

    def meet(self) -> None:
        self._turn += 1
        key = f"meeting {self._turn}"
        with self._contact():
            self.store.add(key, 1)
        self._wait(lambda: self.store.add(key, 0) >= self.size)

    def say_once(self, say: Callable[[], None]) -> None:
        """Speak if no rank has spoken; else wait until it has.

        The launcher ends everyone as soon as one rank exits, so nobody may leave before the words are out.
        And the speaker waits a moment for the others, which would not find out if it kept the common memory.
        """
        spoken = False
        try:
            if self.store.add("speakers", 1) == 1:
                say()
                spoken = True
                self.store.set("said", "1")
                _until(lambda: self.store.add("speakers", 0) >= self.size, seconds=2)
            else:
                _until(self.was_said, seconds=5)
        except RuntimeError:  # Rather twice than never.
            if not spoken:
                say()

    def was_said(self) -> bool:
        """Whether some rank has told the user why the job ends."""
        try:
            return self.store.check(["said"])
        except RuntimeError:  # Its keeper is gone as well.
            return False

    def _wait(self, arrived: Callable[[], bool]) -> None:
        # Asking again and again lets signals through, which a wait inside the store does not.
        pause = 0.001
        with self._contact():
            while not arrived():
                if self._silent(TIMEOUT):
                    raise LostContact(self._lost("no sign of life"))
                time.sleep(pause)
                pause = min(1.1 * pause, 0.1)  # A tenth of the wait at most is lost.

    @contextlib.contextmanager
    def _contact(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            report = " ".join(str(error).split())[:200]
            raise LostContact(self._lost(report)) from error

    def _lost(self, report: str) -> str:
        # A transfer's time may be up a little before the silent rank's.
        silent = self._silent(TIMEOUT / 2)
        which = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}" if silent else "another one"
        why = f"which is gone, or has not answered for {TIMEOUT.total_seconds():g} s ({report})"
        return f"rank {self.rank} of {self.size} lost contact with {which}, {why}"

    def _silent(self, limit: timedelta) -> list[int]:
        return [] if self._heartbeat is None else self._heartbeat.silent(limit.total_seconds())


def join(device_name: str | None) -> tuple[torch.device, Team]:
    """Find out from the launcher's environment variables who else is there, and join them.

    ``device_name`` is as ``pick_device`` takes it; "cuda" and None mean the GPU of this rank's number on its
    machine. A variable that is missing or no number is a ``PgolfError``.
    """
    size, restarted = launched("WORLD_SIZE", 1), launched("TORCHELASTIC_RESTART_COUNT", 0) > 0
    if size == 1:
        team = Team()
        team.restarted = restarted
        return pick_device(device_name), team
    rank, local_rank = launched("RANK"), launched("LOCAL_RANK")
    if device_name not in (None, "cpu", "cuda"):
        remedy = "use cuda (each takes its own) or cpu"
        raise PgolfError(f"--device {device_name}: one device for {size} ranks; {remedy}")
    on_cpu = device_name == "cpu" or (device_name is None and not torch.cuda.is_available())
    device = pick_device("cpu" if on_cpu else f"cuda:{local_rank}")
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=_JOINING))
    except (RuntimeError, ValueError) as error:
        raise PgolfError(
            f"rank {rank} of {size} cannot reach the others ({error}); start all of them with torchrun"
        ) from error
    return device, Ranks(rank, size, restarted, device, store)


def launched(name: str, default: int | None = None) -> int:
    """A number that the launcher put into an environment variable; a ``PgolfError`` if there is none."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError as error:
        said = "is not set" if text is None else f"is {text}, not a number"
        raise PgolfError(f"environment variable {name} {said}; start the ranks with torchrun") from error


def _own_room(store: dist.Store, rank: int, size: int) -> dist.Store:
    """The part of the common memory that belongs to this attempt: torchrun keeps what failed attempts wrote.

    The first rank names the room, and answers whoever asks by a word that nobody has used before.
    """
    word = secrets.token_hex(8)
    if rank:
        store.set(f"asks {rank}", word)
        _until(lambda: store.check([f"answer {word}"]), _JOINING.total_seconds())
        room = dist.PrefixStore(store.get(f"answer {word}").decode(), store)
        room.add("inside", 1)
        return room
    room = dist.PrefixStore(word, store)

    def all_inside() -> bool:
        for other in range(1, size):
            if store.check([f"asks {other}"]):
                store.set(f"answer {store.get(f'asks {other}').decode()}", word)
        return room.add("inside", 0) == size - 1

    _until(all_inside, _JOINING.total_seconds())
    return room


def _until(arrived: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not arrived() and time.monotonic() < deadline:
        time.sleep(0.02)
