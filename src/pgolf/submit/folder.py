"""`pgolf submit`: everything a submission needs, checked, in one folder that is written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pgolf.audit.job import audit_job
from pgolf.audit.settings import Settings
from pgolf.errors import PgolfError
from pgolf.files import read_json, sync_folder, write_bytes, write_error, write_json
from pgolf.submit.bundle import Bundle, bundle
from pgolf.submit.checklist import TRACKS, Item, checklist, run_script
from pgolf.submit.evidence import RunRecord, find_data, read_run, repacked, verify
from pgolf.submit.texts import readme, requirements, submission, summary, training_log

SCRIPT, READABLE, EVIDENCE = "train_gpt.py", "train_gpt_readable.py", "evidence"
MODES = ("ttt", "sliding")


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    runs: tuple[Path, ...]
    out: Path
    author: str | None = None
    github_id: str | None = None
    name: str | None = None
    blurb: str | None = None
    track: str = "10min"
    mode: str = "ttt"
    """The evaluation that counts: ttt or sliding."""
    data: Path | None = None
    tokenizer: Path | None = None
    audit: Path | None = None
    """What `pgolf audit --json` printed; None audits here."""
    no_audit: bool = False
    repack: bool = False
    force: bool = False


@dataclass(frozen=True)
class Submission:
    """What came of it."""

    out: Path
    written: bool
    items: tuple[Item, ...]
    figures: dict[str, float]
    code_bytes: int
    total_bytes: int

    @property
    def ok(self) -> bool:
        """Whether every rule is kept."""
        return all(item.ok for item in self.items)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        items = [vars(item) for item in self.items]
        return vars(self) | {"out": str(self.out), "items": items, "compliant": self.ok}


def submit(request: Request, device: torch.device, note: Callable[[str], None]) -> Submission:
    """Build the folder and check the rules; it appears if they are kept, or by force.

    Raises:
        PgolfError: a run, the data or an option is wrong, or the folder exists.
    """
    _check(request)
    runs = [read_run(folder, request.mode) for folder in request.runs]
    try:
        request.out.parent.mkdir(parents=True, exist_ok=True)
        room = tempfile.TemporaryDirectory(prefix=f".{request.out.name}.", dir=request.out.parent)
    except OSError as error:
        raise write_error(request.out, error) from error
    with room as name:
        folder = Path(name) / request.out.name
        (folder / EVIDENCE).mkdir(parents=True)
        made, items, runs = _build(request, folder, runs, device, note)
        ok = all(item.ok for item in items)
        if ok or request.force:
            _write_texts(request, folder, runs, made, items)
            shutil.copytree(folder, Path(name) / "whole")
            (Path(name) / "whole").replace(request.out)
            sync_folder(request.out.parent)
        total = len(made.packed) + max(run.artifact.stat().st_size for run in runs)
        return Submission(request.out, ok or request.force, tuple(items), summary(runs), len(made.packed), total)


def _check(request: Request) -> None:
    if request.track not in TRACKS:
        raise PgolfError(f"--track {request.track}: unknown; use {' or '.join(TRACKS)}")
    if request.mode not in MODES:
        raise PgolfError(f"--mode {request.mode}: unknown; use {' or '.join(MODES)}")
    if request.no_audit and request.audit is not None:
        raise PgolfError("--no-audit and --audit exclude each other")
    if request.out.exists():
        raise PgolfError(f"{request.out}: exists already; choose another folder")
    if len({folder.resolve() for folder in request.runs}) < len(request.runs):
        raise PgolfError("the same run is named twice; a submission needs runs of different seeds")


def _build(
    request: Request, folder: Path, runs: Sequence[RunRecord], device: torch.device, note: Callable[[str], None]
) -> tuple[Bundle, list[Item], list[RunRecord]]:
    """Write script and evidence, and check everything against the files."""
    note("writing the script")
    made = bundle(runs[0].recipe)
    write_bytes(folder / SCRIPT, made.packed)
    write_bytes(folder / READABLE, made.readable.encode())
    datasets = [find_data(run, request.data, request.tokenizer) for run in runs]
    taken: list[RunRecord] = []
    for run, dataset in zip(runs, datasets, strict=True):
        note(f"{'packing and scoring' if request.repack else 'collecting'} seed {run.seed}")
        place = folder / EVIDENCE
        if request.repack:
            taken.append(repacked(run, dataset, place, len(made.packed), device, request.mode))
        else:
            taken.append(_copied(run, place, request.mode))
    note("verifying the ledgers")
    ledgers = [verify(run, dataset) for run, dataset in zip(taken, datasets, strict=True)]
    audit = None if request.no_audit else _audit(request, taken[0], datasets[0].folder, device, note)
    if audit is not None:
        write_json(folder / EVIDENCE / "audit.json", audit)
    note("running the script")
    shown = run_script(folder / SCRIPT, taken[0], datasets[0], str(device))
    people = (request.author, request.github_id)
    return made, checklist(taken, ledgers, made, request.track, people, audit, shown), taken


def _copied(run: RunRecord, folder: Path, mode: str) -> RunRecord:
    """The run with its files in the evidence folder."""
    artifact = folder / f"artifact_seed{run.seed}.pgolf"
    ledger, sliding = (folder / f"ledger_{name}_seed{run.seed}.jsonl" for name in (mode, "sliding"))
    for source, target in ((run.artifact, artifact), (run.ledger, ledger), (run.sliding_ledger, sliding)):
        write_bytes(target, source.read_bytes())
    return replace(run, artifact=artifact, ledger=ledger, sliding_ledger=sliding)


def _audit(
    request: Request, run: RunRecord, data: Path, device: torch.device, note: Callable[[str], None]
) -> dict[str, Any]:
    if request.audit is not None:
        found = read_json(request.audit)
        if not isinstance(found, dict) or not isinstance(found.get("ok"), bool) or "findings" not in found:
            raise PgolfError(f"{request.audit}: not what `pgolf audit --json` prints")
        return found
    job = audit_job(run.artifact, data, request.tokenizer, None, request.mode, [], device)
    return job.audit(Settings(), None, lambda what: note(f"auditing: {what}")).to_json()


def _write_texts(
    request: Request, folder: Path, runs: Sequence[RunRecord], made: Bundle, items: Sequence[Item]
) -> None:
    recipe = runs[0].recipe
    about = {
        "author": request.author or "",
        "github_id": request.github_id or "",
        "name": request.name or recipe.name,
        "blurb": request.blurb or recipe.description,
    }
    write_bytes(folder / "README.md", readme(runs, made, items, about, request.track).encode())
    write_json(folder / "submission.json", submission(runs, made, items, about, request.track))
    write_bytes(folder / "requirements.txt", requirements(made).encode())
    write_bytes(folder / "recipe.toml", recipe.to_toml().encode())
    for run in runs:
        write_bytes(folder / f"train_seed{run.seed}.log", training_log(run).encode())
