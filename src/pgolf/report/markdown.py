"""Reports as Markdown, and ``report.md``, ``report.html`` and ``curve.png`` of a run folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pgolf.data.dataset import Dataset
from pgolf.report.content import (
    Areas,
    Block,
    Facts,
    LineChart,
    Listing,
    Passages,
    Prose,
    Report,
    Samples,
    Sheet,
    Statements,
    Waterfall,
)
from pgolf.report.curve import draw_curve
from pgolf.report.html import html_page
from pgolf.report.run_report import run_report
from pgolf.report.words import shown
from pgolf.runs.records import read_run
from pgolf.runtime.run_files import METRICS
from pgolf.runtime.terminal import plain
from pgolf.runtime.writing import write_bytes


def write_report(folder: Path, dataset: Dataset | None = None) -> Path:
    """Write ``report.md``, ``report.html`` and ``curve.png`` of a run folder from the files in it; returns
    the first.

    Args:
        folder: the run's.
        dataset: its data, against which the ledgers are verified.
    """
    run = read_run(folder)
    draw_curve(folder / METRICS, folder / "curve.png", f"{run.field('recipe')}: training")
    report = run_report(run, dataset)
    write_bytes(folder / "report.html", html_page(report).encode())
    path = folder / "report.md"
    write_bytes(
        path, markdown_page(report, {"training": "![Training loss and validation](curve.png)"}).encode()
    )
    return path


def markdown_page(report: Report, pictures: dict[str, str] | None = None) -> str:
    """A report as Markdown; ``pictures`` has a line for the beginning of some sections, by key."""
    parts = [f"# {_plain(report.title)}", _plain(report.subtitle)]
    parts.append(
        "\n".join(
            f"* {_plain(card.label)}: **{_plain(card.value)}** {_plain(card.note)}" for card in report.cards
        )
    )
    for section in report.sections:
        parts += [f"## {_plain(section.title)}", (pictures or {}).get(section.key, "")]
        parts += [_block(block) for block in section.blocks]
    return plain("\n\n".join(part for part in parts if part) + "\n", keep="\n\t")


def _block(block: Block) -> str:
    match block:
        case Prose():
            text = _plain(block.text)
            return f"**{text}**" if block.strong else text
        case Statements():
            return "\n".join(f"* {_plain(text)}" for text in block.texts)
        case Facts():
            return table(("", ""), block.rows)
        case Listing():
            return _fenced(block.lines, block.language)
        case Sheet():
            return _sheet(block)
        case LineChart():
            return _chart(block)
        case Waterfall():
            return _waterfall(block)
        case Areas():
            return ""  # The table beside it says the same.
        case Passages():
            texts = ["".join(text for text, _ in passage.pieces) for passage in block.passages]
            titles = [passage.title for passage in block.passages]
        case Samples():
            texts, titles = list(block.texts), [f"sample {index + 1}" for index in range(len(block.texts))]
    parts = [f"### {_plain(block.title)}"]
    for title, text in zip(titles, texts, strict=True):
        parts += [_plain(title), _fenced(text.splitlines(), "text")]
    return "\n\n".join(parts)


def _sheet(block: Sheet) -> str:
    found = block.table
    rows = [[shown(value, found.digits) for value in row] for row in found.rows]
    parts = [
        f"### {_plain(found.title)}" if found.title else "",
        table(found.columns, rows),
        _plain(found.note),
    ]
    return "\n\n".join(part for part in parts if part)


def _chart(chart: LineChart) -> str:
    """The ends and the lowest point of every line: a picture would say more."""
    rows = []
    for series in chart.series:
        if series.points:
            chosen = (series.points[0], min(series.points, key=lambda point: point[1]), series.points[-1])
            rows.append([series.name, *(f"{y:.4f} at {x:,.6g}" for x, y in chosen)])
    if not rows:
        return ""
    head = (f"{chart.y_label} by {chart.x_label}", "first", "lowest", "last")
    parts = [f"### {_plain(chart.title)}", table(head, rows), _plain(chart.note)]
    return "\n\n".join(part for part in parts if part)


def _waterfall(chart: Waterfall) -> str:
    rows, before = [(chart.first[0], f"{chart.first[1]:.4f}", "")], chart.first[1]
    for name, value in chart.steps:
        rows.append((name, f"{value:.4f}", f"{value - before:+.4f}"))
        before = value
    return f"### {_plain(chart.title)}\n\n" + table(("", chart.unit, "change"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[_plain(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [" | ".join(cells[0]), " | ".join("---" for _ in head), *(" | ".join(row) for row in cells[1:])]
    return "\n".join(f"| {line} |" for line in lines)


def _plain(text: str) -> str:
    """Text on one line that no Markdown reader takes for a tag."""
    return " ".join(text.split()).replace("<", "&lt;")


def _fenced(lines: Sequence[str], language: str) -> str:
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence + language, *lines, fence])
