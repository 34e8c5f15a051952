"""Reports as one HTML page that loads nothing: no script, font, picture or style from elsewhere.

Every text that comes from a run, its recipe or its corpus goes through ``escape``, and the page through
``plain``. A policy in the page's head forbids the browser all loading, and every script but the one that the
page carries, by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import assert_never

from pgolf.report.content import (
    Bars,
    Block,
    Card,
    LineChart,
    Listing,
    Passage,
    Passages,
    Prose,
    Report,
    Section,
    Series,
    Statements,
    Table,
    Waterfall,
)
from pgolf.report.draw import COLORS, svg
from pgolf.report.numbers import Value, shown
from pgolf.runtime.terminal import plain

# The icon is an empty one, so that no browser asks for another.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}: pgolf report</title>
<style>
{style}</style>
</head>
<body>
<header><div class="top"><h1>{title}</h1><button id="theme" type="button" hidden>light / dark</button></div>\
{subtitle}
<div class="cards">{cards}</div>
<nav aria-label="Sections">{links}</nav></header>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""
_HEAT_LEVELS = 9
# Longer texts in a table take several lines; a table with such as these the whole width.
_LONG, _VERY_LONG = 20, 44
# Bits that take the darkest colour; a token of a vocabulary of 1,024 that nothing is known about costs 10.
_HOTTEST = 12.0
_HEAT_MARKS = "".join(
    f'<span class="h{level}">{level * _HOTTEST / _HEAT_LEVELS:.0f}</span>'
    for level in range(0, _HEAT_LEVELS + 1, 3)
)
_HEAT_LEGEND = f' <span class="heat" aria-label="colours by bits">{_HEAT_MARKS} bits</span>'


def html_page(report: Report) -> str:
    """The whole page; equal reports give equal pages."""
    folder = resources.files("pgolf.report")
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Names for the page's charts, each once.
    keys = (f"c{number}" for number in itertools.count(1))
    page = _PAGE.format(
        policy=_POLICY.format(digest=digest),
        title=escape(report.title),
        style=style,
        script=script,
        subtitle=f"<p>{escape(report.subtitle)}</p>" if report.subtitle else "",
        cards="".join(map(_card, report.cards)),
        links="".join(f'<a href="#{escape(part.key)}">{escape(part.title)}</a>' for part in report.sections),
        body="\n".join(_section(section, keys) for section in report.sections),
    )
    return plain(page, keep="\n\t")


def _card(card: Card) -> str:
    bar = ""
    if card.share is not None:
        percent = 100 * min(max(card.share, 0.0), 1.0)
        label = f'role="img" aria-label="{100 * card.share:.1f} %"'
        bar = f'<div class="meter" {label}><i style="width:{percent:.2f}%"></i></div>'
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
            items = "".join(f"<li>{escape(text)}</li>" for text in block.texts)
            return _box(block.title, f"<ul>{items}</ul>", folded=block.folded)
        case Listing():
            text = f'<pre tabindex="0">{escape(chr(10).join(block.lines))}</pre>'
            return _box(block.title, text, folded=block.folded)
        case Table():
            return _table(block)
        case LineChart() | Waterfall() | Bars():
            legend = _legend(block.series) if isinstance(block, LineChart) else ""
            inside = f"{legend}{svg(block, next(keys))}{_note(block.note)}"
            return f'<figure class="block"><figcaption>{_heading(block.title)}</figcaption>{inside}</figure>'
        case Passages():
            texts = "".join(map(_passage, block.passages))
            return _box(block.title, _note(block.note, _HEAT_LEGEND if block.legend else "") + texts)
        case _:
            assert_never(block)


def _box(title: str, inside: str, wide: bool = True, folded: bool = False) -> str:
    if folded:
        content = f"<details><summary>{escape(title)}</summary>{inside}</details>"
    else:
        content = _heading(title) + inside
    return f'<div class="block{" wide" if wide else ""}">{content}</div>'


def _heading(title: str) -> str:
    return f"<h3>{escape(title)}</h3>" if title else ""


def _note(note: str, more: str = "") -> str:
    return f'<p class="note">{escape(note)}{more}</p>' if note else ""


def _legend(series: Sequence[Series]) -> str:
    drawn = dict.fromkeys((part.name, part.style, part.color % len(COLORS)) for part in series if part.points)
    marks = (f'<li><i class="mark {style} b{color}"></i>{escape(name)}</li>' for name, style, color in drawn)
    return f'<ul class="legend">{"".join(marks)}</ul>' if len(drawn) > 1 else ""


def _table(table: Table) -> str:
    columns = [[row[index] for row in table.rows] for index in range(len(table.columns))]
    words = [any(isinstance(value, str) for value in column) for column in columns]
    bars = columns[list(table.columns).index(table.bar)] if table.bar else []
    largest = max(map(_size, bars), default=0.0)
    head = "".join(
        f'<th scope="col"{"" if word else " class=n"}>{escape(name)}</th>'
        for name, word in zip(table.columns, words, strict=True)
    )
    lines = []
    for row in table.rows:
        cells = ""
        for name, value, word in zip(table.columns, row, words, strict=True):
            text = escape(shown(value, table.digits))
            if name == table.bar and largest and isinstance(value, (int, float)) and math.isfinite(value):
                share = f'<i style="width:{100 * _size(value) / largest:.1f}%"></i>'
                cells += f'<td class="n bar">{share}<span>{text}</span></td>'
            else:
                kind = _kind(text) if word else " class=n"
                cells += f"<td{kind}>{text}</td>"
        lines.append(f"<tr>{cells}</tr>")
    label = escape(table.title or "table")
    inside = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    # A wide table shares its line with nothing.
    long = any(isinstance(value, str) and len(value) > _VERY_LONG for row in table.rows for value in row)
    wide = long or table.folded or len(table.columns) > 5
    parts = (_note(table.note), inside) if table.folded else (inside, _note(table.note))
    return _box(table.title, "".join(parts), wide, table.folded)


def _kind(words: str) -> str:
    return " class=long" if len(words) > _LONG else ""


def _size(value: Value) -> float:
    """How long a cell's bar is: of a word, and of what is no number or below 0, it has none."""
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return max(0.0, float(value)) if known else 0.0  # type: ignore[arg-type]


def _passage(passage: Passage) -> str:
    pieces = ""
    for text, bits in passage.pieces:
        if bits is None:
            pieces += f"<span>{escape(text)}</span>"
            continue
        level = min(max(round(bits / _HOTTEST * _HEAT_LEVELS), 0), _HEAT_LEVELS)
        # A line's end is a token, or part of one, and has its price: so it is shown.
        visible = text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n")
        visible = visible.replace("\t", "\N{RIGHTWARDS ARROW}\t")
        pieces += f'<span class="h{level}" title="{bits:.2f} bits">{escape(visible)}</span>'
    return f'<div class="passage">{_note(passage.title)}<div class="text">{pieces}</div></div>'
