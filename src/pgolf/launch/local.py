"""Several runs on this machine: as many at a time as there are places, each in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

import torch

from pgolf.errors import PgolfError
from pgolf.launch.jobs import INTERRUPTED, Child, RunJob
from pgolf.runtime.processes import handling

_POLL_SECONDS = 0.1


class Place(NamedTuple):
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


def local_places(device: str | None, jobs: int | None) -> list[Place]:
    """One place per GPU, or ``jobs`` of them (PgolfError where there are fewer); on the CPU ``jobs`` places,
    or one, that share its cores.
    """
    gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    if device is not None and device.startswith("cuda:"):
        gpus = 1
    if not gpus:
        count = jobs or 1
        threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}
        return [Place("CPU", {} if "OMP_NUM_THREADS" in os.environ else threads)] * count
    if jobs is not None and jobs > gpus:
        reason = f"a run needs a GPU of its own and there are {gpus}"
        raise PgolfError(f"--jobs {jobs}: {reason}; add --device cpu without")
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
    """Run all jobs, as many at a time as there are places; what became of each, in their order.

    A failed one stops no other. SIGINT or SIGTERM asks the running ones to end after their step and starts no
    more; a second one ends them at once. ``ended`` is told what became of a job when it is over.
    """
    queue = _Queue(list(jobs), list(places), say, ended)
    try:
        with handling(queue.interrupt, signal.SIGINT, signal.SIGTERM):
            while queue.advance():
                time.sleep(_POLL_SECONDS)
    finally:
        # Nothing is left running behind an exception.
        for _, _, child, _ in queue.running:
            child.stop()
    return [queue.outcomes.get(job.name) or _outcome(job, "not started") for job in jobs]


@dataclass
class _Queue:
    waiting: list[RunJob]
    free: list[Place]
    say: Callable[[str], None]
    ended: Callable[[Outcome], None]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    running: list[tuple[RunJob, Place, Child, float]] = field(default_factory=list)
    interruptions: int = 0

    def advance(self) -> bool:
        """Collect what has ended, start what can start; whether anything runs or waits after that."""
        for entry in list(self.running):
            job, place, child, started = entry
            if (status := child.poll()) is not None:
                self.running.remove(entry)
                self.free.append(place)
                seconds = time.monotonic() - started
                killed = self.interruptions > 1 and status == -signal.SIGKILL
                if status == 0:
                    self._record(_outcome(job, "done", seconds))
                elif killed or status in INTERRUPTED:
                    self._record(_outcome(job, "interrupted", seconds))
                else:
                    self._record(_outcome(job, "failed", seconds, child.last_words(status)))
        if self.interruptions:
            for _, _, child, _ in self.running:
                child.stop() if self.interruptions == 1 else child.kill()
            return bool(self.running)
        while self.waiting and self.free:
            self._start(self.waiting.pop(0))
        return bool(self.running or self.waiting)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """A signal handler; ``advance`` does the rest."""
        self.interruptions += 1

    def _start(self, job: RunJob) -> None:
        if job.is_finished():
            self._record(_outcome(job, "done before"))
            return
        place = self.free.pop(0)
        environment = place.environment | {"PGOLF_JOB": f"local:{os.getpid()}.{job.name}"}
        words = [sys.executable, "-m", "pgolf", *job.arguments()]
        try:
            job.write_recipe()
            child = Child(words, job.log(), job.folder, environment, detached=True)
        except PgolfError as error:
            self.free.append(place)
            self._record(_outcome(job, "failed", message=str(error)))
            return
        self.running.append((job, place, child, time.monotonic()))
        self.say(f"{job.name}: started on {place.name}, log {job.log()}")

    def _record(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        self.say(f"{outcome.name}: {outcome.state} {outcome.message}".rstrip())
        self.ended(outcome)


def _outcome(job: RunJob, state: str, seconds: float = 0.0, message: str = "") -> Outcome:
    return Outcome(job.name, state, round(seconds, 1), str(job.out), str(job.log()), message)
