"""`pgolf submit`: everything a submission needs, checked, in a folder that is written whole or not at all."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pgolf.audit.audit import audit_job
from pgolf.audit.runs import Settings
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes, read_json
from pgolf.runtime.paths import write_error
from pgolf.runtime.progress import Note
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
from pgolf.submit.evidence import Candidate, find_data, in_folder, read_candidate, repacked, verify
from pgolf.submit.texts import summary, write_texts

SCRIPT, READABLE, EVIDENCE = "train_gpt.py", "train_gpt_readable.py", "evidence"
MODES = ("ttt", "sliding")


class Request(NamedTuple):
    """What the user asks for."""

    runs: tuple[Path, ...]
    out: Path
    author: str | None = None
    github_id: str | None = None
    name: str | None = None
    blurb: str | None = None
    track: str = "10min"
    mode: str = "ttt"
    data: Path | None = None
    tokenizer: Path | None = None
    audit: Path | None = None
    """What `pgolf audit --json` printed; None audits here."""
    no_audit: bool = False
    repack: bool = False
    force: bool = False


@dataclass
class Submission:
    """What comes of it."""

    out: Path
    written: bool = False
    complete: bool = False
    """Whether every rule was looked at: a broken one that is quickly found ends the search."""
    items: list[Item] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    code_bytes: int = 0
    total_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether every rule is kept."""
        return all(item.ok for item in self.items)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        items = [vars(item) for item in self.items]
        return vars(self) | {"out": str(self.out), "items": items, "compliant": self.ok}


def submit(request: Request, device: torch.device, note: Note) -> Submission:
    """Build the folder and check the rules; it appears if they are kept, or by force.

    PgolfError where a run, the data or an option is wrong, or the folder exists.
    """
    _check(request)
    runs = [read_candidate(folder, request.mode) for folder in request.runs]
    found = Submission(request.out)
    try:
        request.out.parent.mkdir(parents=True, exist_ok=True)
        room = tempfile.TemporaryDirectory(prefix=f"{hidden_name(request.out)}.", dir=request.out.parent)
    except OSError as error:
        raise write_error(request.out, error) from error
    with room as name:
        folder = Path(name) / request.out.name
        (folder / EVIDENCE).mkdir(parents=True)
        made = _build(request, folder, runs, found, device, note)
        found.figures, found.code_bytes = summary(runs), len(made.packed)
        found.written = found.complete and (found.ok or request.force)
        if found.written:
            recipe = runs[0].recipe
            about = {"author": request.author or "", "github_id": request.github_id or ""}
            about |= {"name": request.name or recipe.name, "blurb": request.blurb or recipe.description}
            write_texts(folder, runs, made, found.items, about, request.track)
            try:
                folder.replace(request.out)
            except OSError as error:
                raise write_error(request.out, error) from error
            sync_folder(request.out.parent)
    return found


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


def _build(
    request: Request, folder: Path, runs: list[Candidate], found: Submission, device: torch.device, note: Note
) -> Bundle:
    """Write script and evidence, and check everything against the files; without force a broken rule is the
    end.

    What is recorded is looked at before anything long is computed. ``runs`` become those of the folder.
    """
    audit = None if request.audit is None else _read_audit(request.audit)
    datasets = [find_data(run, request.data, request.tokenizer) for run in runs]
    note("writing the script")
    made = bundle(runs[0].recipe)
    place, people = folder / EVIDENCE, (request.author, request.github_id)
    is_early, official = request.no_audit or audit is not None, official_item(datasets)

    def recorded(packed: bool) -> list[Item]:
        items = [*recorded_items(runs, made, request.track, people, packed), official]
        return [*items, audit_item(audit, runs[0], datasets[0])] if is_early else items

    def stops() -> bool:
        found.total_bytes = len(made.packed) + max(run.model_bytes for run in runs)
        return not found.ok and not request.force

    if request.repack:
        found.items = recorded(packed=False)
        if stops():
            return made
    for index, (run, dataset) in enumerate(zip(runs, datasets, strict=True)):
        if request.repack:
            note(f"packing and scoring seed {run.seed}")
            runs[index] = repacked(run, dataset, place, len(made.packed), device)
        else:
            runs[index] = _copied(run, place)
    note("verifying the ledgers")
    ledgers = [verify(run, dataset) for run, dataset in zip(runs, datasets, strict=True)]
    found.items = recorded(packed=True)
    found.items += [item for pair in zip(runs, ledgers, strict=True) for item in ledger_items(*pair)]
    if stops():
        return made
    if not is_early:
        subject = (runs[0].artifact, datasets[0].folder, request.tokenizer)
        job = audit_job(*subject, None, request.mode, [], device)
        audit = job.audit(Settings(), None, lambda what, *count: note(f"auditing: {what}", *count)).to_json()
        found.items.append(audit_item(audit, runs[0], datasets[0]))
    if audit is not None:
        write_json(place / "audit.json", audit)
    note("running the script")
    write_bytes(folder / SCRIPT, made.packed)
    write_bytes(folder / READABLE, made.readable.encode())
    of_first = (runs[0], datasets[0], str(device), ledgers[0]["sliding"])
    found.items.append(run_script(folder / SCRIPT, *of_first))
    found.complete = True
    return made


def _copied(run: Candidate, folder: Path) -> Candidate:
    """The run with its files in the evidence folder."""
    copy = in_folder(run, folder)
    write_bytes(copy.artifact, read_bytes(run.artifact))
    for name, ledger in run.ledgers.items():
        write_bytes(copy.ledgers[name], read_bytes(ledger))
    return copy


def _read_audit(path: Path) -> dict[str, Any]:
    """What `pgolf audit --json` printed into a file, with the fields that are read later."""
    found = read_json(path)
    try:
        whole = isinstance(found["ok"], bool) and isinstance(found.get("audited", {}), dict)
        whole &= isinstance(found["subject"], str) and isinstance(found["targets"], int)
        words = [entry[key] for entry in found["findings"] for key in ("condition", "verdict")]
        whole &= all(isinstance(word, str) for word in words)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise PgolfError(f"{path}: not what `pgolf audit --json` prints")
    return dict(found)
