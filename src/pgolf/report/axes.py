"""Scales and ticks of charts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps values to places on the page."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; outside of the range if the value is."""
        change: Callable[[float], float] = math.log if self.log else float
        low, high = change(self.low), change(self.high)
        return self.start + (change(value) - low) / ((high - low) or 1.0) * (self.end - self.start)


def padded(values: Sequence[float], part: float = 0.06) -> tuple[float, float]:
    """A range around values with some room, also around a single one."""
    low, high = min(values), max(values)
    room = (high - low) * part or abs(high) * 0.05 or 1.0
    return low - room, high + room


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within a range, about ``count`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within a range; only the powers where it is wide, others where it is
    narrow.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    found = [factor * 10.0**power for power in decades for factor in factors]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) > 2 else ticks(low, high, 4)


def tick_labels(values: Sequence[float]) -> list[str]:
    """The numbers with just the digits that tell them apart; large ones in thousands or millions."""
    largest = max((abs(value) for value in values), default=0.0)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= 10 * unit or (largest >= unit and all(value % (unit / 10) == 0 for value in values)):
            return [_plain(value / unit, 3) + (letter if value else "") for value in values]
    gaps = [abs(b - a) for a, b in itertools.pairwise(values) if a != b]
    digits = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 4
    return [f"{value:.{digits}f}" if gaps else _plain(value, digits) for value in values]


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def thinned(points: Sequence[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    """At most ``most`` points: the means of neighbours, the last point as it is."""
    if len(points) <= most:
        return list(points)
    result = []
    for index in range(most - 1):
        part = points[index * (len(points) - 1) // (most - 1) : (index + 1) * (len(points) - 1) // (most - 1)]
        result.append((math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)))
    return [*result, points[-1]]
