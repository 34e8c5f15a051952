"""Reports of a run as files: those in its folder, and that of `pgolf report`, which scores text again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pgolf.data.dataset import Dataset, open_dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS, OF_MODE, usual_mode
from pgolf.report.content import Passage, Passages, Report, Section
from pgolf.report.draw import draw_curve
from pgolf.report.html import html_page
from pgolf.report.markdown import markdown_page
from pgolf.report.run_report import run_report
from pgolf.runs.kept import own_tokenizer
from pgolf.runs.records import RunRecord, read_run
from pgolf.runtime.progress import counting, tell, working
from pgolf.runtime.run_files import ARTIFACT, AUDIT, METRICS, MODEL, RESULT, recorded_data
from pgolf.runtime.writing import check_writable, write_bytes

if TYPE_CHECKING:
    import torch

    from pgolf.compress.weights import Weights
    from pgolf.report.text_analysis import TargetCosts

FORMATS = {"html": html_page, "md": markdown_page}
TARGETS = 32_768
"""Targets whose costs are looked at by default."""
TARGETS_OF_RUN = 4096
"""The same at the end of ``pgolf run``."""
SAMPLES, SAMPLE_TOKENS = 3, 120


class Wanted(NamedTuple):
    """What a report should go into."""

    score: bool = True
    """Score text again, to say what each target costs, and write samples."""
    mode: str | None = None
    """How to score it; the recipe's usual mode by default."""
    targets: int = TARGETS
    data: Path | None = None
    tokenizer: Path | None = None


def write_report(folder: Path, dataset: Dataset | None = None, more: Sequence[Section] = ()) -> Path:
    """Write ``report.md``, ``report.html`` and ``curve.png`` of a run folder; returns the first.

    The ledgers are verified against the dataset, the run's data, if it is given; ``more``: as ``run_report``.
    """
    run, path = read_run(folder), folder / "report.md"
    draw_curve(folder / METRICS, folder / "curve.png", f"{run.field('recipe')}: training")
    report = run_report(run, dataset, more)
    write_bytes(folder / "report.html", html_page(report).encode())
    text = markdown_page(report, {"training": "![Training loss and validation](curve.png)"})
    write_bytes(path, text.encode())
    return path


def write_audited_report(folder: Path, dataset: Dataset, device: torch.device) -> None:
    """The same after an audit of the artifact, with what the text costs and samples; what is done stays.

    Audited is what the last of the artifact's scores was made by, on half as many targets as by `pgolf audit`
    to save time. What goes wrong is said, and left out.
    """
    from pgolf.audit.audit import audit_job
    from pgolf.audit.runs import Settings
    from pgolf.compress.weights import load_weights

    run, page, more = read_run(folder), folder / "report.html", list[Section]()
    made = [EVALUATIONS[name] for name in EVALUATIONS if name in run.evaluations]
    modes = [entry.mode for entry in made if entry.file == ARTIFACT]
    times = [path.stat().st_mtime_ns for path in (folder / RESULT, folder / AUDIT, page) if path.is_file()]
    if len(times) == 3 and times[2] >= max(times):
        return
    weights = None
    try:
        if modes and not (folder / AUDIT).is_file():
            job = audit_job(folder, dataset.folder, dataset.tokenizer.path, None, modes[-1], (), device)
            with working("auditing") as note:
                job.audit(Settings(), max(job.usual_targets // 2, 2), note)
            weights = job.weights
        if modes:
            wanted = Wanted(mode=modes[-1], targets=TARGETS_OF_RUN)
            more = _scored(run, weights or load_weights(folder / ARTIFACT), dataset, wanted, device)
    except PgolfError as error:
        tell(f"warning: the report is not complete: {error}")
    write_report(folder, dataset, more)


def page_of(source: Path, out: Path | None, form: str | None) -> tuple[Path, str]:
    """File and format of a report: report.html in the folder by default; a file's name says its format.

    PgolfError where it does not, or there is no such folder.
    """
    if not source.is_dir():
        raise PgolfError(f"{source}: no such run folder, nor one of a study")
    out = out or source / ("report.md" if form == "md" else "report.html")
    if form is None and not out.is_dir() and out.suffix not in (".html", ".htm", ".md"):
        raise PgolfError(f"{out}: reports are .html or .md; name such a file, or say which by --format")
    return out, form or ("md" if out.suffix == ".md" else "html")


def report_job(
    source: Path, out: Path, form: str, wanted: Wanted, device: torch.device | None = None
) -> dict[str, Any]:
    """Write the report of the run in ``source`` as "html" or "md"; what was made, as JSON values.

    Without scores no ``device`` is needed. PgolfError where there is no run, or its data is not found or not
    its own.
    """
    if wanted.mode not in (None, *OF_MODE):
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
    folder = wanted.data or recorded_data(run.folder) or run.folder / "data"
    needed = needed or wanted.data is not None
    if needed and not folder.is_dir():
        raise PgolfError(f"{folder}: the data of {run.folder} is not there; pass --data DIR, or --no-score")
    try:
        return open_dataset(folder, own_tokenizer(run.folder, folder, wanted.tokenizer))
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

    packed, mode = weights.kind == "artifact", wanted.mode or usual_mode(weights.recipe)
    with_memory = uses_memory(weights.recipe, mode)

    def score(weights: Weights, evaluation: str) -> TargetCosts:
        ledger = run.folder / EVALUATIONS[evaluation if packed else "float"].ledger
        known = ledger if ledger.is_file() and (packed or mode == "standard") else None
        with counting("what each target costs") as progress:
            return score_targets(weights, dataset, mode, wanted.targets, known, device, progress)

    costs = score(weights, "memory" if with_memory else OF_MODE[mode])
    won = []
    if with_memory:
        alone = score(replace(weights, recipe=without_memory(weights.recipe)), OF_MODE[mode])
        stored = weights.memory_start(dataset.tokenizer).stored
        table = order_table(alone, costs, stored, weights.recipe.memory.order)
        won = [Section("orders", "What the memory knew", [table])]
    texts = sample_texts(Model(weights.source, dataset.tokenizer.path), SAMPLES, SAMPLE_TOKENS)
    samples = [Passage(f"sample {place}", [(visible(text), None)]) for place, text in enumerate(texts, 1)]
    note = f"Beginnings of documents, up to {SAMPLE_TOKENS} tokens, by `pgolf generate`; fixed seeds."
    written = Section("samples", "Samples", [Passages("What the model writes", samples, note)])
    text = text_section(costs, pieces_of(dataset.tokenizer), dataset.tokenizer.bos_id)
    return [*won, text, written]
