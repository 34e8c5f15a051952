"""Reports as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import assert_never

from pgolf.report import content
from pgolf.runtime.terminal import plain


def markdown_page(report: content.Report, pictures: dict[str, str] | None = None) -> str:
    """A report as Markdown; ``pictures`` has a line for the beginning of some sections, by key."""
    parts = [f"# {_plain(report.title)}", _plain(report.subtitle)]
    cards = ((_plain(card.label), _plain(card.value), _plain(card.note)) for card in report.cards)
    parts.append("\n".join(f"* {label}: **{value}** {note}" for label, value, note in cards))
    for section in report.sections:
        parts += [f"## {_plain(section.title)}", (pictures or {}).get(section.key, "")]
        parts += [_block(block) for block in section.blocks]
    return plain("\n\n".join(part for part in parts if part) + "\n", keep="\n\t")


def _block(block: content.Block) -> str:
    match block:
        case content.Prose():
            return f"**{_plain(block.text)}**" if block.strong else _plain(block.text)
        case content.Statements():
            return "\n".join(f"* {_plain(text)}" for text in block.texts)
        case content.Listing():
            return _fenced(block.lines, block.language)
        case content.Table():
            rows = [list(map(block.text, block.columns, row)) for row in block.rows]
            return _titled(block.title, table(block.columns, rows), _plain(block.note))
        case content.LineChart():
            return _chart(block)
        case content.Waterfall():
            return _waterfall(block)
        case content.Intervals():
            rows = []
            for name, mean, low, high, values in block.rows:
                ends = ["-" if end is None else f"{end:.4f}" for end in (low, high)]
                rows.append([name, f"{mean:.4f}", *ends, f"{len(values)}"])
            head = (block.unit, "mean", "low", "high", "runs")
            return _titled(block.title, table(head, rows), _plain(block.note))
        case content.Bars():
            return ""  # The table beside it says the same.
        case content.Passages():
            parts = []
            for passage in block.passages:
                text = "".join(text for text, _ in passage.pieces)
                parts += [_plain(passage.title), _fenced(text.splitlines(), "text")]
            return _titled(block.title, *parts)
        case _:
            assert_never(block)


def _titled(title: str, *parts: str) -> str:
    heading = f"### {_plain(title)}" if title else ""
    return "\n\n".join(part for part in (heading, *parts) if part)


def _chart(chart: content.LineChart) -> str:
    """The ends and the lowest point of every line: a picture would say more."""
    rows = []
    for series in chart.series:
        if series.points:
            chosen = (series.points[0], min(series.points, key=lambda point: point[1]), series.points[-1])
            rows.append([series.name, *(f"{y:.4f} at {x:,.6g}" for x, y in chosen)])
    head = (f"{chart.y_label} by {chart.x_label}", "first", "lowest", "last")
    return _titled(chart.title, table(head, rows), _plain(chart.note)) if rows else ""


def _waterfall(chart: content.Waterfall) -> str:
    rows = [(name, f"{new:.4f}", f"{new - old:+.4f}") for name, old, new in chart.changes()]
    first = (chart.first[0], f"{chart.first[1]:.4f}", "")
    return _titled(chart.title, table(("", chart.unit, "change"), [first, *rows]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
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
