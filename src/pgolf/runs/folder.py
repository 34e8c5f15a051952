"""The run folder: created once, continued if asked, never mixed up.

recipe.toml             the resolved recipe
provenance.json         versions, command, data; every session that worked on the run, with its job
tokenizer.model         the data's tokenizer
metrics.jsonl           losses and validations, step by step
tensorboard/            the same as event files, if train.tensorboard is set
wandb/                  the same as Weights & Biases keeps it, if train.wandb is set
checkpoint.safetensors  the state to resume from; removed once the weights are saved and scored
raw.safetensors         the last weights
model.safetensors       the averaged weights: what is packed and scored
result.json             steps, time and scores
ledger.float.jsonl      what every range of the held-out text cost the averaged weights
artifact.pgolf          of `pgolf run` or `pgolf pack RUN`; the files below are of it
ledger.*.jsonl          as above, of the other scores; by `pgolf run` or `pgolf eval RUN`
audit.json              what the audit found; by `pgolf run` or `pgolf audit RUN`
report.html, report.md  the report; by `pgolf run`, the page also by `pgolf report RUN`
snapshots/              checkpoints after steps that `pgolf run --keep-step` named
launch/                 logs and job files of `pgolf launch`
cell.json               of a study's run: which cell it is
.lock                   there while a process works on the run
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.data.dataset import TOKENIZER, Dataset
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runtime.environment import environment
from pgolf.runtime.exclusive import working_in
from pgolf.runtime.files import read_json
from pgolf.runtime.locks import LOCK
from pgolf.runtime.run_files import CHECKPOINT, MODEL, PROVENANCE, RECIPE, flattened
from pgolf.runtime.team import SOLO, Team
from pgolf.runtime.writing import write_bytes, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pgolf.train.run import Run


def provenance(dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """The environment, the command and the data of a run, and its first session, as JSON values."""
    first = session()
    return {
        "started": first["started"],
        "command": first["command"],
        "environment": environment(device),
        "data": {
            "folder": str(dataset.folder.resolve()),
            "tokenizer_sha256": dataset.tokenizer.digest,
            "fingerprint": dataset.fingerprint(),
        },
        "sessions": [first],
    }


def session() -> dict[str, Any]:
    """One process that works on a run: when, by which command, where and as which job, as JSON values."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"started": now, "command": sys.argv, "host": socket.gethostname()}
    return found | ({"job": job} if (job := scheduled_job()) else {})


def scheduled_job() -> dict[str, Any]:
    """Which job of a scheduler this process is part of: scheduler, id, restarts, nodes; empty if of none.

    ``pgolf launch`` names its jobs in PGOLF_JOB, as SCHEDULER:ID; SLURM names all of its own.
    """
    scheduler, _, number = os.environ.get("PGOLF_JOB", "").partition(":")
    slurm = os.environ.get("SLURM_JOB_ID")
    if not number and slurm:
        scheduler, number = "slurm", slurm
    if scheduler != "slurm":
        return {"scheduler": scheduler, "id": number} if number else {}
    return {
        "scheduler": scheduler,
        "id": number,
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
    }


LAUNCH, CELL = "launch", "cell.json"


def saved_recipe(folder: Path) -> Recipe | None:
    """The recipe of an existing run folder, or None where there is none."""
    path = folder / RECIPE
    return load_recipe(str(path)) if path.is_file() else None


@contextlib.contextmanager
def writing(path: Path | None, team: Team = SOLO) -> Iterator[None]:
    """Work on a file that may lie in a run folder; PgolfError where another process works on that run."""
    parents = [] if path is None else path.absolute().parents
    run = next((folder for folder in parents if (folder / RECIPE).is_file()), None)
    with contextlib.nullcontext() if run is None else working_in(run, team):
        yield


def open_run(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
    *,
    initial: dict[str, Tensor] | None = None,
    resume: bool = False,
    team: Team = SOLO,
) -> Run:
    """Prepare a folder for training and return the run, positioned where it has to go on.

    A team that was restarted resumes without being told to. PgolfError where the folder holds another run, or
    one that ``resume`` was not given for, or another process works on this run. It may, and is noticed, again
    as soon as this returns; ``working_in`` keeps it away for longer.
    """
    from pgolf.train.run import Run  # Whoever only looks at a folder needs no torch.

    resume = resume or team.restarted
    with working_in(folder, team):
        previous = saved_recipe(folder)
        if problem := _why_not(folder, recipe, previous, resume):
            raise PgolfError(f"{folder}: {problem}")
        # Bad data shows here, before anything is written.
        run = Run(recipe, dataset, folder, device, initial, resume, team)

        def begin() -> None:
            write_json(folder / PROVENANCE, provenance(dataset, device) | {"ranks": team.size})
            # So that a model of this run can be used without its data.
            write_bytes(folder / TOKENIZER, dataset.tokenizer.content)
            # Written last: a folder with a recipe is a run that can be continued.
            write_bytes(folder / RECIPE, recipe.to_toml().encode())

        team.first(begin if previous is None else lambda: record_session(folder))
        return run


def _why_not(folder: Path, recipe: Recipe, previous: Recipe | None, resume: bool) -> str | None:
    if previous is None:
        other = _holds_something_else(folder)
        return "is not empty and holds no run; choose another --out" if other else None
    if is_trained(folder):
        return f"training is already finished; {how_to_go_on(folder)}"
    if not resume:
        return "holds a run already; add --resume to continue it, or choose another --out"
    return None if previous == recipe else f"was started with {other_recipe(folder, previous, recipe)}"


def other_recipe(folder: Path, previous: Recipe, recipe: Recipe) -> str:
    """In which keys a run's recipe is another one, and what to do."""
    old, new = (flattened(each.model_dump(mode="json")) for each in (previous, recipe))
    keys = [key for key in new if old.get(key) != new[key]]
    some = f"{', '.join(keys[:3])}{' and more' if len(keys) > 3 else ''} in {folder / RECIPE}"
    remedy = how_to_go_on(folder) if is_trained(folder) else "choose another --out"
    return f"another recipe (see {some}); {remedy}"


def how_to_go_on(folder: Path) -> str:
    """What to do with a finished run that is to be trained further."""
    return f"choose another --out; with --init {folder} training starts from its weights"


def record_session(folder: Path) -> None:
    """Note in the run's provenance that this process goes on with it."""
    made = read_json(folder / PROVENANCE)
    write_json(folder / PROVENANCE, made | {"sessions": [*made.get("sessions", []), session()]})


def _holds_something_else(folder: Path) -> bool:
    # A run that was killed in its first moment leaves its lock, provenance and tokenizer, or temporary files.
    ours = PROVENANCE, TOKENIZER
    return folder.is_dir() and any(
        not any(name in path.name for name in ours)
        and not path.name.startswith(LOCK)
        and path.name not in (LAUNCH, CELL)
        for path in folder.iterdir()
    )


def is_trained(folder: Path) -> bool:
    """Whether training in this folder came to its end: the weights are saved, scored and recorded.

    Before that there is a checkpoint, and a resumed run goes on from it. Where the disk had no room for that
    one, the weights are saved and recorded, and not scored.
    """
    return (folder / MODEL).is_file() and not (folder / CHECKPOINT).is_file()
