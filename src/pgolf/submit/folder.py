"""`pgolf submit`: everything a submission needs, checked, in one folder that is written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pgolf.audit.job import audit_job
from pgolf.audit.settings import Settings
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes, read_json
from pgolf.runtime.paths import write_error
from pgolf.runtime.terminal import plain
from pgolf.runtime.writing import hidden_name, sync_folder, write_bytes, write_json
from pgolf.submit.bundle import Bundle, bundle
from pgolf.submit.checklist import (
    TRACKS,
    Item,
    audit_item,
    ledger_items,
    official_item,
    recorded_items,
    run_script,
)
from pgolf.submit.evidence import Candidate, find_data, read_candidate, repacked, verify
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
    complete: bool
    """Whether every rule was looked at: a broken one that is quickly found ends the search."""
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
    runs = [read_candidate(folder, request.mode) for folder in request.runs]
    try:
        request.out.parent.mkdir(parents=True, exist_ok=True)
        room = tempfile.TemporaryDirectory(prefix=f"{hidden_name(request.out)}.", dir=request.out.parent)
    except OSError as error:
        raise write_error(request.out, error) from error
    with room as name:
        folder = Path(name) / request.out.name
        (folder / EVIDENCE).mkdir(parents=True)
        draft = _build(request, folder, runs, device, note)
        written = draft.complete and (draft.ok or request.force)
        if written:
            _write_texts(request, folder, draft)
            try:
                folder.replace(request.out)
            except OSError as error:
                raise write_error(request.out, error) from error
            sync_folder(request.out.parent)
    return Submission(
        out=request.out,
        written=written,
        complete=draft.complete,
        items=tuple(draft.items),
        figures=summary(draft.runs),
        code_bytes=len(draft.made.packed),
        total_bytes=draft.total_bytes,
    )


def _check(request: Request) -> None:
    if request.track not in TRACKS:
        raise PgolfError(f"--track {request.track}: unknown; use {' or '.join(TRACKS)}")
    if request.mode not in MODES:
        raise PgolfError(f"--mode {request.mode}: unknown; use {' or '.join(MODES)}")
    if request.no_audit and request.audit is not None:
        raise PgolfError("--no-audit and --audit exclude each other")
    if request.repack and request.audit is not None:
        raise PgolfError("--audit with --repack: what is packed again was not audited; leave --audit out")
    if request.out.exists():
        raise PgolfError(f"{request.out}: exists already; choose another folder")
    if len({folder.resolve() for folder in request.runs}) < len(request.runs):
        raise PgolfError("the same run is named twice; a submission needs runs of different seeds")


@dataclass
class _Draft:
    """A folder in the making."""

    made: Bundle
    runs: list[Candidate]
    items: list[Item] = field(default_factory=list)
    complete: bool = False
    """Whether every rule was looked at."""
    total_bytes: int = 0

    @property
    def ok(self) -> bool:
        return all(item.ok for item in self.items)


def _build(
    request: Request,
    folder: Path,
    runs: Sequence[Candidate],
    device: torch.device,
    note: Callable[[str], None],
) -> _Draft:
    """Write script and evidence, and check everything against the files; without force a broken rule is the
    end.

    What is recorded is looked at before anything long is computed.
    """
    given = None if request.audit is None else _read_audit(request.audit)
    datasets = [find_data(run, request.data, request.tokenizer) for run in runs]
    note("writing the script")
    made = bundle(runs[0].recipe)
    draft, place, people = _Draft(made, list(runs)), folder / EVIDENCE, (request.author, request.github_id)
    early, official = request.no_audit or given is not None, official_item(datasets)

    def look(packed: bool) -> list[Item]:
        items = [*recorded_items(draft.runs, made, request.track, people, packed), official]
        return [*items, audit_item(given, draft.runs[0], datasets[0])] if early else items

    def stops() -> bool:
        draft.total_bytes = len(made.packed) + max(run.artifact.stat().st_size for run in draft.runs)
        return not draft.ok and not request.force

    if request.repack:
        draft.items = look(packed=False)
        if stops():
            return draft
    for index, (run, dataset) in enumerate(zip(runs, datasets, strict=True)):
        if request.repack:
            note(f"packing and scoring seed {run.seed}")
            draft.runs[index] = repacked(run, dataset, place, len(made.packed), device, request.mode)
        else:
            draft.runs[index] = _copied(run, place, request.mode)
    note("verifying the ledgers")
    ledgers = [verify(run, dataset) for run, dataset in zip(draft.runs, datasets, strict=True)]
    draft.items = look(packed=True)
    draft.items += [
        item for run, found in zip(draft.runs, ledgers, strict=True) for item in ledger_items(run, found)
    ]
    if stops():
        return draft
    first, dataset = draft.runs[0], datasets[0]
    if not early:
        given = _audit(first, dataset.folder, request, device, note)
        draft.items.append(audit_item(given, first, dataset))
    if given is not None:
        write_json(place / "audit.json", given)
    note("running the script")
    write_bytes(folder / SCRIPT, made.packed)
    write_bytes(folder / READABLE, made.readable.encode())
    draft.items.append(run_script(folder / SCRIPT, first, dataset, str(device), ledgers[0]["sliding"]))
    draft.complete = True
    return draft


def _copied(run: Candidate, folder: Path, mode: str) -> Candidate:
    """The run with its files in the evidence folder."""
    artifact = folder / f"artifact_seed{run.seed}.pgolf"
    ledger, sliding = (folder / f"ledger_{name}_seed{run.seed}.jsonl" for name in (mode, "sliding"))
    for source, target in ((run.artifact, artifact), (run.ledger, ledger), (run.sliding_ledger, sliding)):
        write_bytes(target, read_bytes(source))
    return replace(run, artifact=artifact, ledger=ledger, sliding_ledger=sliding)


def _read_audit(path: Path) -> dict[str, Any]:
    """What `pgolf audit --json` printed into a file, with the fields that are read later."""
    found = read_json(path)
    try:
        whole = isinstance(found["ok"], bool) and isinstance(found.get("audited", {}), dict)
        whole &= isinstance(found["subject"], str) and isinstance(found["targets"], int)
        whole &= all(
            isinstance(entry[key], str) for entry in found["findings"] for key in ("condition", "verdict")
        )
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise PgolfError(f"{path}: not what `pgolf audit --json` prints")
    return dict(found)


def _audit(
    run: Candidate, data: Path, request: Request, device: torch.device, note: Callable[[str], None]
) -> dict[str, Any]:
    job = audit_job(run.artifact, data, request.tokenizer, None, request.mode, [], device)
    return job.audit(Settings(), None, lambda what: note(f"auditing: {what}")).to_json()


def _write_texts(request: Request, folder: Path, draft: _Draft) -> None:
    runs, made, items = draft.runs, draft.made, draft.items
    recipe = runs[0].recipe
    about = {
        "author": request.author or "",
        "github_id": request.github_id or "",
        "name": request.name or recipe.name,
        "blurb": request.blurb or recipe.description,
    }
    text = plain(readme(runs, made, items, about, request.track), keep="\n\t")
    write_bytes(folder / "README.md", text.encode())
    write_json(folder / "submission.json", submission(runs, made, items, about, request.track))
    write_bytes(folder / "requirements.txt", requirements(made).encode())
    write_bytes(folder / "recipe.toml", recipe.to_toml().encode())
    for run in runs:
        write_bytes(folder / f"train_seed{run.seed}.log", plain(training_log(run), keep="\n\t").encode())
