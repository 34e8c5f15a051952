"""What is to be run: checked before anything starts, and written down to mean the same elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import SCORES
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.folder import LAUNCH, is_trained, saved_recipe
from pgolf.runs.pipeline import job_dataset
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
    """As in --device."""
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

    @property
    def recipe_file(self) -> Path:
        """Where ``write_recipe`` puts the recipe."""
        return self.out / LAUNCH / RECIPE

    def log(self, node: int = 0) -> Path:
        """What the run prints on a node."""
        return self.out / LAUNCH / ("log.txt" if node == 0 else f"log.{node}.txt")

    def write_recipe(self) -> None:
        """Make the run folder with the recipe in it."""
        write_bytes(self.recipe_file, self.recipe.to_toml().encode())

    def arguments(self) -> list[str]:
        """The words after ``pgolf``."""
        if self.command == "run":
            words = ["run", str(self.recipe_file), "--out", str(self.out)]
            words += [word for name in self.scores if self.scores != SCORES for word in ("--score", name)]
            words += [word for step in self.keep for word in ("--keep-step", str(step))]
        else:
            words = ["train", "--recipe", str(self.recipe_file), "--out", str(self.out), "--resume"]
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
    """One job per recipe, in the run folder ``runs/NAME``; writes nothing but a recipe's own corpus.

    Args:
        names: shipped recipes or .toml files.
        overrides: settings for all of them.
        command: "run" or "train".
        runs: folder of the run folders.
        data: data folder for all of them.
        tokenizer: where the data folder holds none.
        device: as in --device.

    Raises:
        PgolfError: a recipe or the data is wrong, two recipes have one name, or a folder holds another run.
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
