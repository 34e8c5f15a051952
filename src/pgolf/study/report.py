"""What there is to say about a study: its cells side by side, and what the analysis of them found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgolf.report.content import (
    Block,
    Card,
    LineChart,
    Listing,
    Report,
    Section,
    Series,
    Sheet,
    Statements,
    Waterfall,
)
from pgolf.report.findings import Analysis, Curve, Table, Value
from pgolf.report.run_report import SCORES
from pgolf.report.svg import COLORS
from pgolf.runtime.files import read_text
from pgolf.runtime.run_files import METRICS
from pgolf.study.analysis import analyse
from pgolf.study.cells import Cell, read_cells
from pgolf.train.metrics import read_metrics

_MOST_LINES = 12
_FIRST_STATEMENTS = 10


def study_page(folder: Path) -> Report:
    """The report of the study in a folder."""
    cells = read_cells(folder)
    return study_report(folder, cells, analyse(cells))


def study_report(study: Path, cells: Sequence[Cell], analysis: Analysis) -> Report:
    """A report of a study, all of whose cells may still be waiting."""
    finished = [cell for cell in cells if cell.status == "finished" and cell.result is not None]
    sections = []
    if analysis.statements:
        sections.append(Section("findings", "Findings", _findings(analysis.statements)))
    sections.append(Section("cells", "Cells", _cells(cells, finished)))
    if analysis.curves or analysis.tables:
        sections.append(
            Section("analysis", "Analysis", [*analysis_charts(analysis), *map(Sheet, analysis.tables)])
        )
    if (study / "study.toml").is_file():
        lines = read_text(study / "study.toml").rstrip().splitlines()
        sections.append(Section("study", "The study", [Listing(lines, "toml")]))
    return Report(study.resolve().name, f"A study of {len(cells)} cells.", _cards(cells, finished), sections)


def _findings(statements: Sequence[str]) -> list[Block]:
    rest = statements[_FIRST_STATEMENTS:]
    more = [Statements(rest, f"{len(rest)} more", folded=True)] if rest else []
    return [Statements(statements[:_FIRST_STATEMENTS]), *more]


def analysis_charts(analysis: Analysis) -> list[LineChart]:
    """The curves of an analysis: points, fit and band."""
    return [fitted_chart(curve) for curve in analysis.curves]


def fitted_chart(curve: Curve) -> LineChart:
    """Measured points with the line fitted to them and its 95 % band."""
    series = [Series("measured", sorted(curve.points), "points", 1)]
    if curve.line:
        series.insert(0, Series("fit, with its 95 % band", [(x, y) for x, y, _, _ in curve.line], "line", 0))
    band = [(x, low, high) for x, _, low, high in curve.line]
    return LineChart(
        curve.title, curve.x_label, curve.y_label, series, band, log_x=curve.log_x, note=curve.note
    )


def _final(cell: Cell) -> float:
    """The score of the last evaluation that a finished cell has."""
    assert cell.result is not None
    return cell.bpb([name for name, *_ in SCORES if name in cell.result["evaluations"]][-1])


def _cards(cells: Sequence[Cell], finished: Sequence[Cell]) -> list[Card]:
    cards = []
    scored = [cell for cell in finished if cell.result and cell.result.get("evaluations")]
    if scored:
        best = min(scored, key=_final)
        cards.append(Card("best BPB", f"{_final(best):.4f}", f"{best.label}, seed {best.seed}"))
    failed = sum(cell.status == "failed" for cell in cells)
    cards.append(
        Card("finished", f"{len(finished)} of {len(cells)}", "cells", len(finished) / max(len(cells), 1))
    )
    if failed:
        cards.append(Card("failed", f"{failed}", "cells", mood="bad"))
    cards.append(Card("seeds", f"{len({cell.seed for cell in cells})}"))
    return cards


def _cells(cells: Sequence[Cell], finished: Sequence[Cell]) -> list[Block]:
    blocks: list[Block] = []
    scored = [cell for cell in finished if cell.result and cell.result.get("evaluations")]
    if scored:
        best = min(scored, key=_final)
        known = [
            (label, step, best.bpb(name))
            for name, label, _, step in SCORES
            if name in (best.result or {})["evaluations"]
        ]
        if len(known) > 1:
            first = (known[0][0].removesuffix(" BPB"), known[0][2])
            steps = [(step, value) for _, step, value in known[1:]]
            blocks.append(Waterfall(f"The best cell: {best.label}", "bits per byte", first, steps, "final"))
    blocks += _validations(finished)
    rows: list[list[Value]] = []
    for cell in cells:
        found = (cell.result or {}).get("evaluations", {})
        scores: list[Value] = [found[name]["val_bpb"] if name in found else None for name, *_ in SCORES[1:]]
        size: Value = (cell.result or {}).get("pack", {}).get("total_bytes")
        rows.append([cell.name, cell.label, cell.seed, cell.error or cell.status, *scores, size])
    columns = ("cell", "changes", "seed", "state", *(name for name, *_ in SCORES[1:]), "bytes")
    blocks.append(Sheet(Table("All cells", columns, rows, "Scores in bits per byte.")))
    return blocks


def _validations(finished: Sequence[Cell]) -> list[Block]:
    """Validation by step of all cells, one colour for each choice, whatever the seed; of many cells the
    first.
    """
    labels = list(dict.fromkeys(cell.label for cell in finished))
    lines = []
    for cell in finished[:_MOST_LINES]:
        entries = [entry for entry in read_metrics(cell.folder / METRICS) if "val_bpb" in entry]
        points = [(float(entry["step"]), float(entry["val_bpb"])) for entry in entries]
        shown = points[1:] if len(points) > 2 and points[0][0] == 0 else points
        if shown:
            lines.append(Series(cell.label, shown, "dots", labels.index(cell.label) % COLORS))
    note = f"The first {_MOST_LINES} of {len(finished)} cells." if len(finished) > _MOST_LINES else ""
    return (
        [LineChart("Validation of last weights", "step", "bits per byte", lines, note=note)] if lines else []
    )
