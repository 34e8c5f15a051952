"""An arithmetic coder of bits with given probabilities, compiled: bytes out of bits, and bits out of bytes.

Carryless, with an interval of 32 bits (Mahoney 2005). The probability is taken in 1/65536.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgolf.kernels.compiled import compiled


def new_coder() -> NDArray[np.uint64]:
    """An arithmetic coder of bits (4,): the ends of its interval, what is read ahead, bytes in use."""
    return np.array([0, 0xFFFFFFFF, 0, 0], np.uint64)


@compiled
def code_bit(coder, coded, right, bit):
    """Write a bit of which 1 has probability ``right``, or read it where it is negative; returns it.

    Bytes behind the end of ``coded`` are read as 0, and not written.
    """
    share = min(max(np.uint64(right * 65536.0), np.uint64(1)), np.uint64(65535))
    # Bit 1 has the lower part of the interval.
    middle, read = coder[0] + (coder[1] - coder[0]) * share // np.uint64(65536), bit < 0
    if read:
        bit = np.int64(coder[2] <= middle)
    if bit:
        coder[1] = middle
    else:
        coder[0] = middle + np.uint64(1)
    while (coder[0] ^ coder[1]) >> np.uint64(24) == np.uint64(0):
        _turn(coder, coded, read)
    return bit


@compiled
def settle(coder, coded, read):
    """Take in the first bytes, before anything is read, or give out the last ones, once all is written."""
    for _ in range(4):
        _turn(coder, coded, read)


@compiled
def _turn(coder, coded, read):
    """Take in the next byte, or give out the one that both ends of the interval have."""
    used = np.int64(coder[3])
    if read:
        ahead = np.uint64(coded[used] if used < len(coded) else 0)
        coder[2] = (coder[2] << np.uint64(8)) & np.uint64(0xFFFFFFFF) | ahead
    elif used < len(coded):
        coded[used] = coder[1] >> np.uint64(24)
    coder[0] = (coder[0] << np.uint64(8)) & np.uint64(0xFFFFFFFF)
    coder[1] = (coder[1] << np.uint64(8)) & np.uint64(0xFFFFFFFF) | np.uint64(255)
    coder[3] += np.uint64(1)
