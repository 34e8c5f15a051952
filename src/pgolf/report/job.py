"""Reports of a run as files: those in its folder, and that of `pgolf report`, which scores text again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pgolf.data.dataset import Dataset, open_dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import OF_MODE
from pgolf.report.content import Report
from pgolf.report.draw import draw_curve
from pgolf.report.html import html_page
from pgolf.report.markdown import markdown_page
from pgolf.report.run_report import run_report
from pgolf.runs.records import RunRecord, read_run
from pgolf.runtime.run_files import ARTIFACT, METRICS, MODEL, recorded_data
from pgolf.runtime.writing import check_writable, write_bytes

if TYPE_CHECKING:
    import torch

FORMATS = {"html": html_page, "md": markdown_page}
TARGETS = 32_768
"""Targets whose costs are looked at by default."""


class Wanted(NamedTuple):
    """What a report should go into."""

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

    Text is scored again on the ``device``, to say what each target costs, and samples are written; without a
    device the report has what the folder holds. PgolfError where there is no run, or its data is not found or
    not its own.
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
    files = [folder / name for name in (ARTIFACT, MODEL) if (folder / name).is_file()]
    if device is None or not files:
        return run_report(run, _dataset_of(run, wanted, needed=False))
    from pgolf.compress.weights import load_weights
    from pgolf.report.scored import scored_sections

    weights = load_weights(files[0])
    dataset = _dataset_of(run, wanted, needed=True)
    assert dataset is not None
    more = scored_sections(run, weights, dataset, wanted.mode, wanted.targets, device)
    return run_report(run, dataset, more)


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
