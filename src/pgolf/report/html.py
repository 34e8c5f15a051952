"""Reports as one HTML page that loads nothing: no script, font, picture or style from elsewhere.

Every text that comes from a run, its recipe or its corpus is escaped by the template ``page.html``, and the
page goes through ``plain``. A policy in the page's head forbids the browser all loading, and every script but
the one that the page carries, by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pgolf.report.content import Chart, LineChart, Report, Table, Value
from pgolf.report.draw import COLORS, svg
from pgolf.runtime.terminal import plain

_HEAT_LEVELS = 9
# Longer texts in a table take several lines; a table with such as these the whole width.
_LONG, _VERY_LONG = 20, 44
# Bits that take the darkest colour; a token of a vocabulary of 1,024 that nothing is known about costs 10.
_HOTTEST = 12.0
# Text, class, and percent of the longest bar, which None has not.
_Cell = tuple[str, Markup, float | None]


def html_page(report: Report) -> str:
    """The whole page; equal reports give equal pages."""
    folder = resources.files("pgolf.report")
    page, style, script = ((folder / f"page.{end}").read_text("utf-8") for end in ("html", "css", "js"))
    # Names for the page's charts, each once.
    numbers = itertools.count(1)

    def drawn(chart: Chart) -> Markup:
        return Markup(svg(chart, f"c{next(numbers)}"))

    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.autoescape, environment.undefined = True, StrictUndefined
    found = environment.from_string(page).render(
        report=report,
        style=Markup(style),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        drawn=drawn,
        kind=lambda block: type(block).__name__,
        cells=_cells,
        legend=_legend,
        heat=lambda bits: min(max(round(bits / _HOTTEST * _HEAT_LEVELS), 0), _HEAT_LEVELS),
        heat_marks=[(n, f"{n * _HOTTEST / _HEAT_LEVELS:.0f}") for n in range(0, _HEAT_LEVELS + 1, 3)],
    )
    return plain(found, keep="\n\t")


def _legend(chart: Chart) -> list[tuple[str, str, int]]:
    """(name, style, colour) of what a chart shows, each once."""
    series = chart.series if isinstance(chart, LineChart) else ()
    return list(dict.fromkeys((s.name, s.style, s.color % len(COLORS)) for s in series if s.points))


def _cells(table: Table) -> tuple[list[tuple[str, Markup, bool]], list[list[_Cell]], bool]:
    """(name, class, whether bars follow) of the columns, the cells, and whether the table shares its line
    with nothing.
    """
    columns = [[row[index] for row in table.rows] for index in range(len(table.columns))]
    words = [any(isinstance(value, str) for value in column) for column in columns]
    bars = columns[list(table.columns).index(table.bar)] if table.bar else []
    largest = max(map(_size, bars), default=0.0)
    head = [
        (name, _class("" if word else "n"), bool(table.bar) and name == table.bar)
        for name, word in zip(table.columns, words, strict=True)
    ]

    def cell(name: str, value: Value, word: bool) -> _Cell:
        text = table.text(name, value)
        share = 100 * _size(value) / (largest or 1) if table.bar and name == table.bar else None
        return text, _class(("long" if len(text) > _LONG else "") if word else "n"), share

    rows = [[cell(*given) for given in zip(table.columns, row, words, strict=True)] for row in table.rows]
    long = any(isinstance(value, str) and len(value) > _VERY_LONG for row in table.rows for value in row)
    return head, rows, long or table.folded or len(table.columns) > 5


def _class(name: str) -> Markup:
    return Markup(f" class={name}" if name else "")


def _size(value: Value) -> float:
    """How long a cell's bar is: of a word, and of what is no number or below 0, it has none."""
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return max(0.0, float(value)) if known else 0.0  # type: ignore[arg-type]
