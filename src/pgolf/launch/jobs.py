"""What is to be run, written down to mean the same elsewhere; and a run in a process of its own."""

from __future__ import annotations

import datetime
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import SCORES
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.folder import LAUNCH, is_trained, saved_recipe
from pgolf.runs.pipeline import job_dataset
from pgolf.runtime.paths import write_error
from pgolf.runtime.processes import handling
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

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.out.name

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
            words += [word for name in self.scores if self.scores != SCORES for word in ("--score", name)]
            words += [word for step in self.keep for word in ("--keep-step", str(step))]
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
        return "pack" in result and all(name in result["evaluations"] for name in self.scores)


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


class Child(subprocess.Popen[bytes]):
    """A started process whose output is appended to a log; PgolfError where that cannot be written.

    The ``environment`` is added to this process's own; a ``detached`` one is kept from a Ctrl-C in this
    terminal.
    """

    def __init__(
        self,
        words: list[str],
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        detached: bool = False,
    ) -> None:
        self.log, self._asked = log, False
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("ab")
        except OSError as error:
            raise write_error(log, error) from error
        # SLURM sends SIGUSR2 to all processes of a job; those started here ignore it.
        with output, handling(signal.SIG_IGN, signal.SIGUSR2):
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
                env={**os.environ, **environment},
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
            memory = " (was the memory too small?)" if status == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-status).name}{memory}"
        text = self.log.read_text(errors="replace")[self._log_starts :]
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("pgolf: error: ")]
        return errors[-1].removeprefix("pgolf: error: ") if errors else lines[-1]
