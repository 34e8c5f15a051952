"""Reports of a run as files: those in its folder, and that of `pgolf report`, which scores text again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pgolf.data.dataset import Dataset, open_dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS, OF_MODE
from pgolf.report.content import Passage, Passages, Report, Section
from pgolf.report.draw import draw_curve
from pgolf.report.html import html_page
from pgolf.report.markdown import markdown_page
from pgolf.report.run_report import run_report
from pgolf.runs.records import RunRecord, read_run
from pgolf.runtime.progress import counting
from pgolf.runtime.run_files import ARTIFACT, METRICS, MODEL, recorded_data
from pgolf.runtime.writing import check_writable, write_bytes

if TYPE_CHECKING:
    import torch

    from pgolf.compress.weights import Weights
    from pgolf.report.text_analysis import TargetCosts

FORMATS = {"html": html_page, "md": markdown_page}
TARGETS = 32_768
"""Targets whose costs are looked at by default."""
SAMPLES, SAMPLE_TOKENS = 3, 120


class Wanted(NamedTuple):
    """What a report should go into."""

    score: bool = True
    """Score text again, to say what each target costs, and write samples."""
    mode: str = "sliding"
    targets: int = TARGETS
    data: Path | None = None
    tokenizer: Path | None = None


def write_report(folder: Path, dataset: Dataset | None = None) -> Path:
    """Write ``report.md``, ``report.html`` and ``curve.png`` of a run folder; returns the first.

    The ledgers are verified against the dataset, the run's data, if it is given.
    """
    run, path = read_run(folder), folder / "report.md"
    draw_curve(folder / METRICS, folder / "curve.png", f"{run.field('recipe')}: training")
    report = run_report(run, dataset)
    write_bytes(folder / "report.html", html_page(report).encode())
    text = markdown_page(report, {"training": "![Training loss and validation](curve.png)"})
    write_bytes(path, text.encode())
    return path


def report_job(
    source: Path, out: Path, form: str, wanted: Wanted, device: torch.device | None = None
) -> dict[str, Any]:
    """Write the report of the run in ``source`` as "html" or "md"; what was made, as JSON values.

    Without scores no ``device`` is needed. PgolfError where there is no run, or its data is not found or not
    its own.
    """
    if wanted.mode not in OF_MODE:
        raise PgolfError(f"--mode {wanted.mode}: unknown; use {', '.join(OF_MODE)}")
    return write_page("run", lambda: _run(source, wanted, device), out, form)


def write_page(of: str, make: Callable[[], Report], out: Path, form: str) -> dict[str, Any]:
    """Make a report and write it, once the file is known to be writable; what was made, as JSON values."""
    if form not in FORMATS:
        raise PgolfError(f"--format {form}: unknown; use {' or '.join(FORMATS)}")
    check_writable(out)
    content = FORMATS[form](make()).encode()
    write_bytes(out, content)
    return {"report": str(out), "of": of, "format": form, "bytes": len(content)}


def _run(folder: Path, wanted: Wanted, device: torch.device | None) -> Report:
    run = read_run(folder)
    # The artifact, or before packing the averaged weights; a run in training has nothing to score.
    files = [folder / name for name in (ARTIFACT, MODEL) if wanted.score and (folder / name).is_file()]
    dataset = _dataset_of(run, wanted, needed=bool(files))
    if not files or dataset is None:
        return run_report(run, dataset)
    from pgolf.compress.weights import load_weights

    assert device is not None
    return run_report(run, dataset, _scored(run, load_weights(files[0]), dataset, wanted, device))


def _dataset_of(run: RunRecord, wanted: Wanted, needed: bool) -> Dataset | None:
    """The data of a run: where it is said to be, or where it was; None if it is gone and not needed."""
    given = [str(word) for word in run.provenance.get("command", [])]
    tokenizer = wanted.tokenizer
    if tokenizer is None and wanted.data is None and "--tokenizer" in given[:-1]:
        recorded = Path(given[given.index("--tokenizer") + 1])
        tokenizer = recorded if recorded.is_file() else None
    folder = wanted.data or recorded_data(run.folder) or run.folder / "data"
    needed = needed or wanted.data is not None
    if needed and not folder.is_dir():
        raise PgolfError(f"{folder}: the data of {run.folder} is not there; pass --data DIR, or --no-score")
    try:
        return open_dataset(folder, tokenizer)
    except PgolfError:
        if needed:
            raise
        return None


def _scored(
    run: RunRecord, weights: Weights, dataset: Dataset, wanted: Wanted, device: torch.device
) -> list[Section]:
    """What the text costs, and what the model writes."""
    from pgolf.evaluate.build import uses_memory, without_memory
    from pgolf.generate.model import Model, sample_texts
    from pgolf.report.memory_tables import order_table
    from pgolf.report.text_analysis import pieces_of, score_targets, text_section, visible

    packed = weights.kind == "artifact"
    with_memory = uses_memory(weights.recipe, wanted.mode)

    def score(weights: Weights, evaluation: str) -> TargetCosts:
        ledger = run.folder / EVALUATIONS[evaluation if packed else "float"].ledger
        known = ledger if ledger.is_file() and (packed or wanted.mode == "standard") else None
        with counting("what each target costs") as progress:
            return score_targets(weights, dataset, wanted.mode, wanted.targets, known, device, progress)

    costs = score(weights, "memory" if with_memory else OF_MODE[wanted.mode])
    won = []
    if with_memory:
        alone = score(replace(weights, recipe=without_memory(weights.recipe)), OF_MODE[wanted.mode])
        stored = weights.memory_start(dataset.tokenizer).stored
        table = order_table(alone, costs, stored, weights.recipe.memory.order)
        won = [Section("orders", "What the memory knew", [table])]
    texts = sample_texts(Model(weights.source, dataset.tokenizer.path), SAMPLES, SAMPLE_TOKENS)
    samples = [Passage(f"sample {place}", [(visible(text), None)]) for place, text in enumerate(texts, 1)]
    note = f"Beginnings of documents, up to {SAMPLE_TOKENS} tokens, by `pgolf generate`; fixed seeds."
    written = Section("samples", "Samples", [Passages("What the model writes", samples, note)])
    text = text_section(costs, pieces_of(dataset.tokenizer), dataset.tokenizer.bos_id)
    return [*won, text, written]
