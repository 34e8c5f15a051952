"""Runs in processes of their own: what is to be run, a process that is asked to stop, a queue of them."""

from __future__ import annotations

import datetime
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import SCORES, evaluation_names
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.folder import LAUNCH, is_trained, saved_recipe
from pgolf.runs.pipeline import job_dataset
from pgolf.runtime.paths import write_error
from pgolf.runtime.processes import cores, handling
from pgolf.runtime.run_files import RECIPE, read_result
from pgolf.runtime.writing import write_bytes

COMMANDS = ("run", "train")


@dataclass(frozen=True)
class RunJob:
    """One run; all paths are absolute. Started again, it goes on where it was interrupted."""

    recipe: Recipe
    """Resolved: what is submitted is what runs, even if a file is edited in between."""
    command: str
    """"run" (the whole job) or "train"."""
    out: Path
    """The run folder."""
    data: Path | None
    """Data folder; None for the recipe's own corpus."""
    tokenizer: Path | None
    device: str | None
    folder: Path
    """Working folder."""
    scores: tuple[str, ...] = SCORES
    """Of "run": which evaluations to make."""
    keep: tuple[int, ...] = ()
    """Of "run": steps after which the checkpoint stays."""
    audit: bool = True
    """Of "run": whether it ends with an audit, and scores text again for its report."""

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.out.name

    @property
    def wanted(self) -> list[str]:
        """Its evaluations, without that of a memory where the recipe has none."""
        made = evaluation_names(self.recipe.memory.enabled)
        return [name for name in self.scores if name in made]

    def log(self, node: int = 0) -> Path:
        """What the run prints on a node."""
        return self.out / LAUNCH / ("log.txt" if node == 0 else f"log.{node}.txt")

    def write_recipe(self) -> None:
        """Make the run folder with the recipe in it."""
        write_bytes(self.out / LAUNCH / RECIPE, self.recipe.to_toml().encode())

    def arguments(self) -> list[str]:
        """The words after ``pgolf``."""
        recipe = str(self.out / LAUNCH / RECIPE)
        if self.command == "run":
            words = ["run", recipe, "--out", str(self.out)]
            words += [word for name in self.wanted if self.scores != SCORES for word in ("--score", name)]
            words += [word for step in self.keep for word in ("--keep-step", str(step))]
            words += [] if self.audit else ["--no-audit"]
        else:
            words = ["train", "--recipe", recipe, "--out", str(self.out), "--resume"]
        options = {"--data": self.data, "--tokenizer": self.tokenizer, "--device": self.device}
        given = [(name, str(value)) for name, value in options.items() if value is not None]
        return words + [word for pair in given for word in pair]

    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        if self.command == "train" or not is_trained(self.out):
            return is_trained(self.out)
        result = read_result(self.out)
        if result is None or not (self.out / "report.md").is_file():
            return False
        return "pack" in result and all(name in result["evaluations"] for name in self.wanted)


def plan_jobs(
    names: Sequence[str],
    overrides: Sequence[str],
    command: str,
    runs: Path,
    data: Path | None,
    tokenizer: Path | None,
    device: str | None,
) -> list[RunJob]:
    """One job ("run" or "train") per shipped recipe or .toml file, with the same overrides and data, in the
    run folder ``runs/NAME``; writes nothing but a recipe's own corpus.

    PgolfError where a recipe or the data is wrong, two recipes have one name, or a folder holds another run.
    """
    if command not in COMMANDS:
        raise PgolfError(f"--command {command}: unknown; use {' or '.join(COMMANDS)}")
    places = data and data.absolute(), tokenizer and tokenizer.absolute(), device, Path.cwd()
    jobs: list[RunJob] = []
    for name in names:
        recipe = load_recipe(name, overrides)
        out = (runs / recipe.name).absolute()
        if any(job.out == out for job in jobs):
            raise PgolfError(f"{name}: a second recipe of the name {recipe.name}; give it a name of its own")
        if saved_recipe(out) not in (None, recipe):
            raise PgolfError(f"{out}: holds a run of another recipe; choose another --runs")
        # Here and not in the jobs: mistakes show at once, and no two jobs prepare the same corpus.
        job_dataset(recipe, data, tokenizer)
        jobs.append(RunJob(recipe, command, out, *places))
    return jobs


# Stopped after a step (130), or by the signal itself where there is no step to finish.
INTERRUPTED = (130, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGINT)
_SIGKILL = 9  # Not in ``signal`` on Windows.


class Child(subprocess.Popen[bytes]):
    """A started process whose output is appended to a log; PgolfError where that cannot be written.

    The ``variables`` are added to this process's own; a ``detached`` one is kept from this terminal's Ctrl-C.
    """

    def __init__(
        self, words: list[str], log: Path, folder: Path, variables: Mapping[str, str], detached: bool = False
    ) -> None:
        self.log, self._asked = log, False
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("ab")
        except OSError as error:
            raise write_error(log, error) from error
        # SLURM sends SIGUSR2 to all processes of a job; those started here ignore it. Windows has none.
        ignored = [signal.SIGUSR2] if hasattr(signal, "SIGUSR2") else []
        with output, handling(signal.SIG_IGN, *ignored):
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self._log_starts = len(log.read_text(errors="replace"))
            output.write(os.fsencode(f"== {now} {shlex.join(words)}\n"))
            output.flush()
            super().__init__(
                words,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
                start_new_session=detached,
            )

    def stop(self) -> None:
        """Ask it, once, to finish its step, write a checkpoint and end."""
        if not self._asked:
            self._asked = True
            self.terminate()

    def last_words(self, status: int) -> str:
        """Why it failed: the signal that ended it, its error, or else the last line of its log."""
        if status < 0:
            memory = " (was the memory too small?)" if status == -_SIGKILL else ""
            return f"ended by {signal.Signals(-status).name}{memory}"
        text = self.log.read_text(errors="replace")[self._log_starts :]
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("pgolf: error: ")]
        return errors[-1].removeprefix("pgolf: error: ") if errors else lines[-1]


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
        threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
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
                killed = self.interruptions > 1 and status == -_SIGKILL
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
