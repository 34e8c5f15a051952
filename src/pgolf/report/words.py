"""Values as words."""

from __future__ import annotations

import math

from pgolf.report.findings import Value


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
