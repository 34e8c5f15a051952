"""From a scorer's log-probabilities to the integer frequencies that a range coder needs.

The same float32 numbers give the same integers on every machine: only additions, multiplications and
divisions of float64 are used, which IEEE 754 rounds exactly, and integers. (No exp: its last bit differs
between libraries.)
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from pgolf.codec.arithmetic import TOTAL, Cumulative

_INDEX_BITS = 12
_BITS_PER_NAT = 1.4426950408889634
# ln 2 / 2^12: how much a power of two changes over one entry of the table.
_SLOPE = 0.6931471805599453 / (1 << _INDEX_BITS)
# Weights are integers below 2^46, so that 65,536 of them add up within 64 bits.
_WEIGHT_BITS = 46


def frequencies(log_probabilities: NDArray[np.float32]) -> Cumulative:
    """The cumulative table of a distribution.

    Args:
        log_probabilities: natural logarithms (V,) float32, V at most 65,536. They need not add up to 1; what
            matters are their differences. Minus infinity is allowed.

    Returns:
        (V + 1,) int64 from 0 to ``TOTAL``; every symbol has a frequency of at least 1, so that everything can
        be coded.

    Raises:
        ValueError: an entry is not a number, or none is above minus infinity.
    """
    largest = float(log_probabilities.max()) if len(log_probabilities) else np.nan
    if not np.isfinite(largest):
        raise ValueError("a distribution holds something that is no probability")
    return from_weights(power_of_two((largest - log_probabilities.astype(np.float64)) * _BITS_PER_NAT))


def from_weights(weights: NDArray[np.float64]) -> Cumulative:
    """The cumulative table of symbols that are as likely as their weights (n,) float64, from 0 to 1, are
    large.
    """
    count = len(weights)
    whole = (weights * float(1 << _WEIGHT_BITS)).astype(np.int64)
    share = float(TOTAL - count) / float(int(whole.sum()))
    sizes = (whole.astype(np.float64) * share).astype(np.int64) + 1
    # Rounding down leaves a rest; the likeliest symbol minds it least.
    sizes[int(sizes.argmax())] += TOTAL - int(sizes.sum())
    cumulative = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(sizes, out=cumulative[1:])
    return cumulative


def power_of_two(exponents: NDArray[np.float64]) -> NDArray[np.float64]:
    """2^-x for x >= 0 (infinity too), with a relative error below 2^-39; the same bits everywhere."""
    bounded = np.minimum(exponents, 64.0)
    scaled = bounded * (1 << _INDEX_BITS)
    places = scaled.astype(np.int64)
    rest = (scaled - places) * _SLOPE
    powers = _powers()[places & ((1 << _INDEX_BITS) - 1)]
    return np.ldexp(powers * (1.0 - rest * (1.0 - 0.5 * rest)), -(places >> _INDEX_BITS))


@functools.cache
def _powers() -> NDArray[np.float64]:
    """2^-(i / 4096) for i from 0 to 4095, as products of repeated square roots."""
    powers = np.ones(1 << _INDEX_BITS)
    places = np.arange(1 << _INDEX_BITS)
    root = 0.5
    for bit in reversed(range(_INDEX_BITS)):
        root = float(np.sqrt(root))
        powers[places >> bit & 1 == 1] *= root
    return powers
