"""How numbers are written in reports, tables and sentences."""

from __future__ import annotations

import math

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
