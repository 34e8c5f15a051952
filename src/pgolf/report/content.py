"""What a report says, without how it looks: sections of blocks, for ``html.py`` and ``markdown.py``; and how
numbers are written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Value = str | int | float | None
"""What a cell of a table holds."""


def shown(value: Value, digits: int) -> str:
    """A cell of a table: integers with thousands, floats with ``digits`` decimals, a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def number(value: float) -> str:
    """A number that stands alone: whole ones with thousands, others with the digits that matter."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:,.4g}"


def signed(value: float, digits: int = 4) -> str:
    """A difference: with its sign, but nothing has none."""
    text = f"{value:+,.{digits}f}"
    return text if any(digit in text for digit in "123456789") else text[1:]


def p_text(p: float) -> str:
    """A p-value, which is never shown as nothing."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def in_seconds(seconds: float | None) -> str:
    """The time that something took; nothing where it was not recorded."""
    if seconds is None:
        return ""
    return f"in {seconds:,.0f} s" if seconds >= 9.95 else f"in {seconds:.1f} s"


Mood = Literal["plain", "good", "bad"]
# faint: a thin line behind the others; dots: points joined by dashes, for few measurements.
Style = Literal["line", "faint", "dots", "points"]


class Card(NamedTuple):
    """One of the few numbers that a reader looks for first."""

    label: str
    value: str
    note: str = ""
    share: float | None = None
    """Part of a whole (0 to 1) that is drawn as a bar."""
    mood: Mood = "plain"


class Prose(NamedTuple):
    """A paragraph."""

    text: str
    mood: Mood = "plain"
    strong: bool = False


class Statements(NamedTuple):
    """Sentences that stand on their own, the most important first."""

    texts: Sequence[str]
    title: str = ""
    folded: bool = False
    """Shown when asked for; so everywhere below."""


class Listing(NamedTuple):
    """Text as it stands, such as commands."""

    lines: Sequence[str]
    language: str = "sh"
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    """Floats carry all their digits; None is shown as a dash."""
    note: str = ""
    """What a reader must know about it: units, method."""
    digits: int = 4
    """Decimal places of floats that are shown."""
    bar: str = ""
    """The column whose numbers are drawn as bars too."""
    differences: Sequence[str] = ()
    """The columns whose floats have a sign."""
    folded: bool = False

    def text(self, column: str, value: Value) -> str:
        """A cell as it is shown."""
        if column in self.differences and isinstance(value, float):
            return signed(value, self.digits)
        return shown(value, self.digits)


class Series(NamedTuple):
    """Points of one kind in a chart, ordered by x."""

    name: str
    points: Sequence[tuple[float, float]]
    style: Style = "line"
    color: int = 0


class LineChart(NamedTuple):
    """y by x."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high): where a fit is uncertain."""
    log_x: bool = False
    highest: float | None = None
    """What is above is cut off."""
    note: str = ""


class Waterfall(NamedTuple):
    """How one number becomes another, step by step."""

    title: str
    unit: str
    first: tuple[str, float]
    steps: Sequence[tuple[str, float]]
    """(what changed, the number after it)."""
    last: str
    note: str = ""

    @property
    def values(self) -> list[float]:
        """The number at first and after each step."""
        return [self.first[1], *(value for _, value in self.steps)]

    def changes(self) -> list[tuple[str, float, float]]:
        """(what changed, the number before it, the number after it)."""
        return [(name, old, new) for old, (name, new) in zip(self.values, self.steps, strict=False)]


class Bars(NamedTuple):
    """Sizes of parts, one bar for each group of them."""

    title: str
    unit: str
    parts: Sequence[tuple[str, str, float]]
    """(group, name, size)."""
    note: str = ""

    def parts_of(self, group: str) -> list[tuple[str, float]]:
        """(name, size) of its parts."""
        return [(name, size) for one, name, size in self.parts if one == group]

    def totals(self) -> dict[str, float]:
        """Size by group, the largest first; groups of no size are left out."""
        names = sorted({group for group, _, size in self.parts if size})
        sizes = {name: sum(size for _, size in self.parts_of(name)) for name in names}
        return {name: sizes[name] for name in sorted(names, key=lambda name: -sizes[name])}


class Interval(NamedTuple):
    """Several values of one thing, their mean, and where that may lie."""

    name: str
    mean: float
    low: float | None
    high: float | None
    values: Sequence[float]


class Intervals(NamedTuple):
    """Things side by side, a row for each."""

    title: str
    unit: str
    rows: Sequence[Interval]
    note: str = ""


class Passage(NamedTuple):
    """Text in pieces, with what each cost."""

    title: str
    pieces: Sequence[tuple[str, float | None]]
    """(text, bits, if they are known); control tokens have the text of a mark."""


class Passages(NamedTuple):
    """Texts, coloured by bits."""

    title: str
    passages: Sequence[Passage]
    note: str = ""
    legend: bool = False
    """Whether the note ends with what the colours mean."""


Chart = LineChart | Waterfall | Bars | Intervals
Block = Prose | Statements | Listing | Table | Chart | Passages


class Section(NamedTuple):
    """Blocks under a heading; ``key`` is its anchor, a plain word."""

    key: str
    title: str
    blocks: Sequence[Block]


class Report(NamedTuple):
    """A whole report."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    sections: Sequence[Section]
