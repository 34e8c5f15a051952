"""Entropy coding of integer codes, steps and small floats: a range coder under a parametric, adapting model.

A matrix of codes is modelled as zero-mean noise whose spread is a product, one factor per row and one per
column. Factors are powers of 2^(1/4), sent as side information, so every entry falls into one of 40 classes
of equal spread. All entries of a class share a table of probabilities: a discretised mixture of a normal and
a Laplace distribution, blended per tensor, plus the counts of what the class has shown so far, in this
tensor and the earlier ones of its kind. The symbols go through constriction's range coder.

The tables must be equal to the last bit wherever the file is read. They are made with additions, divisions,
multiplications and square roots of float64 only, which IEEE 754 rounds exactly, and with integer counts.

The same functions write and read: a ``Writer`` encodes the values it is given, a ``Reader`` returns the ones
it decodes, so both sides take the same steps by construction.
"""

from __future__ import annotations

import abc
import functools
from typing import Any, NamedTuple

import constriction
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Codes = NDArray[np.int8]
Table = NDArray[np.float64]
Levels = NDArray[np.int64]

CLASSES = 40
_PER_OCTAVE = 4
_SMALLEST_SPREAD = 0.125
SHAPES = 5
_OFFSET = 128
_ALPHABET = 256
# What the parametric table weighs beside counted symbols, in symbols.
_PRIOR_WEIGHT = 64.0
_FIRST_BLOCK, _LAST_BLOCK = 128, 8192
_WORD = 1 << 16
# Modes of a matrix: which factors are sent.
_PLAIN, _ROWS, _BOTH = 0, 1, 2


class Stream(abc.ABC):
    """One direction of coding: values are given to be written, and None to be read; both return them."""

    def code(self, values: Ints | None, count: int, table: Table) -> Ints:
        """Code ``count`` symbols from 0 up, all under one table of weights."""
        return self._symbols(values, count, constriction.stream.model.Categorical(table, perfect=False))

    def uniform(self, values: Ints | None, count: int, size: int) -> Ints:
        """Code ``count`` symbols in [0, size), all equally likely."""
        if size <= 1 or not count:
            return np.zeros(count, dtype=np.int32)
        return self._symbols(values, count, constriction.stream.model.Uniform(size))

    @abc.abstractmethod
    def _symbols(self, values: Ints | None, count: int, model: Any) -> Ints: ...


class Writer(Stream):
    """Encodes symbols."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def _symbols(self, values: Ints | None, count: int, model: Any) -> Ints:
        assert values is not None
        assert len(values) == count
        self._encoder.encode(values, model)
        return values

    def size(self) -> int:
        """Bytes of what was encoded so far."""
        return 4 * int(self._encoder.num_words())

    def content(self) -> bytes:
        """What was encoded, as little-endian 32-bit words."""
        return self._encoder.get_compressed().astype("<u4").tobytes()


class Reader(Stream):
    """Decodes symbols; most content decodes to some symbols, so check its digest first and the values after.

    Raises:
        ValueError: the content is no code of the symbols asked for.
    """

    def __init__(self, content: bytes) -> None:
        words = np.frombuffer(content, dtype="<u4").astype(np.uint32)
        self._decoder = constriction.stream.queue.RangeDecoder(words)

    def _symbols(self, values: Ints | None, count: int, model: Any) -> Ints:
        try:
            decoded: Ints = self._decoder.decode(model, count)
        except AssertionError as error:
            # constriction's way to say that no symbols are coded like this.
            raise ValueError("its words are no code of such values") from error
        return decoded

    def exhausted(self) -> bool:
        """Whether everything that was encoded may have been read."""
        return bool(self._decoder.maybe_exhausted())


class Model:
    """The adapting side of a stream: what each kind of symbol has shown so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._counts: dict[tuple[str, int], Table] = {}

    def matrix(self, codes: Codes | None, rows: int, columns: int, low: int, high: int, kind: str) -> Codes:
        """Code a matrix (rows, columns) of codes in [low, high]; ``None`` reads it.

        Args:
            kind: tensors of one kind share what is learned about their codes.
        """
        plan = _plan(codes, low, high) if codes is not None else _Plan()
        mode, shape = self._number(plan.mode, 3), self._number(plan.shape, SHAPES)
        row_levels = self.integers(plan.rows, rows if mode != _PLAIN else 1, "rows")
        column_levels = np.zeros(columns, dtype=np.int64)
        if mode == _BOTH:
            column_levels = self.integers(plan.columns, columns, "columns")
        if mode == _PLAIN:
            row_levels = np.repeat(row_levels, rows)
        classes = _classes(row_levels, column_levels).ravel()
        order = np.argsort(classes, kind="stable")
        present = np.bincount(classes, minlength=CLASSES)
        symbols = None if codes is None else codes.ravel()[order].astype(np.int32) - low
        flat = np.empty(rows * columns, dtype=np.int8)
        start = 0
        for level in np.flatnonzero(present):
            stop = start + int(present[level])
            prior = _prior(shape)[level, low + _OFFSET : high + _OFFSET + 1]
            counts = self._shown(kind, int(level))[low + _OFFSET : high + _OFFSET + 1]
            given = None if symbols is None else symbols[start:stop]
            part = self._adapting(given, stop - start, prior, counts)
            flat[order[start:stop]] = part + low
            start = stop
        return flat.reshape(rows, columns)

    def integers(self, values: Levels | None, count: int, kind: str) -> Levels:
        """Code integers of magnitude below 2^31; cheap where they are close or share trailing zero bits.

        Each is a centre plus a difference: its top eight bits are modelled, its lower bits sent as they are.
        """
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        centre = grain = shift = level = top = low_bits = None
        if values is not None:
            centre = int(np.sort(values)[count // 2])
            difference = values - centre
            grain = _trailing_zeros(difference)
            difference >>= grain
            largest = int(max(difference.max(), -1 - difference.min(), 0))
            shift = max(largest.bit_length() - 7, 0)
            top = (difference >> shift).astype(np.int32) + _OFFSET
            low_bits = (difference & ((1 << shift) - 1)).astype(np.int64)
            level = _nearest_level(np.abs(top - _OFFSET).mean())
        centre = self._wide(centre)
        grain, shift = self._number(grain, 32), self._number(shift, 32)
        level = self._number(level, CLASSES)
        top = self._adapting(top, count, _prior(SHAPES - 1)[level], self._shown(kind, level))
        number = (top.astype(np.int64) - _OFFSET) << shift
        for start in range(0, shift, 16):
            size = 1 << min(16, shift - start)
            part = None if low_bits is None else ((low_bits >> start) % size).astype(np.int32)
            number += self.stream.uniform(part, count, size).astype(np.int64) << start
        return centre + (number << grain)

    def _adapting(self, values: Ints | None, count: int, prior: Table, counts: Table) -> Ints:
        """Code symbols in growing blocks; each block's table holds the counts of everything before it."""
        found = np.empty(count, dtype=np.int32)
        start, block = 0, _FIRST_BLOCK
        while start < count:
            stop = min(start + block, count)
            given = None if values is None else values[start:stop]
            part = self.stream.code(given, stop - start, prior + counts)
            counts += np.bincount(part, minlength=len(counts))
            found[start:stop] = part
            start, block = stop, min(2 * block, _LAST_BLOCK)
        return found

    def _shown(self, kind: str, level: int) -> Table:
        return self._counts.setdefault((kind, level), np.zeros(_ALPHABET))

    def _number(self, value: int | None, size: int) -> int:
        given = None if value is None else np.array([value], dtype=np.int32)
        return int(self.stream.uniform(given, 1, size)[0])

    def _wide(self, value: int | None) -> int:
        given = None if value is None else value + (1 << 31)
        top = self._number(None if given is None else given >> 16, _WORD)
        return (top << 16) + self._number(None if given is None else given % _WORD, _WORD) - (1 << 31)


class _Plan(NamedTuple):
    """What the writer decides about a matrix; of what is read nothing is known yet."""

    mode: int | None = None
    shape: int | None = None
    rows: Levels | None = None
    columns: Levels | None = None


def _plan(codes: Codes, low: int, high: int) -> _Plan:
    """Choose factors and blend by the bits they would cost."""
    magnitude = np.abs(codes.astype(np.float32))
    row_means = magnitude.mean(axis=1) if codes.size else np.zeros(codes.shape[0], dtype=np.float32)
    overall = np.array([_nearest_level(magnitude.mean() if codes.size else 0.0)], dtype=np.int64)
    if min(codes.shape) < 2:
        return _Plan(_PLAIN, _cheapest_shape(codes, overall, None, low, high)[0], overall)
    rows = _nearest_levels(row_means)
    spread = _mean_magnitudes()[rows]
    # Each entry in units of its row's spread, so that a column's factor is what its row does not explain.
    column_means = (magnitude / spread[:, None]).mean(axis=0)
    columns = np.rint(_PER_OCTAVE * np.log2(np.maximum(column_means, 2.0**-8))).astype(np.int64)
    columns -= int(np.sort(columns)[len(columns) // 2])
    rows_given_columns = _nearest_levels((magnitude / np.exp2(columns / _PER_OCTAVE)).mean(axis=1))
    choices: list[tuple[float, _Plan]] = []
    modes = (_PLAIN, overall, None), (_ROWS, rows, None), (_BOTH, rows_given_columns, columns)
    for mode, row_levels, column_levels in modes:
        shape, bits = _cheapest_shape(codes, row_levels, column_levels, low, high)
        for levels in (row_levels, column_levels):
            bits += 0.0 if levels is None or len(levels) < 2 else _entropy_bits(levels)
        choices.append((bits, _Plan(mode, shape, row_levels, column_levels)))
    return min(choices, key=lambda choice: choice[0])[1]


def _cheapest_shape(
    codes: Codes, rows: Levels, columns: Levels | None, low: int, high: int
) -> tuple[int, float]:
    """The blend whose tables fit the codes best, and the bits of the codes if counts were used instead."""
    row_levels = np.repeat(rows, codes.shape[0]) if len(rows) == 1 else rows
    column_levels = np.zeros(codes.shape[1], dtype=np.int64) if columns is None else columns
    classes = _classes(row_levels, column_levels)
    joint = classes.astype(np.int32) * _ALPHABET + (codes.astype(np.int32) + _OFFSET)
    counts = np.bincount(joint.ravel(), minlength=CLASSES * _ALPHABET).reshape(CLASSES, _ALPHABET)
    window = slice(low + _OFFSET, high + _OFFSET + 1)
    fits = []
    for shape in range(SHAPES):
        table = _prior(shape)[:, window]
        chances = table / table.sum(axis=1, keepdims=True)
        fits.append(-(counts[:, window] * np.log2(np.maximum(chances, 2.0**-24))).sum())
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    own = -(counts * np.log2(np.maximum(counts / totals, 2.0**-24))).sum()
    learning = 4.0 * np.count_nonzero(counts)
    return int(np.argmin(fits)), float(min(min(fits), own + learning))


def _classes(rows: Levels, columns: Levels) -> NDArray[np.uint8]:
    levels = np.clip(rows, -CLASSES, 2 * CLASSES)[:, None] + np.clip(columns, -CLASSES, CLASSES)[None, :]
    return np.clip(levels, 0, CLASSES - 1).astype(np.uint8)


def _entropy_bits(values: Levels) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / len(values))).sum() + 4 * len(counts))


def _nearest_level(mean: float) -> int:
    return int(_nearest_levels(np.array([mean]))[0])


def _nearest_levels(means: NDArray[Any]) -> Levels:
    """The classes whose mean magnitude is nearest, by ratio, to the given ones."""
    known = np.log2(_mean_magnitudes())
    edges = (known[1:] + known[:-1]) / 2
    return np.searchsorted(edges, np.log2(np.maximum(means, 1e-9))).astype(np.int64)


@functools.cache
def _mean_magnitudes() -> Table:
    table = _prior(SHAPES // 2)
    return table @ np.abs(np.arange(_ALPHABET) - _OFFSET) / table.sum(axis=1)


def _trailing_zeros(values: Levels) -> int:
    union = int(np.bitwise_or.reduce(values)) if len(values) else 0
    return (union & -union).bit_length() - 1 if union else 0


@functools.cache
def _prior(shape: int) -> Table:
    """Weights (classes, 256) of the codes -128 to 127; each row sums to the weight of the parametric model.

    A code's weight is the density's mean over eight points of its interval.
    """
    points = np.arange(_ALPHABET * 8, dtype=np.float64) / 8.0 + 1.0 / 16 - 0.5 - _OFFSET
    blend = shape / (SHAPES - 1.0)
    table = np.empty((CLASSES, _ALPHABET))
    spread = _SMALLEST_SPREAD
    fourth_root = np.sqrt(np.sqrt(2.0))
    for level in range(CLASSES):
        scaled = np.abs(points / spread)
        # exp(-x^2/2) and exp(-sqrt(2)|x|) as powers of 2, each with its density's constant.
        normal = 0.3989422804014327 * _power_of_two(scaled * scaled * 0.7213475204444817)
        laplace = 0.7071067811865476 * _power_of_two(scaled * 2.0402789101734454)
        density = (1.0 - blend) * normal + blend * laplace
        sums = _added(density.reshape(_ALPHABET, 8).T) + 2.0**-40
        table[level] = sums * (_PRIOR_WEIGHT / _added(sums))
        spread = _SMALLEST_SPREAD * 2.0 ** ((level + 1) // 4) if level % 4 == 3 else spread * fourth_root
    return table


def _added(values: Table) -> Any:
    """Sum over the first axis, one after the other: numpy's own order may differ between builds."""
    total: Any = 0.0
    for value in values:
        total = total + value
    return total


def _power_of_two(exponent: Table) -> Table:
    """2^-exponent for exponents >= 0, from multiplications and square roots alone (see the module's text)."""
    bounded = np.minimum(exponent, 900.0)
    whole = np.floor(bounded)
    rest = bounded - whole
    result = np.ldexp(np.ones_like(rest), -whole.astype(np.int32))
    root = 0.5
    for _ in range(40):
        root = float(np.sqrt(root))
        rest = rest * 2.0
        bit = rest >= 1.0
        result = np.where(bit, result * root, result)
        rest = np.where(bit, rest - 1.0, rest)
    return result


def float_order(bits: NDArray[Any], width: int) -> Levels:
    """Map the bit patterns of floats of ``width`` bits to integers in the order of their values, and back.

    The map is its own inverse: negative patterns (sign bit set) become -1, -2, ... downward.
    """
    sign = np.int64(1) << (width - 1)
    values = bits.astype(np.int64)
    return np.where(values < 0, -1 - values + sign, np.where(values & sign != 0, sign - 1 - values, values))
