"""`pgolf report` of a run: find out what there is, score its text again if asked, write one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pgolf.compress.weights import Weights, load_weights
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.data.places import recorded_data
from pgolf.errors import PgolfError
from pgolf.generate.model import Model, sample_texts
from pgolf.report.content import Report, Samples, Section
from pgolf.report.html import html_page
from pgolf.report.markdown import markdown_page
from pgolf.report.pieces import pieces_of
from pgolf.report.run_report import run_report
from pgolf.report.targets import score_targets
from pgolf.report.text_analysis import text_section, visible
from pgolf.runs.records import RunRecord, read_run
from pgolf.runtime.progress import counting
from pgolf.runtime.run_files import ARTIFACT, MODEL
from pgolf.runtime.writing import check_writable, write_bytes

FORMATS = ("html", "md")
# The weights that a mode's ledger is of, and the ledger.
_LEDGERS = {"standard": "ledger.packed.jsonl", "sliding": "ledger.sliding.jsonl", "ttt": "ledger.ttt.jsonl"}
TARGETS = 32_768
"""Targets whose costs are looked at by default."""
SAMPLES, SAMPLE_TOKENS = 3, 120


@dataclass(frozen=True)
class Wanted:
    """What a report should go into."""

    score: bool = True
    """Score text again, to say what each target costs, and write samples."""
    mode: str = "sliding"
    targets: int = TARGETS
    data: Path | None = None
    tokenizer: Path | None = None


def report_job(source: Path, out: Path, form: str, wanted: Wanted, device: torch.device) -> dict[str, Any]:
    """Write the report of a run.

    Args:
        source: its folder.
        out: the file.
        form: "html" or "md".
        wanted: what to score for it.
        device: where to score.

    Returns:
        What was made, as JSON values.

    Raises:
        PgolfError: no run, or its data is not found or not its own.
    """
    if wanted.mode not in _LEDGERS:
        raise PgolfError(f"--mode {wanted.mode}: unknown; use {', '.join(_LEDGERS)}")
    return write_page("run", lambda: _run(source, wanted, device), out, form)


def write_page(of: str, make: Callable[[], Report], out: Path, form: str) -> dict[str, Any]:
    """Make a report of something and write it to a file that is known to be writable; what was made, as JSON
    values.
    """
    if form not in FORMATS:
        raise PgolfError(f"--format {form}: unknown; use {' or '.join(FORMATS)}")
    check_writable(out)
    report = make()
    page = html_page(report) if form == "html" else markdown_page(report)
    write_bytes(out, page.encode())
    return {"report": str(out), "of": of, "format": form, "bytes": len(page.encode())}


def _run(folder: Path, wanted: Wanted, device: torch.device) -> Report:
    run = read_run(folder)
    # A run that is still in training has nothing to score.
    weights = _weights_of(run) if wanted.score else None
    dataset = _dataset_of(run, wanted, needed=weights is not None)
    if weights is None or dataset is None:
        return run_report(run, dataset)
    return run_report(run, dataset, _scored(run, weights, dataset, wanted, device))


def _weights_of(run: RunRecord) -> Weights | None:
    """The artifact; before packing the averaged weights; None before those are there."""
    for name in (ARTIFACT, MODEL):
        if (run.folder / name).is_file():
            return load_weights(run.folder / name)
    return None


def _dataset_of(run: RunRecord, wanted: Wanted, needed: bool) -> Dataset | None:
    """The data of a run: where it is said to be, or where it was; None if it is gone and not needed."""
    given = [str(word) for word in run.provenance.get("command", [])]
    tokenizer = wanted.tokenizer
    if tokenizer is None and wanted.data is None and "--tokenizer" in given[:-1]:
        recorded = Path(given[given.index("--tokenizer") + 1])
        tokenizer = recorded if recorded.is_file() else None
    folder = wanted.data or recorded_data(run.folder) or run.folder / "data"
    if wanted.data is not None or needed:
        if not folder.is_dir():
            raise PgolfError(
                f"{folder}: the data of {run.folder} is not there; pass --data DIR, or --no-score"
            )
        return open_dataset(folder, tokenizer)
    try:
        return open_dataset(folder, tokenizer)
    except PgolfError:
        return None


def _scored(
    run: RunRecord, weights: Weights, dataset: Dataset, wanted: Wanted, device: torch.device
) -> list[Section]:
    """What the text costs, and what the model writes."""
    packed = weights.kind == "artifact"
    ledger = run.folder / (_LEDGERS[wanted.mode] if packed else "ledger.float.jsonl")
    comparable = ledger.is_file() and (packed or wanted.mode == "standard")
    with counting("what each target costs") as progress:
        costs = score_targets(
            weights, dataset, wanted.mode, wanted.targets, ledger if comparable else None, device, progress
        )
    pieces = pieces_of(dataset.tokenizer)
    texts = sample_texts(Model(weights.source, dataset.tokenizer.path), SAMPLES, SAMPLE_TOKENS)
    note = f"Each the beginning of a document, at most {SAMPLE_TOKENS} tokens, as `pgolf generate` writes it; fixed seeds."
    samples = Section(
        "samples", "Samples", [Samples("What the model writes", [visible(text) for text in texts], note)]
    )
    return [text_section(costs, pieces, dataset.tokenizer.bos_id), samples]
