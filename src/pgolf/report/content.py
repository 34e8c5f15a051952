"""What a report says, without how it looks: sections of blocks that ``html.py`` and ``markdown.py`` both
show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pgolf.report.findings import Table

Mood = Literal["plain", "good", "bad"]
# line: joined points; faint: a thin line behind the others; dots: points joined by dashes, for few
# measurements.
Style = Literal["line", "faint", "dots", "points"]


@dataclass(frozen=True)
class Card:
    """One of the few numbers that a reader looks for first."""

    label: str
    value: str
    note: str = ""
    share: float | None = None
    """Part of a whole (0 to 1) that is drawn as a bar."""
    mood: Mood = "plain"


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str
    mood: Mood = "plain"
    strong: bool = False


@dataclass(frozen=True)
class Statements:
    """Sentences that stand on their own, the most important first."""

    texts: Sequence[str]
    title: str = ""
    folded: bool = False
    """Many: shown when asked for."""


@dataclass(frozen=True)
class Facts:
    """Labelled lines."""

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Listing:
    """Text as it stands, such as commands."""

    lines: Sequence[str]
    language: str = "sh"
    title: str = ""
    folded: bool = False
    """Long: shown when asked for."""


@dataclass(frozen=True)
class Sheet:
    """A table; the numbers of one column may be drawn as bars."""

    table: Table
    bar: str = ""
    """Name of that column."""
    folded: bool = False
    """Long: shown when asked for."""


@dataclass(frozen=True)
class Series:
    """Points of one kind in a chart, ordered by x."""

    name: str
    points: Sequence[tuple[float, float]]
    style: Style = "line"
    color: int = 0
    """Which of the page's colours."""


@dataclass(frozen=True)
class LineChart:
    """y by x."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high): where a fit is uncertain."""
    log_x: bool = False
    highest: float | None = None
    """Cut off what is above."""
    note: str = ""


@dataclass(frozen=True)
class Waterfall:
    """How one number becomes another, step by step."""

    title: str
    unit: str
    first: tuple[str, float]
    steps: Sequence[tuple[str, float]]
    """(what changed, the number after it)."""
    last: str
    """What the last number is."""
    note: str = ""


@dataclass(frozen=True)
class Areas:
    """Parts of a whole as rectangles."""

    title: str
    unit: str
    parts: Sequence[tuple[str, str, float]]
    """(group, name, size)."""
    note: str = ""


@dataclass(frozen=True)
class Passage:
    """Text in pieces, with what each cost."""

    title: str
    pieces: Sequence[tuple[str, float]]
    """(text, bits); control tokens have the text of a mark."""


@dataclass(frozen=True)
class Passages:
    """Passages coloured by bits."""

    title: str
    passages: Sequence[Passage]
    note: str = ""


@dataclass(frozen=True)
class Samples:
    """Generated texts."""

    title: str
    texts: Sequence[str]
    note: str = ""


Block = Prose | Statements | Facts | Listing | Sheet | LineChart | Waterfall | Areas | Passages | Samples


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; ``key`` is its anchor, a plain word."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    sections: Sequence[Section]
