"""Entropy coding of integer codes, steps and small floats: binary decisions, predicted by a mixture.

A code is a few decisions: is it 0, how many bits has its magnitude, which are they, is it positive. Each is
predicted in six contexts: what the row and the column have shown of magnitudes so far, and the codes to the
left and above. The six log odds are added with weights that are learned as the codes go by (logistic mixing,
Mahoney 2005), and the decision goes through the arithmetic coder of ``kernels/bits.py``. So nothing is sent
beside the codes: whoever reads them learns the same.

The codes of a trellis (see ``trellis.py``) mean one of two grids by its state, which the contexts know.

All that is learned is integers, so both sides agree to the last bit on every machine. The tables of logarithm
and logistic function are rounded far more coarsely than libraries differ.

The same functions write and read: what is given is written, and where nothing is given it is read, so both
sides take the same steps by construction.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.compress.trellis import FOLLOWS, ODD
from pgolf.kernels.bits import code_bit, new_coder, settle
from pgolf.kernels.compiled import compiled, inner

Codes = NDArray[np.int8]
Levels = NDArray[np.int64]

_OFFSET = 128
_WORD = 1 << 16
_CONTEXTS = 6
_PLACES = 2048
# Decisions: zero or not (by grid), seven of the exponent, each of the mantissa by those before it, the sign.
_EXPONENT, _MANTISSA, _SIGN = 2, 18, 274
# Decisions a context has to have seen until it changes as slowly as it ever will.
_PATIENCE = 250
_FIRST_WEIGHT = 15000
_LARGEST_LEVEL = 39
# Magnitudes are counted in 1/65536, and looked up in 1/256.
_FIRST_MEAN = 52429
_LEAST_MEAN = 1311
_ROW_MEMORY, _COLUMN_MEMORY = 128, 120


def _logistic() -> NDArray[np.uint16]:
    """Probabilities in 1/65536 of log odds from -2047 to 2047 in 1/256."""
    odds = [1 / (1 + math.exp(-step / 256)) for step in range(-2047, 2048)]
    return np.array([min(max(round(65536 * value), 32), 65504) for value in odds], np.uint16)


def _log_odds() -> NDArray[np.int16]:
    """Log odds in 1/256 of probabilities in 1/4096, each taken at its middle."""
    middles = [(step + 0.5) / 4096 for step in range(4096)]
    return np.array([round(256 * math.log(p / (1 - p))) for p in middles], np.int16)


def _levels() -> NDArray[np.int8]:
    """Which third of an octave a mean magnitude in 1/256 falls into."""
    thirds = [math.floor(math.log2(step / 256 + 0.02) * 3 + 17.5) for step in range(1 << 15)]
    return np.clip(thirds, 0, _LARGEST_LEVEL).astype(np.int8)


_SQUASH, _STRETCH, _LEVEL = _logistic(), _log_odds(), _levels()
_SHARE = np.array([65536 / (seen + 1.5) for seen in range(_PATIENCE + 1)]).astype(np.int64)


class Stream:
    """Arrays one after the other, written into bytes, or read from ``content`` where it is given.

    What is given to a method is written, and comes back; a reader gives ``None``.
    """

    def __init__(self, content: bytes | None = None, entries: int = 0) -> None:
        """``entries`` is about how many numbers a writer will have to write."""
        room = np.zeros(2 * entries + _WORD, np.uint8)
        self._coded = room if content is None else np.frombuffer(bytearray(content), np.uint8)
        self._coder = new_coder()
        self._kinds: dict[str, tuple[NDArray[Any], ...]] = {}
        if content is not None:
            settle(self._coder, self._coded, True)

    def matrix(
        self, codes: Codes | None, rows: int, columns: int, low: int, high: int, trellis: bool = False
    ) -> Codes:
        """Code a matrix (rows, columns) of codes in [low, high], or of a trellis.

        Raises:
            ValueError: what is read is no such code.
        """
        found = np.zeros((rows, columns), np.int8) if codes is None else np.ascontiguousarray(codes)
        sound = self._code("codes", found, trellis, codes is None)
        if not sound or (codes is None and found.size and not low <= found.min() <= found.max() <= high):
            raise ValueError("it holds a code outside its range")
        return found

    def integers(self, values: Levels | None, count: int, kind: str) -> Levels:
        """Code integers of magnitude below 2^31; cheap where they are close or share trailing zero bits.

        Each is a centre plus a difference: its top eight bits are modelled, its lower bits sent as they are.
        Those of one kind share what is learned about them.
        """
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        centre = grain = shift = 0
        top, low_bits = np.zeros((1, count), np.int8), np.zeros(count, np.int64)
        if values is not None:
            centre = int(np.sort(values)[count // 2])
            difference = values - centre
            grain = _trailing_zeros(difference)
            difference >>= grain
            largest = int(max(difference.max(), -1 - difference.min(), 0))
            shift = max(largest.bit_length() - 7, 0)
            top[0] = difference >> shift
            low_bits = difference & ((1 << shift) - 1)
        reads = values is None
        about = np.array([centre + (1 << 31), grain, shift], np.int64)
        for index, size in enumerate((32, 5, 5)):
            _code_plain(about[index : index + 1], size, self._coder, self._coded, reads)
        centre, grain, shift = (int(value) for value in about)
        self._code(kind, top, False, reads)
        _code_plain(low_bits, shift, self._coder, self._coded, reads)
        return centre - (1 << 31) + (((top[0].astype(np.int64) << shift) + low_bits) << grain)

    def size(self) -> int:
        """Bytes that were written or read so far."""
        return int(self._coder[3])

    def content(self) -> bytes:
        """What was written; nothing can be added afterwards. Empty if there was too little room."""
        settle(self._coder, self._coded, False)
        return self._coded[: self.size()].tobytes() if self.size() <= len(self._coded) else b""

    def exhausted(self) -> bool:
        """Whether all of the content was read, and nothing behind it."""
        return self.size() == len(self._coded)

    def _code(self, kind: str, codes: Codes, trellis: bool, reads: bool) -> bool:
        """Write codes (R, C), or read them into their place; whether those that are read are codes."""
        if kind not in self._kinds:
            shape = _SIGN + 1, _CONTEXTS, _PLACES
            weights = np.full(shape[:2], _FIRST_WEIGHT, np.int64)
            self._kinds[kind] = np.full(shape, 1 << 15, np.uint16), np.zeros(shape, np.uint16), weights
        sums, signs = np.zeros((2, codes.shape[1]), np.int64)
        places, odds = np.zeros((2, _CONTEXTS), np.int64)
        given = codes, trellis, sums, signs, places, odds, self._coder, self._coded, reads
        return bool(_code_matrix(*self._kinds[kind], *given))


@inner
def _decide(chances, seen, weights, decision, places, odds, coder, coded, bit):
    """Write a decision, or read it where it is negative; learn from it."""
    total = 0
    for index in range(_CONTEXTS):
        odds[index] = _STRETCH[chances[decision, index, places[index]] >> 4]
        total += weights[decision, index] * odds[index]
    right = np.int64(_SQUASH[min(max(total >> 16, -2047), 2047) + 2047])
    bit = code_bit(coder, coded, right / 65536.0, bit)
    error = (bit << 16) - right
    for index in range(_CONTEXTS):
        place = places[index]
        weights[decision, index] += (error * odds[index] + 32768) >> 16
        chance, count = np.int64(chances[decision, index, place]), seen[decision, index, place]
        chance += (((bit << 16) - chance) * _SHARE[count]) >> 16
        chances[decision, index, place] = min(max(chance, 16), 65519)
        if count < _PATIENCE:
            seen[decision, index, place] = count + 1
    return bit


@compiled
def _code_matrix(chances, seen, weights, codes, trellis, sums, signs, places, odds, coder, coded, read):
    """Write codes (R, C) int8, or read them; False where one is read that int8 cannot hold.

    ``sums`` and ``signs`` (C,) are 0 at first; ``places`` and ``odds`` (6,) are worked with.
    """
    rows, columns = codes.shape
    mean, done = np.int64(_FIRST_MEAN), np.int64(0)
    for row in range(rows):
        state, row_mean = np.int64(0), mean
        for column in range(columns):
            odd = np.int64(ODD[state]) if trellis else np.int64(0)
            left = abs(np.int64(codes[row, column - 1])) if column > 0 else 0
            left_2 = abs(np.int64(codes[row, column - 2])) if column > 1 else 0
            above = abs(np.int64(codes[row - 1, column])) if row > 0 else 0
            above_2 = abs(np.int64(codes[row - 2, column])) if row > 1 else 0
            column_mean = (sums[column] + mean) // (min(row, _COLUMN_MEMORY) + 1)
            both = _LEVEL[min(row_mean * column_mean // max(mean, _LEAST_MEAN) >> 8, 32767)]
            of_row, of_column = _LEVEL[min(row_mean >> 8, 32767)], _LEVEL[min(column_mean >> 8, 32767)]
            near = 2 * left + left_2 + 2 * above + above_2
            places[0] = both
            places[1] = of_row // 2 * 20 + of_column // 2
            places[2] = ((min(left, 5) * 6 + min(left_2, 5)) * 6 + min(above, 5)) * 6 + min(above_2, 5)
            places[3] = of_column * 8 + min(above, 7)
            places[4] = of_row * 8 + min(left, 7)
            places[5] = min(near, 40) * 20 + both // 2
            value = np.int64(codes[row, column])
            size = abs(value)
            bit = np.int64(-1) if read else np.int64(size > 0)
            if _decide(chances, seen, weights, odd, places, odds, coder, coded, bit) == 0:
                size = 0
            else:
                exponent = 0
                while exponent < 7:
                    decision = _EXPONENT + 2 * exponent + odd
                    bit = np.int64(-1) if read else np.int64(size >> (exponent + 1) > 0)
                    if _decide(chances, seen, weights, decision, places, odds, coder, coded, bit) == 0:
                        break
                    exponent += 1
                found = np.int64(1)
                for index in range(exponent):
                    bit = np.int64(-1) if read else (size >> (exponent - 1 - index)) & 1
                    if exponent < 7:
                        decision = _MANTISSA + 2 * ((1 << exponent) + found) + odd
                        bit = _decide(chances, seen, weights, decision, places, odds, coder, coded, bit)
                    else:
                        bit = code_bit(coder, coded, 0.5, bit)
                    found = 2 * found + bit
                size = found
                before = np.int64(codes[row, column - 1]) if column > 0 else 0
                upper = np.int64(codes[row - 1, column]) if row > 0 else 0
                side = (1 if before > 0 else 0) + (2 if before < 0 else 0)
                over = (1 if upper > 0 else 0) + (2 if upper < 0 else 0)
                tendency = min(max((signs[column] >> 14) + 20, 0), 40)
                places[0] = column % _PLACES
                places[1] = 0
                places[2] = side * 3 + over
                places[3] = tendency
                places[4] = over * 41 + tendency
                places[5] = side
                bit = np.int64(-1) if read else np.int64(value > 0)
                bit = _decide(chances, seen, weights, _SIGN, places, odds, coder, coded, bit)
                signs[column] += (6554 if bit else -6554) - signs[column] // 50
                if read:
                    if size > 127 + (1 - bit):
                        return False
                    codes[row, column] = size if bit else -size
            if trellis:
                state = np.int64(FOLLOWS[state, size & 1])
            magnitude = size << 16
            row_mean += (magnitude - row_mean) // min(column + 2, _ROW_MEMORY)
            if row >= _COLUMN_MEMORY:
                sums[column] -= sums[column] // _COLUMN_MEMORY
            sums[column] += magnitude
            done += 1
            mean += (magnitude - mean) // min(done + 4, 5000)
    return True


@compiled
def _code_plain(values, bits, coder, coded, read):
    """Write the lowest bits of integers (n,), or read them: as they are."""
    for index in range(len(values)):
        found = np.int64(0)
        for place in range(bits - 1, -1, -1):
            bit = np.int64(-1) if read else (values[index] >> place) & 1
            found = 2 * found + code_bit(coder, coded, 0.5, bit)
        values[index] = found


def _trailing_zeros(values: Levels) -> int:
    union = int(np.bitwise_or.reduce(values)) if len(values) else 0
    return (union & -union).bit_length() - 1 if union else 0


def float_order(bits: NDArray[Any], width: int) -> Levels:
    """Map the bit patterns of floats of ``width`` bits to integers in the order of their values, and back.

    The map is its own inverse: negative patterns (sign bit set) become -1, -2, ... downward.
    """
    sign = np.int64(1) << (width - 1)
    values = bits.astype(np.int64)
    return np.where(values < 0, -1 - values + sign, np.where(values & sign != 0, sign - 1 - values, values))
