"""What an analysis says, in parts that every report can show: tables, curves, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    """Floats carry all their digits; ``digits`` says how many are shown. None is shown as a dash."""
    note: str = ""
    """What a reader must know about it: units, method."""
    digits: int = 4
    """Decimal places of floats."""


@dataclass(frozen=True)
class Curve:
    """Measured points, and a line fitted to them."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[tuple[float, float]]
    """(x, y), one per run."""
    line: Sequence[tuple[float, float, float, float]] = ()
    """(x, fitted y, low, high): the fit with its 95 % band."""
    log_x: bool = False
    note: str = ""
    """The fitted formula with its uncertainty."""


@dataclass(frozen=True)
class Analysis:
    """Everything that was found in a study."""

    title: str
    statements: Sequence[str] = ()
    """Sentences made from the numbers, most important first."""
    tables: Sequence[Table] = field(default=())
    curves: Sequence[Curve] = field(default=())
