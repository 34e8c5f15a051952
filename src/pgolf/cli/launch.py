"""`pgolf launch`: runs as SLURM jobs, or several of them in a row on this machine."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pgolf.cli.app import AsJson, DataFolder, DeviceName, Overrides, TokenizerFile, group, verb
from pgolf.cli.tables import print_columns, print_json
from pgolf.errors import Interrupted, PgolfError

Recipes = Annotated[list[str], Argument(metavar="RECIPE...", help="Shipped names or .toml files.")]
Command = Annotated[str, Option(help="run (the whole job) or train.")]
Runs = Annotated[Path, Option(help="Folder of the run folders; each is named as its recipe.")]

launch = group(
    "launch",
    "Run recipes as SLURM jobs, or several on this machine. Launched again, interrupted runs go on.",
    "pgolf launch local wide.toml deep.toml --data data/web",
    "pgolf launch slurm seed_1232 --time 8:00:00",
)


@verb(
    "slurm",
    "pgolf launch slurm seed_1232 --data data/web --gpus-per-node 8 --cpus 64 --time 4:00:00 --partition gpu",
    "pgolf launch slurm wide.toml deep.toml --data data/web --command train --account lab",
    "pgolf launch slurm quickstart --data data/web --executor local",
    of=launch,
)
def slurm_verb(
    recipes: Recipes,
    command: Command = "run",
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    nodes: Annotated[int, Option(min=1, help="Nodes per job.")] = 1,
    gpus_per_node: Annotated[int, Option(min=0, help="0: on the CPU.")] = 1,
    cpus: Annotated[int, Option(min=1, help="Cores per node.")] = 8,
    memory: Annotated[int | None, Option(min=1, help="GB per node.")] = None,
    time: Annotated[str, Option(help="Limit, as in sbatch: MINUTES, H:MM:SS or D-HH:MM:SS.")] = "4:00:00",
    partition: Annotated[str | None, Option(help="As in sbatch.")] = None,
    account: Annotated[str | None, Option(help="As in sbatch.")] = None,
    qos: Annotated[str | None, Option(help="As in sbatch.")] = None,
    constraint: Annotated[str | None, Option(help="Features of the nodes.")] = None,
    requeue: Annotated[bool, Option(help="Go back into the queue when time is over or pre-empted.")] = True,
    max_timeouts: Annotated[int, Option(min=0, help="How often the time limit may be reached.")] = 20,
    max_restarts: Annotated[
        int, Option(min=0, help="With several GPUs: how often to go on after one process died.")
    ] = 3,
    warning: Annotated[
        int, Option(min=1, help="Seconds before the limit at which the state is saved.")
    ] = 120,
    executor: Annotated[
        str, Option(help="slurm; local tries the job out on this machine, without SLURM.")
    ] = "slurm",
    as_json: AsJson = False,
) -> None:
    """Submit each recipe as a SLURM job (through submitit) that does what `pgolf run` or `pgolf train` does.

    When the time limit is near, or the job is pre-empted, training finishes its step and writes a checkpoint;
    the job goes back into the queue and continues from there. `scancel` ends it for good, with a checkpoint.
    """
    from pgolf.launch.jobs import plan_jobs
    from pgolf.launch.slurm import Resources, submit

    resources = Resources(
        minutes=parse_minutes(time),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus=cpus,
        memory=memory,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        requeue=requeue,
        max_timeouts=max_timeouts,
        max_restarts=max_restarts,
        warning_seconds=warning,
    )
    jobs = plan_jobs(
        recipes, overrides or [], command, runs, data, tokenizer, None if gpus_per_node else "cpu"
    )
    submitted = submit(jobs, resources, executor)
    if as_json:
        print_json({"jobs": submitted})
        return
    rows = [(job["name"], job["id"] or "finished already", job["log"]) for job in submitted]
    print_columns(("run", "job", "log"), rows, f"submitted ({executor})", left=("job", "log"), drop=("log",))


@verb(
    "local",
    "pgolf launch local quickstart wide.toml deep.toml --data data/web",
    "pgolf launch local wide.toml deep.toml --data data/web --device cpu --jobs 2 --command train",
    of=launch,
)
def local_verb(
    recipes: Recipes,
    command: Command = "run",
    jobs: Annotated[
        int | None, Option(min=1, help="Runs at a time; default: one per GPU, or one on the CPU.")
    ] = None,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Run recipes on this machine, one per GPU (or --jobs at a time on the CPU),
    each with its log in its run folder.

    A run that fails does not stop the others; the exit status is 1 then. Ctrl-C lets the running ones finish
    their step; the same command goes on with whatever is not done.
    """
    from pgolf.launch.jobs import local_places, plan_jobs, run_queue
    from pgolf.runtime.device import pick_device
    from pgolf.runtime.progress import tell

    pick_device(device)
    places = local_places(device, jobs)
    planned = plan_jobs(recipes, overrides or [], command, runs, data, tokenizer, device)
    outcomes = run_queue(planned, places, tell)
    if as_json:
        print_json({"runs": [asdict(outcome) for outcome in outcomes]})
    else:
        rows = [(o.name, o.state, f"{o.seconds:,.0f} s", o.message or o.folder) for o in outcomes]
        header = ("run", "state", "time", "folder, or what went wrong")
        print_columns(header, rows, "runs", left=("state", header[-1]), drop=("time",), fold=header[-1:])
    states = {outcome.state for outcome in outcomes}
    if states & {"interrupted", "not started"}:
        raise Interrupted("stopped; the same command goes on")
    if "failed" in states:
        raise typer.Exit(1)


def parse_minutes(text: str) -> int:
    """SLURM's M, M:S, H:M:S, D-H, D-H:M or D-H:M:S in minutes, rounded up; a ``PgolfError`` if none."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise PgolfError(f"--time {text}: not a time limit; use MINUTES, H:MM:SS or D-HH:MM:SS")
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not days and len(parts) < 3:  # No hours.
        parts.insert(0, 0)
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    total = -(-((int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds) // 60)
    if not total:
        raise PgolfError(f"--time {text}: is no time at all; give at least a minute")
    return total
