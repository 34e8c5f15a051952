"""Several runs on this machine: as many at a time as there are places, each in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import torch

from pgolf.errors import PgolfError
from pgolf.launch.child import INTERRUPTED, Child
from pgolf.launch.jobs import RunJob

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Place:
    """Where one run at a time can be: a name, and the environment variables that keep a run there."""

    name: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    name: str
    state: str
    """"done", "done before", "failed", "interrupted" or "not started"."""
    seconds: float
    folder: str
    log: str
    message: str = ""
    """Why it failed."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def local_places(device: str | None, jobs: int | None) -> list[Place]:
    """One place per GPU, or ``jobs`` of them; on the CPU ``jobs`` places (one by default) that share its
    cores.

    Raises:
        PgolfError: more jobs than GPUs.
    """
    gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    if device is not None and device.startswith("cuda:"):
        gpus = 1
    if not gpus:
        cores = len(os.sched_getaffinity(0))
        threads = (
            {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // (jobs or 1)))}
        )
        return [Place("CPU", threads) for _ in range(jobs or 1)]
    if jobs is not None and jobs > gpus:
        raise PgolfError(
            f"--jobs {jobs}: a run needs a GPU of its own and there are {gpus}; add --device cpu without"
        )
    if device is not None and ":" in device:
        return [Place(device, {})]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) >= gpus and visible != [""] else [str(index) for index in range(gpus)]
    return [Place(f"GPU {name}", {"CUDA_VISIBLE_DEVICES": name}) for name in names[: jobs or gpus]]


def run_queue(
    jobs: Sequence[RunJob],
    places: Sequence[Place],
    say: Callable[[str], None],
    ended: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run all jobs in their order, as many at a time as there are places; one that fails does not stop the
    others.

    SIGINT or SIGTERM asks the running ones to end after their step and starts no more; a second one ends them
    at once. ``ended`` is told what became of a job when it is over.

    Returns:
        What became of each job, in their order.
    """
    queue = _Queue(jobs, places, say, ended)
    before = {number: signal.signal(number, queue.interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while queue.advance():
            time.sleep(_POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        queue.end()
    return [queue.outcomes.get(job.name) or _outcome(job, "not started") for job in jobs]


class _Queue:
    def __init__(
        self,
        jobs: Sequence[RunJob],
        places: Sequence[Place],
        say: Callable[[str], None],
        ended: Callable[[Outcome], None],
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._waiting, self._free, self._say, self._ended = list(jobs), list(places), say, ended
        self._running: list[tuple[RunJob, Place, Child, float]] = []
        self._interruptions = 0

    def advance(self) -> bool:
        """Collect what has ended, start what can start; whether anything runs or waits after that."""
        for entry in list(self._running):
            job, place, child, started = entry
            if (status := child.status()) is not None:
                self._running.remove(entry)
                self._free.append(place)
                killed = self._interruptions > 1 and status == -signal.SIGKILL
                self._record(_ended(job, child, status, time.monotonic() - started, killed))
        if self._interruptions:
            for _, _, child, _ in self._running:
                child.stop() if self._interruptions == 1 else child.kill()
            return bool(self._running)
        while self._waiting and self._free:
            self._start(self._waiting.pop(0))
        return bool(self._running or self._waiting)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """A signal handler; ``advance`` does the rest."""
        self._interruptions += 1

    def end(self) -> None:
        """Leave nothing running behind an exception."""
        for _, _, child, _ in self._running:
            child.stop()

    def _start(self, job: RunJob) -> None:
        if job.is_finished():
            self._record(_outcome(job, "done before"))
            return
        place = self._free.pop(0)
        environment = place.environment | {"PGOLF_JOB": f"local:{os.getpid()}.{job.name}"}
        words = [sys.executable, "-m", "pgolf", *job.arguments()]
        try:
            job.write_recipe()
            child = Child(words, job.log(), job.folder, environment, detached=True)
        except PgolfError as error:
            self._free.append(place)
            self._record(_outcome(job, "failed", message=str(error)))
            return
        self._running.append((job, place, child, time.monotonic()))
        self._say(f"{job.name}: started on {place.name}, log {job.log()}")

    def _record(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        self._say(f"{outcome.name}: {outcome.state} {outcome.message}".rstrip())
        self._ended(outcome)


def _ended(job: RunJob, child: Child, status: int, seconds: float, killed: bool) -> Outcome:
    if status == 0:
        return _outcome(job, "done", seconds)
    if killed or status in INTERRUPTED:
        return _outcome(job, "interrupted", seconds)
    return _outcome(job, "failed", seconds, child.last_words(status))


def _outcome(job: RunJob, state: str, seconds: float = 0.0, message: str = "") -> Outcome:
    return Outcome(job.name, state, round(seconds, 1), str(job.out), str(job.log()), message)
