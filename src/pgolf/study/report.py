"""What there is to say about a study: its cells side by side, and what the analysis of them found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgolf.evaluate.evaluations import EVALUATIONS
from pgolf.report.content import Block, Card, LineChart, Listing, Report, Section, Series, Statements, Table
from pgolf.report.numbers import Value
from pgolf.report.run_report import score_steps, validation_points
from pgolf.runtime.files import read_text
from pgolf.runtime.run_files import METRICS
from pgolf.study.analysis import Analysis, analyse
from pgolf.study.cells import Cell, read_cells
from pgolf.study.runner import STUDY
from pgolf.train.metrics import read_metrics

_MOST_LINES = 12
_FIRST_STATEMENTS = 10


def study_page(folder: Path) -> Report:
    """The report of the study in a folder."""
    cells = read_cells(folder)
    return study_report(folder, cells, analyse(cells))


def study_report(study: Path, cells: Sequence[Cell], analysis: Analysis) -> Report:
    """A report of a study, all of whose cells may still be waiting."""
    scored = [cell for cell in cells if cell.scores]
    first, rest = analysis.statements[:_FIRST_STATEMENTS], analysis.statements[_FIRST_STATEMENTS:]
    more = [Statements(rest, f"{len(rest)} more", folded=True)] if rest else []
    sections = [Section("findings", "Findings", [Statements(first), *more])] if first else []
    sections.append(Section("cells", "Cells", _cells(cells, scored)))
    if analysis.curves or analysis.tables:
        sections.append(Section("analysis", "Analysis", [*analysis.curves, *analysis.tables]))
    if (study / STUDY).is_file():
        lines = read_text(study / STUDY).rstrip().splitlines()
        sections.append(Section("study", "The study", [Listing(lines, "toml")]))
    return Report(study.resolve().name, f"A study of {len(cells)} cells.", _cards(cells, scored), sections)


def _final(cell: Cell) -> float:
    """The score of the last evaluation that a cell has."""
    return [cell.scores[name] for name in EVALUATIONS if name in cell.scores][-1]


def _cards(cells: Sequence[Cell], scored: Sequence[Cell]) -> list[Card]:
    cards = []
    if scored:
        best = min(scored, key=_final)
        cards.append(Card("best BPB", f"{_final(best):.4f}", f"{best.label}, seed {best.seed}"))
    finished, failed = (sum(cell.status == status for cell in cells) for status in ("finished", "failed"))
    share = finished / max(len(cells), 1)
    cards.append(Card("finished", f"{finished} of {len(cells)}", "cells", share))
    if failed:
        cards.append(Card("failed", f"{failed}", "cells", mood="bad"))
    return [*cards, Card("seeds", f"{len({cell.seed for cell in cells})}")]


def _cells(cells: Sequence[Cell], scored: Sequence[Cell]) -> list[Block]:
    best = min(scored, key=_final) if scored else None
    rows: list[list[Value]] = []
    for cell in cells:
        scores = (cell.scores.get(name) for name in EVALUATIONS)
        rows.append([cell.name, cell.label, cell.seed, cell.error or cell.status, *scores, cell.bytes])
    columns = ("cell", "changes", "seed", "state", *EVALUATIONS, "bytes")
    note = f"Scores in bits per byte. The best is {best.label}, seed {best.seed}." if best else ""
    steps = score_steps(best.scores) if best else []
    return [*steps, *_validations(scored), Table("All cells", columns, rows, note)]


def _validations(scored: Sequence[Cell]) -> list[Block]:
    """Validation by step, one colour for each choice, whatever the seed; of many cells the first."""
    labels = list(dict.fromkeys(cell.label for cell in scored))
    lines = []
    for cell in scored[:_MOST_LINES]:
        if points := validation_points(read_metrics(cell.folder / METRICS)):
            lines.append(Series(cell.label, points, "dots", labels.index(cell.label)))
    note = f"The first {_MOST_LINES} of {len(scored)} cells." if len(scored) > _MOST_LINES else ""
    chart = LineChart("Validation of last weights", "step", "bits per byte", lines, note=note)
    return [chart] if lines else []
