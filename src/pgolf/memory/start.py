"""The memory's section of an artifact: what a memory knows before the stream begins, and stored text.

    numbers     32-bit, little-endian: V, token that begins a document, tokens of text, their CRC-32; weights
                of memory and model (two 32-bit floats)
    leaves      V * uint16: tokens in the alphabetical order of their pieces
    levels      V * uint8: how frequent each is; the highest bit: it begins a word
    n-grams     where there are any, 32-bit, little-endian: rows, their CRC-32, bytes of their code
    code        of the n-grams (``pgolf.memory.ngrams``), where there are any
    text        tokens, coded by a memory that knows nothing yet but the above

The first four parts are packed by zstd, with their size in front. The text is coded bit by bit with the
memory's own predictions, which are exact on every machine, so the section needs no other format for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from pgolf.errors import PgolfError

Tokens = NDArray[np.uint16]
Ngrams = NDArray[np.uint32]

NUMBERS = struct.Struct("<IIIIff")
NGRAMS = struct.Struct("<III")
BEGINS = 0x80
_MOST_TOKENS, _TOKENS_PER_BYTE, _NGRAMS_PER_BYTE = 1 << 16, 1 << 10, 1 << 5


@dataclass(frozen=True)
class Start:
    """What a memory knows before the stream begins; an artifact carries it."""

    leaves: Tokens
    """(V,) uint16: tokens in the alphabetical order of their pieces."""
    levels: NDArray[np.uint8]
    """(V,): how frequent each token is; a level more is a factor of 2."""
    starts: NDArray[np.bool_]
    """(V,): whether a token begins a word."""
    bos: int = 1
    """The token that begins a document."""
    trust: tuple[float, float] = (0.8, 0.3)
    """Weights of the memory and of the model at first, on their log odds."""
    stored: Tokens = field(default_factory=lambda: np.zeros(0, np.uint16))
    """Training text that is read before the stream."""
    ngrams: Ngrams = field(default_factory=lambda: np.zeros((0, 3), np.uint32))
    """(V + n, 3), or empty: counts of n-grams that are known before the text; see ``ngrams``."""

    @property
    def vocab_size(self) -> int:
        return len(self.leaves)


class Section(NamedTuple):
    """A section whose text is still coded."""

    start: Start
    """Without text."""
    tokens: int
    """Of the text."""
    check: int
    """CRC-32 of the text's tokens."""
    coded: bytes
    ngrams: tuple[int, int] = (0, 0)
    """Rows, and CRC-32 of them."""
    coded_ngrams: bytes = b""


def read_section(content: bytes, vocab_size: int, where: str) -> Section:
    """Take a section apart; its text, which takes long, stays coded.

    Raises:
        PgolfError: damaged, or for another vocabulary. ``where`` names it.
    """
    size, most = int.from_bytes(content[:4], "little"), NUMBERS.size + 3 * (1 << 16) + NGRAMS.size
    packed, coded = content[4 : 4 + size], content[4 + size :]
    try:
        # A damaged file may claim any size.
        if len(packed) < size or zstandard.frame_content_size(packed) > most:
            raise ValueError
        about = zstandard.ZstdDecompressor().decompress(packed, max_output_size=most)
        known, bos, tokens, check, *trust = NUMBERS.unpack_from(about)
        leaves = np.frombuffer(about[NUMBERS.size :][: 2 * known], "<u2")
    except (zstandard.ZstdError, struct.error, ValueError) as error:
        raise PgolfError(f"{where}: the memory's section is damaged; restore the file from a copy") from error
    if known != vocab_size:
        raise PgolfError(f"{where}: its memory knows {known:,} pieces, but its model {vocab_size:,}")
    marks = np.frombuffer(about[NUMBERS.size :][2 * known : 3 * known], np.uint8)
    end = NUMBERS.size + 3 * known
    rows, rows_check, size = NGRAMS.unpack(about[end:]) if len(about) == end + NGRAMS.size else (0, 0, 0)
    ngrams, coded = coded[:size], coded[size:]
    sound = len(about) in (end, end + NGRAMS.size) and len(ngrams) == size
    sound = sound and (rows == 0 or rows >= known) and rows <= _MOST_TOKENS + _NGRAMS_PER_BYTE * size
    sound = sound and len(marks) == known and np.array_equal(np.sort(leaves), np.arange(known))
    sound = sound and bos < known and tokens <= _MOST_TOKENS + _TOKENS_PER_BYTE * len(coded)
    if not sound or not np.isfinite(trust).all():
        raise PgolfError(f"{where}: the memory's section makes no sense; restore the file from a copy")
    levels, starts = marks & ~np.uint8(BEGINS), marks >= BEGINS
    start = Start(leaves.astype(np.uint16), levels, starts, bos, (trust[0], trust[1]))
    return Section(start, tokens, check, coded, (rows, rows_check), ngrams)
