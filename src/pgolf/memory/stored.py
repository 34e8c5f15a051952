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
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import zstandard

from pgolf.data.operators import OPERATORS
from pgolf.errors import PgolfError
from pgolf.memory.start import Ngrams, Start, Tokens
from pgolf.recipe.sections import MemorySection

_NUMBERS = struct.Struct("<IIIIff")
_NGRAMS = struct.Struct("<III")
_BEGINS = 0x80
_MOST_TOKENS, _TOKENS_PER_BYTE, _NGRAMS_PER_BYTE = 1 << 16, 1 << 10, 1 << 5


def start_of(
    pieces: Sequence[str], bos: int, text: Tokens, trust: tuple[float, float] | None = None
) -> Start:
    """What a memory begins with, for a tokenizer's pieces, frequencies as in a training text (n,) uint16."""
    order = sorted(range(len(pieces)), key=lambda token: (pieces[token], token))
    frequency = np.bincount(text, minlength=len(pieces))
    # SentencePiece marks the beginning of a word; what is no letter or digit ends one. An operator of CaseOps
    # does neither: before a word it goes with the one that ends, so that this one is still known in the next.
    within = [piece[:1].isalnum() or piece in OPERATORS for piece in pieces]
    starts = [piece.startswith("\u2581") or not inside for piece, inside in zip(pieces, within, strict=True)]
    start = Start(
        np.array(order, np.uint16), np.round(np.log2(frequency + 1)).astype(np.uint8), np.array(starts), bos
    )
    return start if trust is None else replace(start, trust=trust)


def write_start(section: MemorySection, start: Start, coded: bytes | None = None) -> bytes:
    """The section's bytes; ``coded`` is the stored text as ``encode_tokens`` codes it, if that is known."""
    from pgolf.memory.memory import encode_ngrams, encode_tokens

    check, ngrams = _check(start.stored, "<u2"), b""
    numbers = _NUMBERS.pack(start.vocab_size, start.bos, len(start.stored), check, *start.trust)
    marks = start.levels | np.where(start.starts, _BEGINS, 0).astype(np.uint8)
    about = numbers + start.leaves.astype("<u2").tobytes() + marks.tobytes()
    if len(start.ngrams):
        ngrams, rows = encode_ngrams(start, start.ngrams)
        about += _NGRAMS.pack(len(rows), _check(rows, "<u4"), len(ngrams))
        start = replace(start, ngrams=rows)
    if coded is None:
        coded = encode_tokens(section, start, start.stored)
    # What repeats itself takes fewer bytes than a reader believes; those that are missing count as 0 anyway.
    coded = coded.ljust(-(-len(start.stored) // _TOKENS_PER_BYTE), b"\0")
    packed = zstandard.ZstdCompressor(level=19).compress(about)
    return len(packed).to_bytes(4, "little") + packed + ngrams + coded


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
    size, most = int.from_bytes(content[:4], "little"), _NUMBERS.size + 3 * (1 << 16) + _NGRAMS.size
    packed, coded = content[4 : 4 + size], content[4 + size :]
    try:
        # A damaged file may claim any size.
        if len(packed) < size or zstandard.frame_content_size(packed) > most:
            raise ValueError
        about = zstandard.ZstdDecompressor().decompress(packed, max_output_size=most)
        known, bos, tokens, check, *trust = _NUMBERS.unpack_from(about)
        leaves = np.frombuffer(about[_NUMBERS.size :][: 2 * known], "<u2")
    except (zstandard.ZstdError, struct.error, ValueError) as error:
        raise PgolfError(f"{where}: the memory's section is damaged; restore the file from a copy") from error
    if known != vocab_size:
        raise PgolfError(f"{where}: its memory knows {known:,} pieces, but its model {vocab_size:,}")
    marks = np.frombuffer(about[_NUMBERS.size :][2 * known : 3 * known], np.uint8)
    end = _NUMBERS.size + 3 * known
    rows, rows_check, size = _NGRAMS.unpack(about[end:]) if len(about) == end + _NGRAMS.size else (0, 0, 0)
    ngrams, coded = coded[:size], coded[size:]
    sound = len(about) in (end, end + _NGRAMS.size) and len(ngrams) == size
    sound = sound and (rows == 0 or rows >= known) and rows <= _MOST_TOKENS + _NGRAMS_PER_BYTE * size
    sound = sound and len(marks) == known and np.array_equal(np.sort(leaves), np.arange(known))
    sound = sound and bos < known and tokens <= _MOST_TOKENS + _TOKENS_PER_BYTE * len(coded)
    if not sound or not np.isfinite(trust).all():
        raise PgolfError(f"{where}: the memory's section makes no sense; restore the file from a copy")
    levels, starts = marks & ~np.uint8(_BEGINS), marks >= _BEGINS
    start = Start(leaves.astype(np.uint16), levels, starts, bos, (trust[0], trust[1]))
    return Section(start, tokens, check, coded, (rows, rows_check), ngrams)


def read_start(section: MemorySection, content: bytes, vocab_size: int, where: str) -> Start:
    """What the memory begins with, n-grams and text included; ``section`` as it was written with.

    Raises:
        PgolfError: see ``read_section``; or the text is not what was written.
    """
    from pgolf.memory.memory import decode_ngrams, decode_tokens  # Who takes it apart needs no compiler.

    found = read_section(content, vocab_size, where)
    start = found.start
    if found.ngrams[0]:
        ngrams = decode_ngrams(start, found.coded_ngrams, found.ngrams[0])
        if ngrams is None or _check(ngrams, "<u4") != found.ngrams[1]:
            raise PgolfError(f"{where}: the memory's counts decode to something else than was written")
        start = replace(start, ngrams=ngrams)
    stored = decode_tokens(section, start, found.coded, found.tokens)
    if _check(stored, "<u2") != found.check:
        raise PgolfError(f"{where}: the memory's text decodes to something else than was written")
    return replace(start, stored=stored)


def _check(numbers: Tokens | Ngrams, kind: str) -> int:
    return zlib.crc32(numbers.astype(kind).tobytes())
