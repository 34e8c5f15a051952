"""White space that a tokenizer takes for a single space: told apart beside the tokens.

Many tokenizers, that of the public challenge among them, make a space of every newline, tab and row of
spaces. Their models have never seen a newline and would pay dearly for each. So such a text is tokenized as
the model knows it, and after every token that spells a space it is coded what stood there in truth, by counts
of what has stood between such characters, and so long after the last newline, before.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from pgolf.codec.arithmetic import Coder
from pgolf.codec.raw import ByteModel
from pgolf.codec.tables import from_weights

_GAP = re.compile("[ \t\n\r\u00a0]+")
# Known from the start.
_FORMS = (b" ", b"\n", b"\n\n", b"\r\n", b"  ", b"")
_NEW = 0
"""The symbol of a gap that is not known yet; others are one more than their place among the known."""
# Different gaps that are remembered.
_MOST = 64
# Counts that a wider context is worth when a narrower one is blended with it.
_BACKING = 2.0


def plain(text: str) -> tuple[str, list[bytes]]:
    """A text with every gap as one space, and what the gaps were."""
    return _GAP.sub(" ", text), [gap.encode() for gap in _GAP.findall(text)]


class GapModel:
    """What the gaps of a file have shown so far; ``raw`` codes those that have not been seen before."""

    def __init__(self, raw: ByteModel) -> None:
        self._raw = raw
        self._known = list(_FORMS)
        self._counts: defaultdict[tuple[int, ...], NDArray[np.int64]] = defaultdict(_nothing)
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


def _nothing() -> NDArray[np.int64]:
    return np.zeros(_MOST + 1, dtype=np.int64)


def _kind(byte: int) -> int:
    """What a byte is to the gap beside it."""
    if byte < 0:
        return 0
    character = chr(byte)
    if character.isascii() and character.isalnum():
        return 1 + character.isupper() + 2 * character.isdigit()
    return byte if character in ".,:;!?\"')(-*#" else 4
