"""`pgolf study`: many runs that answer a question together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pgolf.cli.app import (
    AsJson,
    DataFolder,
    DeviceName,
    TextFiles,
    TokenizerFile,
    ValTextFiles,
    check_data_paths,
    verb,
)
from pgolf.cli.tables import print_columns, print_json, print_result, say
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS

if TYPE_CHECKING:
    from pgolf.launch.jobs import Outcome
    from pgolf.launch.slurm import Resources
    from pgolf.study.analysis import Analysis
    from pgolf.study.cells import Cell
    from pgolf.study.runner import Workplace
    from pgolf.study.spec import Planned, Study

# So many runs are said to be many, in case a grid grew by mistake.
_MANY = 100
# The most important statements come first.
_SHOWN = 12


@verb(
    "study",
    "pgolf study",
    "pgolf study steps --small",
    "pgolf study frontier --small --text train.jsonl.zst --val-text val.jsonl.zst",
    "pgolf study rates.toml --data data/books --out studies/rates --jobs 4 --device cpu",
    "pgolf study ablation --data data/fineweb-sp1024 --dry-run",
    "pgolf study ttt --data data/fineweb-sp1024 --launcher slurm --slurm time=8:00:00 "
    "--slurm gpus-per-node=8",
)
def study_verb(
    name: Annotated[str | None, Argument(metavar="[STUDY]", help="A shipped study or a .toml file.")] = None,
    out: Annotated[
        Path | None, Option("--out", "-o", help="Folder of the study; default: studies/NAME.")
    ] = None,
    small: Annotated[bool, Option("--small", help="The study's version for minutes on a CPU.")] = False,
    data: DataFolder = None,
    text: TextFiles = None,
    val_text: ValTextFiles = None,
    tokenizer: TokenizerFile = None,
    device: DeviceName = None,
    jobs: Annotated[
        int | None, Option(min=1, help="Runs at a time; default: one per GPU, or one on the CPU.")
    ] = None,
    launcher: Annotated[str, Option(help="local or slurm.")] = "local",
    options: Annotated[
        list[str] | None,
        Option("--slurm", metavar="OPTION=VALUE", help="An option of `pgolf launch slurm`; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check everything, show the plan, make nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Do all runs of a study, each with packing and scores, and say what they show. Without STUDY: list them.

    What runs have in common is done once. The same command goes on after an interruption, skips what is
    finished and tries again what failed; the exit status is 1 if a run failed.
    """
    from pgolf.study.spec import load_study, study_titles, usual_folder

    if name is None and (small or out or data or text or dry_run or options or jobs):
        raise PgolfError("name a study; `pgolf study` alone lists those that come with pgolf")
    if name is None:
        known = study_titles()
        print_result(known, as_json, list(known.items()), title="studies")
        return
    from pgolf.data.corpus import data_given
    from pgolf.runtime.device import pick_device
    from pgolf.runtime.progress import tell
    from pgolf.study.runner import Session, Workplace, as_cluster_jobs, compare, is_in_the_queue

    if launcher not in ("local", "slurm"):
        raise PgolfError(f"--launcher {launcher}: unknown; use local or slurm")
    if options and launcher == "local":
        raise PgolfError("--slurm: belongs to --launcher slurm")
    resources, executor = parse_slurm(options or [])
    pick_device(device)
    check_data_paths(data, tokenizer)
    study = load_study(name, small)
    given = data_given(data, text, val_text, tokenizer)
    place = Workplace(out or usual_folder(name, small), given, tokenizer, device)
    found = compare(study, place, make=not dry_run)
    if dry_run:
        _show_plan(study, place, str(found), as_json)
        return
    count = len(study.cells)
    many = "; these are many: --dry-run shows them" if count > _MANY else ""
    tell(f"{count} runs in {place.out}: {found}{many}")
    told = _told(count - len(found.finished))
    if launcher == "slurm":
        cluster = as_cluster_jobs(resources, executor)
        Session(study, place, cluster, told, lambda job: is_in_the_queue(job, executor)).run()
        if left := sum(not place.job(study, cell).is_finished() for cell in study.cells):
            tell(f"{left} of {count} runs are queued, running or to come; the same command goes on with them")
    else:
        from pgolf.study.runner import in_places

        Session(study, place, in_places(device, jobs), told).run()
    _show_results(study, place, as_json)


def _told(total: int) -> Callable[[Planned, Outcome], None]:
    """Says on a terminal what became of each cell."""
    from pgolf.runtime.progress import stderr, tell

    numbers = itertools.count(1)

    def told(cell: Planned, outcome: Outcome) -> None:
        if stderr.is_terminal:
            what = f"{outcome.state}, {outcome.seconds:,.0f} s {outcome.message}".rstrip()
            tell(f"{next(numbers)}/{total} {cell.name}: {what}")

    return told


def _show_plan(study: Study, place: Workplace, found: str, as_json: bool) -> None:
    """The runs in the rounds in which they will start, what they share, and the tokens to train on."""
    from pgolf.study.cells import CELLS
    from pgolf.study.sharing import Progress, Shares

    progress = Progress.read(place.out / CELLS, study.cells)
    pending = [cell for cell in study.cells if not place.job(study, cell).is_finished()]
    rounds = Shares(study.cells).rounds(pending, progress)
    starts = [(number, start) for number, group in enumerate(rounds, 1) for start in group]
    tokens = {start.cell.name: start.trains * start.cell.recipe.train.batch_tokens for _, start in starts}
    alone = sum(cell.recipe.train.steps * cell.recipe.train.batch_tokens for cell in pending)
    begun = {start.cell.name for _, start in starts if start.cell.name in progress.begun}
    if as_json:
        rows = [
            {
                "name": start.cell.name,
                "changes": dict(start.cell.changes),
                "seed": start.cell.seed,
                "round": number,
                "begun": start.cell.name in begun,
                "shares": start.source.describe(start.source.cell.name) if start.source else None,
                "training_tokens": tokens[start.cell.name],
            }
            for number, start in starts
        ]
        print_json({"study": study.file.title, "folder": str(place.out), "found": found, "runs": rows})
        return
    numbers = {cell.name: number for number, cell in enumerate(study.cells, 1)}
    shown = []
    for number, start in starts:
        cell = start.cell
        begins = "where it was" if cell.name in begun else "by itself"
        if start.source and cell.name not in begun:
            begins = start.source.describe(f"run {numbers[start.source.cell.name]}")
        run = (f"{numbers[cell.name]}", cell.label, f"{cell.seed}", f"{number}", begins)
        shown.append((*run, f"{tokens[cell.name]:,}"))
    header = ("run", "cell", "seed", "round", "begins", "tokens to train on")
    drop, fold = ("tokens to train on", "begins", "seed"), ("cell", "begins")
    _print_question(study)
    print_columns(header, shown, found, fold, drop, fold=fold)
    total = f"{len(starts)} runs train on at most {sum(tokens.values()):,} tokens"
    say(f"{total}; without sharing on {alone:,}. They go to {place.out}.")


def _print_question(study: Study) -> None:
    say(study.file.title, "bold")
    if study.file.question:
        say(study.file.question)


def _show_results(study: Study, place: Workplace, as_json: bool) -> None:
    """Print what became of all runs and what they say; exits with status 1 if one failed."""
    from pgolf.study.analysis import analyse
    from pgolf.study.cells import read_cells

    cells = read_cells(place.out)
    found = analyse(cells, study.file.title)
    if as_json:
        print_json(_as_json(study, place, cells, found))
    else:
        _print_results(study, place, cells, found.statements)
    if any(cell.status == "failed" for cell in cells):
        raise typer.Exit(1)


def _print_results(study: Study, place: Workplace, cells: Sequence[Cell], statements: Sequence[str]) -> None:
    from pgolf.study.cells import DIFFERENCES, terms_in

    scores = [name for name in terms_in(cells) if name in EVALUATIONS and name in ("raw", *study.file.scores)]
    rows = []
    for cell in cells:
        found = [f"{cell.scores[name]:.4f}" if name in cell.scores else "" for name in scores]
        size = "" if cell.bytes is None else f"{cell.bytes:,}"
        state = cell.error or ("" if cell.status == "finished" else cell.status)
        rows.append((cell.label, str(cell.seed), *found, size, state))
    header = ("cell", "seed", *(EVALUATIONS[name].label for name in scores), "bytes", "went wrong")
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    # The last score is the one that counts.
    drop = ["bytes", *header[2 : 1 + len(scores)], "seed"]
    _print_question(study)
    title = f"runs in {place.out}"
    print_columns(header, rows, title, ("went wrong",), drop, fold=("cell", "went wrong"))
    say(DIFFERENCES)
    for line in statements[:_SHOWN]:
        say(f"* {line}")
    if len(statements) > _SHOWN:
        say(f"* and {len(statements) - _SHOWN} more, which --json prints")
    say(f"The runs are in {place.out / 'cells'}; `pgolf report {place.out}` shows all tables and curves.")


def _as_json(study: Study, place: Workplace, cells: Sequence[Cell], found: Analysis) -> dict[str, Any]:
    return {
        "study": study.file.title,
        "folder": str(place.out),
        "cells": [
            {
                **{key: getattr(cell, key) for key in ("name", "seed", "status", "error", "scores", "bytes")},
                "changes": dict(cell.changes),
                "folder": str(cell.folder),
            }
            for cell in cells
        ],
        "statements": list(found.statements),
        "tables": {
            table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for table in found.tables
        },
    }


def parse_slurm(options: Sequence[str]) -> tuple[Resources, str]:
    """Options of `pgolf launch slurm`, as NAME=VALUE, and the executor; a ``PgolfError`` if one is wrong."""
    from pgolf.cli.launch import parse_minutes
    from pgolf.launch.slurm import Resources
    from pgolf.recipe.files import nearest

    numbers = {"nodes": "nodes", "gpus-per-node": "gpus_per_node", "cpus": "cpus", "memory": "memory"}
    numbers |= {"max-timeouts": "max_timeouts", "max-restarts": "max_restarts", "warning": "warning_seconds"}
    names = ("partition", "account", "qos", "constraint")
    known = [*numbers, *names, "time", "executor"]
    found: dict[str, Any] = {"minutes": 240, "gpus_per_node": 1, "cpus": 8}
    executor = "slurm"
    for option in options:
        name, _, value = option.partition("=")
        if name not in known or not value:
            raise PgolfError(
                f"--slurm {option}: unknown{nearest(name, known)}; NAME=VALUE with {', '.join(known)}"
            )
        if name in numbers and not value.isdecimal():
            raise PgolfError(f"--slurm {option}: {name} is a number")
        if name == "executor":
            executor = value
        elif name == "time":
            found["minutes"] = parse_minutes(value)
        else:
            found[numbers.get(name, name)] = int(value) if name in numbers else value
    return Resources(**found), executor
