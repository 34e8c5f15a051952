"""The section of a memory in an artifact, from what the memory begins with and back; format: ``start.py``."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import zstandard

from pgolf.data.operators import OPERATORS
from pgolf.errors import PgolfError
from pgolf.memory.memory import decode_ngrams, decode_tokens, encode_ngrams, encode_tokens
from pgolf.memory.start import BEGINS, NGRAMS, NUMBERS, Ngrams, Start, Tokens, read_section
from pgolf.recipe.sections import MemorySection


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
    if coded is None:
        coded = encode_tokens(section, start, start.stored)
    check = _check(start.stored, "<u2")
    numbers = NUMBERS.pack(start.vocab_size, start.bos, len(start.stored), check, *start.trust)
    marks = start.levels | np.where(start.starts, BEGINS, 0).astype(np.uint8)
    about = numbers + start.leaves.astype("<u2").tobytes() + marks.tobytes()
    if len(start.ngrams):
        ngrams, rows = encode_ngrams(start, start.ngrams)
        about += NGRAMS.pack(len(rows), _check(rows, "<u4"), len(ngrams))
        coded = ngrams + coded
    packed = zstandard.ZstdCompressor(level=19).compress(about)
    return len(packed).to_bytes(4, "little") + packed + coded


def read_start(section: MemorySection, content: bytes, vocab_size: int, where: str) -> Start:
    """What the memory begins with, n-grams and text included; ``section`` as it was written with.

    Raises:
        PgolfError: see ``read_section``; or the text is not what was written.
    """
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
