"""A range coder over integer tables (Martin 1979), and distributions as such tables: exact on every machine.

Probabilities have 32 bits, so that even the rarest of 65,536 symbols costs the common ones nothing to speak
of; the coder's own rounding adds less than 2^-15 of a bit per symbol. ``Encoder`` and ``Decoder`` have the
same interface: the one is given each symbol, the other finds it, so that one loop can write and read.

The same float32 logarithms give the same table everywhere: only additions, multiplications and divisions of
float64 are used, which IEEE 754 rounds exactly, and integers. No exp: its last bit differs between libraries.
"""

from __future__ import annotations

import abc
import functools

import numpy as np
from numpy.typing import NDArray

PRECISION = 32
TOTAL = 1 << PRECISION
"""What every table adds up to."""

Cumulative = NDArray[np.int64]
"""(n + 1,): entry s is the sum of the frequencies of all symbols before s; from 0 to ``TOTAL``."""

_STATE_BITS, _BLOCK_BITS = 64, 16
_STATE_BYTES, _BLOCK_BYTES = _STATE_BITS // 8, _BLOCK_BITS // 8
_LOWEST_RANGE = 1 << (_STATE_BITS - _BLOCK_BITS)
_MASK = (1 << _STATE_BITS) - 1
_INDEX_BITS = 12
_BITS_PER_NAT = 1.4426950408889634
# ln 2 / 2^12: how much a power of two changes over one entry of the table.
_SLOPE = 0.6931471805599453 / (1 << _INDEX_BITS)
# Weights are integers below 2^46, so that 65,536 of them add up within 64 bits.
_WEIGHT_BITS = 46


class Coder(abc.ABC):
    """One direction of coding."""

    _range = _MASK

    def symbol(self, value: int | None, cumulative: Cumulative) -> int:
        """Code a symbol in [0, n), whose frequency is at least 1, under a table; returns it."""
        unit = self._range >> PRECISION
        found = self._choose(value, unit, TOTAL, cumulative)
        start, end = int(cumulative[found]), int(cumulative[found + 1])
        self._narrow(unit, start, end - start)
        return found

    def number(self, value: int | None, bits: int) -> int:
        """Code a number in [0, 2^bits), all equally likely, with 0 to 32 bits; returns it."""
        unit = self._range >> bits
        found = self._choose(value, unit, 1 << bits)
        self._narrow(unit, found, 1)
        return found

    @abc.abstractmethod
    def _choose(self, value: int | None, unit: int, total: int, cumulative: Cumulative | None = None) -> int:
        """The symbol that is coded, among ``total`` units of the range; without a table each has one."""

    @abc.abstractmethod
    def _narrow(self, unit: int, start: int, size: int) -> None:
        """Narrow the range to ``size`` of its units, from ``start`` on."""


class Encoder(Coder):
    """Writes symbols."""

    def __init__(self) -> None:
        self._low, self._bytes = 0, bytearray()

    def finish(self) -> bytes:
        """Everything that was coded, in as few bytes as say it; nothing may be coded afterwards."""
        # The number in the last interval with the most trailing zeros; the decoder reads zeros after the end.
        for bits in range(_STATE_BITS, -1, -8):
            unit = 1 << bits
            value = -(-self._low // unit) * unit
            if value < self._low + self._range:
                self._low = value
                break
        if self._low > _MASK:
            self._carry()
        return bytes(self._bytes) + self._low.to_bytes(_STATE_BYTES, "big").rstrip(b"\x00")

    def _choose(self, value: int | None, unit: int, total: int, cumulative: Cumulative | None = None) -> int:
        assert value is not None and 0 <= value < total
        return value

    def _narrow(self, unit: int, start: int, size: int) -> None:
        assert size > 0, "a symbol that the table does not allow"
        self._low += unit * start
        self._range = unit * size
        if self._low > _MASK:
            self._carry()
        while self._range < _LOWEST_RANGE:
            self._bytes += (self._low >> (_STATE_BITS - _BLOCK_BITS)).to_bytes(_BLOCK_BYTES, "big")
            self._low = (self._low << _BLOCK_BITS) & _MASK
            self._range <<= _BLOCK_BITS

    def _carry(self) -> None:
        self._low &= _MASK
        place = len(self._bytes) - 1
        while self._bytes[place] == 0xFF:
            self._bytes[place] = 0
            place -= 1
        self._bytes[place] += 1


class Decoder(Coder):
    """Reads symbols; a ``ValueError`` if the content ends too early or is no code of what is asked for.

    Most contents decode to some symbols, so what comes out has to be checked by a digest.
    """

    def __init__(self, content: bytes) -> None:
        self._content, self._place, self._offset = content, 0, 0
        for _ in range(_STATE_BYTES // _BLOCK_BYTES):
            self._next()

    def finish(self) -> None:
        """Check that nothing follows what was read."""
        if self._place < len(self._content):
            raise ValueError("something follows its end")

    def _choose(self, value: int | None, unit: int, total: int, cumulative: Cumulative | None = None) -> int:
        slot = self._offset // unit
        if slot >= total:
            raise ValueError("its bytes are no code")
        return slot if cumulative is None else int(np.searchsorted(cumulative, slot, side="right")) - 1

    def _narrow(self, unit: int, start: int, size: int) -> None:
        self._offset -= unit * start
        self._range = unit * size
        while self._range < _LOWEST_RANGE:
            self._next()
            self._range <<= _BLOCK_BITS

    def _next(self) -> None:
        block = self._content[self._place : self._place + _BLOCK_BYTES]
        self._place += _BLOCK_BYTES
        # The encoder leaves out at most one state's worth of zeros.
        if self._place > len(self._content) + _STATE_BYTES:
            raise ValueError("it ends too early")
        value = int.from_bytes(block.ljust(_BLOCK_BYTES, b"\x00"), "big")
        self._offset = self._offset << _BLOCK_BITS | value


def frequencies(log_probabilities: NDArray[np.float32]) -> Cumulative:
    """The cumulative table of a distribution, in which every symbol has a frequency of at least 1.

    Takes natural logarithms (V,) float32, V at most 65,536; what matters are their differences, and minus
    infinity is allowed. A ``ValueError`` says that one is not a number, or none is above minus infinity.
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
