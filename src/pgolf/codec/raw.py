"""What the language model is not asked about: raw bytes, and what white space stands where it sees a space.

A short run of bytes goes through an adaptive model: a byte's distribution is a blend of what followed the
two bytes before it, what followed the one before it, what bytes there were at all, and no knowledge. Each of
these four is trusted by how well it has predicted so far, and learns from every byte, on both sides alike. A
long run is packed by LZMA, or stored.

Many tokenizers, that of the public challenge among them, make a space of every newline, tab and row of
spaces. Their models have never seen a newline and would pay dearly for each. So such a text is tokenized as
the model knows it, and after every token that spells a space it is coded what *gap* stood there in truth, by
counts of what has stood between such characters, and so long after the last newline, before.
"""

from __future__ import annotations

import lzma
import re
from collections import defaultdict
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pgolf.codec.arithmetic import Coder, from_weights

LONG = 4096
"""Runs of at least this many bytes are packed as a whole."""
_ORDERS = (0, 1, 2)
# Counts that a wider context is worth when a narrower one is blended with it.
_BACKING = 2.0
# What every predictor keeps of the trust, however wrong it was.
_SHARE = 0.005
# A context's counts are halved when there are this many: what was seen last counts most.
_LIMIT = 4096
_LENGTH_BITS = 6
_GAP = re.compile("[ \t\n\r\u00a0]+")
# Gaps that are known from the start, and how many different ones are remembered.
_FORMS = (b" ", b"\n", b"\n\n", b"\r\n", b"  ", b"")
_MOST = 64
_NEW = 0
"""The symbol of a gap that is not known yet; others are one more than their place among the known."""
_SMALLEST_DICTIONARY, _LARGEST_DICTIONARY = 1 << 16, 1 << 26

_Context = TypeVar("_Context")
_Counts = defaultdict[_Context, NDArray[np.int64]]


class ByteModel:
    """What the raw bytes of a file have shown so far."""

    def __init__(self) -> None:
        # Of each context: counts of the 256 bytes after it, and their sum.
        self._counts: _Counts[bytes] = defaultdict(lambda: np.zeros(257, np.int64))
        self._lengths = np.ones(1 << _LENGTH_BITS, dtype=np.int64)
        self._trust = np.full(len(_ORDERS) + 1, 1.0 / (len(_ORDERS) + 1))
        self._history = b""

    def run(self, coder: Coder, content: bytes | None, limit: int) -> bytes:
        """Code a run of 1 to ``limit`` bytes, and return it; ``None`` reads it (or a ``ValueError``)."""
        length = self._length(coder, None if content is None else len(content))
        if length > limit:
            raise ValueError("a run of bytes is longer than the file")
        if length >= LONG:
            return self._packed(coder, content, length)
        return bytes(
            self._byte(coder, None if content is None else content[place]) for place in range(length)
        )

    def _packed(self, coder: Coder, content: bytes | None, length: int) -> bytes:
        packed = stored = None
        if content is not None:
            packed = lzma.compress(content, lzma.FORMAT_RAW, filters=_filters(length))
            stored = int(len(packed) >= length)
        if coder.number(stored, 1):
            return _plain(coder, content, length)
        size = self._length(coder, None if packed is None else len(packed))
        if size >= length:
            raise ValueError("a run of bytes is longer packed than as it is")
        packed = _plain(coder, packed, size)
        try:
            unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(length))
            found = unpacker.decompress(packed, max_length=length + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise ValueError(f"a run of bytes cannot be unpacked ({error})") from error
        if len(found) != length:
            raise ValueError("a run of bytes has another length than was announced")
        return found

    def _length(self, coder: Coder, length: int | None) -> int:
        """A length of 1 or more: the number of its bits, adaptively, then the bits below the first."""
        bits = None if length is None else length.bit_length() - 1
        bits = coder.symbol(bits, from_weights(self._lengths / int(self._lengths.sum())))
        self._lengths[bits] += 4
        rest = None if length is None else length - (1 << bits)
        low = coder.number(None if rest is None else rest & 0xFFFF, min(bits, 16))
        high = coder.number(None if rest is None else rest >> 16 & 0xFFFFFFFF, min(max(bits - 16, 0), 32))
        return (1 << bits) + (high << 16) + low

    def _byte(self, coder: Coder, value: int | None) -> int:
        history = self._history
        seen = [self._counts[history[len(history) - order :]] for order in _ORDERS if order <= len(history)]
        predictions = [np.full(256, 1.0 / 256)]
        for counts in seen:
            predictions.append((counts[:256] + _BACKING * predictions[-1]) / (float(counts[256]) + _BACKING))
        blend = np.zeros(256)
        # Fewer than four predict the first two bytes.
        for trust, prediction in zip(self._trust, predictions, strict=False):
            blend += trust * prediction
        found = coder.symbol(value, from_weights(blend))
        for order, prediction in enumerate(predictions):
            self._trust[order] *= prediction[found] / blend[found]
        self._trust = (1.0 - _SHARE) * self._trust + _SHARE / len(self._trust)
        for counts in seen:
            counts[found] += 1
            counts[256] += 1
            if counts[256] >= _LIMIT:
                counts[:256] >>= 1
                counts[256] = counts[:256].sum()
        self._history = (history + bytes((found,)))[-max(_ORDERS) :]
        return found


def _filters(length: int) -> list[dict[str, int]]:
    """LZMA's settings for a run, by its length, so that reading one takes no more memory than that."""
    dictionary = min(max(1 << (length - 1).bit_length(), _SMALLEST_DICTIONARY), _LARGEST_DICTIONARY)
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]


def _plain(coder: Coder, content: bytes | None, length: int) -> bytes:
    """Bytes as they are, four at a time."""
    found = bytearray()
    while len(found) < length:
        size = min(4, length - len(found))
        part = None if content is None else int.from_bytes(content[len(found) : len(found) + size], "little")
        found += coder.number(part, 8 * size).to_bytes(size, "little")
    return bytes(found)


def without_gaps(text: str) -> tuple[str, list[bytes]]:
    """A text with every gap as one space, and what the gaps were."""
    return _GAP.sub(" ", text), [gap.encode() for gap in _GAP.findall(text)]


class GapModel:
    """What the gaps of a file have shown so far; ``raw`` codes those that have not been seen before."""

    def __init__(self, raw: ByteModel) -> None:
        self._raw = raw
        self._known = list(_FORMS)
        self._counts: _Counts[tuple[int, ...]] = defaultdict(lambda: np.zeros(_MOST + 1, np.int64))
        self._since = 0
        # Most are what they seem.
        self._counts[()][1:3] = 30, 1

    def code(self, coder: Coder, gap: bytes | None, before: int, after: int, limit: int) -> bytes:
        """Code a gap of at most ``limit`` bytes; ``None`` reads it, with a ``ValueError`` if it is none.

        ``before`` is the byte before it (-1 at the beginning), ``after`` the one after it in the same token
        (-1 if there is none).
        """
        sides = (_kind(before), _kind(after))
        # Gaps since the last one that was no space: 0, from 1, from 2, from 4, from 8, ...
        seen = [self._counts[context] for context in ((), sides, (*sides, self._since.bit_length()))]
        size = len(self._known) + 1
        blend = np.full(size, 1.0 / size)
        for counts in seen:
            blend = (counts[:size] + _BACKING * blend) / (float(counts.sum()) + _BACKING)
        symbol = None
        if gap is not None:
            symbol = self._known.index(gap) + 1 if gap in self._known else _NEW
        symbol = coder.symbol(symbol, from_weights(blend))
        for counts in seen:
            counts[symbol] += 1
        if symbol != _NEW:
            gap = self._known[symbol - 1]
        else:
            gap = self._raw.run(coder, gap, limit)
            if len(self._known) < _MOST:
                self._known.append(gap)
        self._since = self._since + 1 if gap == b" " else 0
        return gap


def _kind(byte: int) -> int:
    """What a byte is to the gap beside it."""
    if byte < 0:
        return 0
    character = chr(byte)
    if character.isascii() and character.isalnum():
        return 1 + character.isupper() + 2 * character.isdigit()
    return byte if character in ".,:;!?\"')(-*#" else 4
