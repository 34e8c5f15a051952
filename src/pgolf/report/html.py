"""Reports as one HTML page that loads nothing: no script, font, picture or style from elsewhere.

Every text that comes from a run, its recipe or its corpus goes through ``escape``, and the page through
``plain``. A policy in the page's head forbids the browser all loading, and every script but the one that the
page carries, by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import assert_never

from pgolf.report import svg
from pgolf.report.content import (
    Areas,
    Block,
    Card,
    Facts,
    LineChart,
    Listing,
    Passage,
    Passages,
    Prose,
    Report,
    Samples,
    Section,
    Series,
    Sheet,
    Statements,
    Waterfall,
)
from pgolf.report.words import shown
from pgolf.runtime.terminal import plain

# The icon is an empty one, so that no browser asks for another.
_NOTHING_ELSE = "img-src data:; base-uri 'none'; form-action 'none'"
_HEAT_LEVELS = 9
# Longer texts in a table take several lines; a table with such as these the whole width.
_LONG, _VERY_LONG = 20, 44
# Bits that take the darkest colour; a token of a vocabulary of 1,024 that nothing is known about costs 10.
_HOTTEST = 12.0


def html_page(report: Report) -> str:
    """The whole page; equal reports give equal pages."""
    style, script = (
        resources.files("pgolf.report").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; {_NOTHING_ELSE}"
    keys = _keys()
    body = "\n".join(_section(section, keys) for section in report.sections)
    links = "".join(f'<a href="#{escape(part.key)}">{escape(part.title)}</a>' for part in report.sections)
    subtitle = f"<p>{escape(report.subtitle)}</p>" if report.subtitle else ""
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(report.title)}: pgolf report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><div class="top"><h1>{escape(report.title)}</h1>'
        f'<button id="theme" type="button" hidden>light / dark</button></div>{subtitle}\n'
        f'<div class="cards">{"".join(map(_card, report.cards))}</div>\n'
        f'<nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )
    return plain(page, keep="\n\t")


def _keys() -> Iterator[str]:
    """Names for the page's charts, each once."""
    number = 0
    while True:
        number += 1
        yield f"c{number}"


def _card(card: Card) -> str:
    bar = ""
    if card.share is not None:
        part = min(max(card.share, 0.0), 1.0)
        label = f'role="img" aria-label="{100 * card.share:.1f} %"'
        bar = f'<div class="meter" {label}><i style="width:{100 * part:.2f}%"></i></div>'
    note = f'<div class="note">{escape(card.note)}</div>' if card.note else ""
    mark = {"good": "\u2713 ", "bad": "\u2717 ", "plain": ""}[card.mood]
    return (
        f'<div class="card {card.mood}"><div class="what">{escape(card.label)}</div>'
        f'<div class="value">{mark}{escape(card.value)}</div>{bar}{note}</div>'
    )


def _section(section: Section, keys: Iterator[str]) -> str:
    parts = "\n".join(_block(block, keys) for block in section.blocks)
    key = escape(section.key)
    return (
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(section.title)}</h2>\n'
        f'<div class="blocks">\n{parts}\n</div></section>'
    )


def _block(block: Block, keys: Iterator[str]) -> str:
    match block:
        case Prose():
            strong = " strong" if block.strong else ""
            return f'<p class="wide {block.mood}{strong}">{escape(block.text)}</p>'
        case Statements():
            items = f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in block.texts)}</ul>"
            inside = _folded(block.title, items) if block.folded else _heading(block.title) + items
            return f'<div class="block wide">{inside}</div>'
        case Facts():
            rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in block.rows)
            return f'<div class="block wide">{_heading(block.title)}<dl>{rows}</dl></div>'
        case Listing():
            text = f'<pre tabindex="0">{escape(chr(10).join(block.lines))}</pre>'
            inside = _folded(block.title, text) if block.folded else _heading(block.title) + text
            return f'<div class="block wide">{inside}</div>'
        case Sheet():
            return _sheet(block)
        case LineChart():
            return _figure(block.title, _legend(block.series) + svg.line_chart(block, next(keys)), block.note)
        case Waterfall():
            return _figure(block.title, svg.waterfall(block, next(keys)), block.note)
        case Areas():
            return _figure(block.title, svg.areas(block, next(keys)), block.note)
        case Passages():
            texts = "".join(map(_passage, block.passages))
            return f'<div class="block wide">{_heading(block.title)}{_heat_legend(block.note)}{texts}</div>'
        case Samples():
            texts = "".join(f'<blockquote class="text">{escape(text)}</blockquote>' for text in block.texts)
            return f'<div class="block wide">{_heading(block.title)}{_note(block.note)}{texts}</div>'
        case _:
            assert_never(block)


def _heading(title: str) -> str:
    return f"<h3>{escape(title)}</h3>" if title else ""


def _note(note: str) -> str:
    return f'<p class="note">{escape(note)}</p>' if note else ""


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _figure(title: str, inside: str, note: str) -> str:
    return f'<figure class="block"><figcaption>{_heading(title)}</figcaption>{inside}{_note(note)}</figure>'


def _legend(series: Sequence[Series]) -> str:
    drawn = dict.fromkeys((part.name, part.style, part.color % svg.COLORS) for part in series if part.points)
    if len(drawn) < 2:
        return ""
    marks = "".join(
        f'<li><i class="mark {style} b{color}"></i>{escape(name)}</li>' for name, style, color in drawn
    )
    return f'<ul class="legend">{marks}</ul>'


def _sheet(block: Sheet) -> str:
    table = block.table
    words = [
        any(isinstance(row[index], str) for row in table.rows if index < len(row))
        for index in range(len(table.columns))
    ]
    head = "".join(
        f'<th scope="col"{"" if word else " class=n"}>{escape(name)}</th>'
        for name, word in zip(table.columns, words, strict=True)
    )
    largest = _largest(block)
    lines = []
    for row in table.rows:
        cells = []
        for name, value, word in zip(table.columns, row, words, strict=True):
            text = escape(shown(value, table.digits))
            kind = (" class=long" if len(text) > _LONG else "") if word else " class=n"
            if name == block.bar and isinstance(value, (int, float)) and largest and math.isfinite(value):
                share = max(0.0, 100 * value / largest)
                cells.append(f'<td class="n bar"><i style="width:{share:.1f}%"></i><span>{text}</span></td>')
            else:
                cells.append(f"<td{kind}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    label = escape(table.title or "table")
    inside = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    # A wide table shares its line with nothing.
    long = any(isinstance(value, str) and len(value) > _VERY_LONG for row in table.rows for value in row)
    wide = " wide" if long or len(table.columns) > 5 else ""
    if block.folded:
        return f'<div class="block wide">{_folded(table.title, _note(table.note) + inside)}</div>'
    return f'<div class="block{wide}">{_heading(table.title)}{inside}{_note(table.note)}</div>'


def _largest(block: Sheet) -> float:
    if block.bar not in block.table.columns:
        return 0.0
    index = list(block.table.columns).index(block.bar)
    numbers = [row[index] for row in block.table.rows]
    return max(
        (float(value) for value in numbers if isinstance(value, (int, float)) and math.isfinite(value)),
        default=0.0,
    )


def _passage(passage: Passage) -> str:
    pieces = "".join(
        f'<span class="h{_heat(bits)}" title="{bits:.2f} bits">{escape(_with_breaks(text))}</span>'
        for text, bits in passage.pieces
    )
    return f'<div class="passage"><p class="note">{escape(passage.title)}</p><div class="text">{pieces}</div></div>'


def _with_breaks(text: str) -> str:
    # A line's end is a token, or part of one, and has its price: so it is shown.
    return text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n").replace(
        "\t", "\N{RIGHTWARDS ARROW}\t"
    )


def _heat(bits: float) -> int:
    return min(max(round(bits / _HOTTEST * _HEAT_LEVELS), 0), _HEAT_LEVELS)


def _heat_legend(note: str) -> str:
    if not note:
        return ""
    marks = "".join(
        f'<span class="h{level}">{level * _HOTTEST / _HEAT_LEVELS:.0f}</span>'
        for level in range(0, _HEAT_LEVELS + 1, 3)
    )
    return f'<p class="note">{escape(note)} <span class="heat" aria-label="colours by bits">{marks} bits</span></p>'
