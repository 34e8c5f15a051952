"""Coders: from arrays of codes and floats to bytes and back. ``compress.codec`` names one of ``CODERS``.

A new coder is a class with ``encode`` and ``decode`` and a row in ``CODERS``; see docs/compression.md.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pgolf.compress.entropy import Stream

Array = NDArray[Any]
_BLOCK = 1 << 20
_LZMA_MEMORY = 256 << 20


@dataclass(frozen=True)
class Kind:
    """What a reader knows of an array before it decodes it."""

    shape: tuple[int, ...]
    dtype: str
    """"i1" for codes, "f2" or "f4" for floats; little-endian."""
    low: int = 0
    """Smallest code."""
    high: int = 0
    """Largest code."""
    trellis: bool = False
    """Whether codes are a walk through a trellis."""

    @property
    def nbytes(self) -> int:
        """Bytes of the array as it is."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Coder(Protocol):
    """Turns arrays into bytes and back, without loss."""

    highest_level: int
    """Levels go from 1 to this; 1 where there is no choice."""

    def encode(self, arrays: Sequence[tuple[Kind, Array]], level: int) -> bytes:
        """The arrays as bytes."""

    def decode(self, content: bytes, kinds: Sequence[Kind]) -> list[Array]:
        """The arrays again.

        Raises:
            ValueError: the content is not what ``encode`` makes of such arrays. Never reads or allocates more
                than the kinds ask for.
        """


@dataclass
class ByteCoder:
    """The arrays one after the other through a general compressor of bytes.

    Args:
        highest_level: see ``Coder``.
        compress: from bytes and a level.
        expand: from bytes and a limit, beyond which it need not read.
    """

    highest_level: int
    compress: Callable[[bytes, int], bytes]
    expand: Callable[[bytes, int], bytes]

    def encode(self, arrays: Sequence[tuple[Kind, Array]], level: int) -> bytes:
        raw = b"".join(array.astype(f"<{kind.dtype}").tobytes() for kind, array in arrays)
        return self.compress(raw, level)

    def decode(self, content: bytes, kinds: Sequence[Kind]) -> list[Array]:
        size = sum(kind.nbytes for kind in kinds)
        raw = self.expand(content, size)
        if len(raw) != size:
            raise ValueError(f"it has {len(raw)} bytes instead of {size}")
        arrays, start = [], 0
        for kind in kinds:
            part = np.frombuffer(raw, np.dtype(f"<{kind.dtype}"), math.prod(kind.shape), start)
            arrays.append(part.reshape(kind.shape).copy())
            start += kind.nbytes
        return arrays


class RangeCoder:
    """pgolf's own: see ``compress/entropy.py``."""

    highest_level = 1

    # Its functions are compiled when they are first imported: who only reads a header has no need of them.
    def encode(self, arrays: Sequence[tuple[Kind, Array]], level: int) -> bytes:
        from pgolf.compress.entropy import Stream

        entries = sum(array.nbytes for _, array in arrays)
        while True:
            stream = Stream(entries=entries)
            for kind, array in arrays:
                code_array(stream, kind, array)
            if content := stream.content():
                return content
            entries *= 4

    def decode(self, content: bytes, kinds: Sequence[Kind]) -> list[Array]:
        from pgolf.compress.entropy import Stream

        stream = Stream(content)
        arrays = [code_array(stream, kind, None) for kind in kinds]
        if not stream.exhausted():
            raise ValueError("it ends too early, or something follows its end")
        return arrays


def code_array(stream: Stream, kind: Kind, array: Array | None) -> Array:
    """Write an array, or read one (``None``)."""
    from pgolf.compress.entropy import float_order

    if kind.dtype == "i1":
        rows, columns = kind.shape
        return stream.matrix(array, rows, columns, kind.low, kind.high, kind.trellis)
    bits = np.dtype(kind.dtype).itemsize * 8
    pattern = np.dtype(f"<u{bits // 8}")
    order = None if array is None else float_order(array.ravel().view(pattern), bits)
    # All steps and vectors of a format share what is learned about them.
    back = float_order(stream.integers(order, math.prod(kind.shape), f"floats {bits}"), bits)
    if back.size and not 0 <= int(back.min()) <= int(back.max()) < 1 << bits:
        raise ValueError("it holds a number outside its format")
    return back.astype(pattern).view(f"<{kind.dtype}").reshape(kind.shape)


def bounded_zstd(packed: bytes, limit: int) -> bytes:
    """Expand a zstd frame to at most ``limit`` + 1 bytes, whatever size it claims."""
    found = bytearray()
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            while len(found) <= limit and (block := reader.read(min(_BLOCK, limit + 1 - len(found)))):
                found += block
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return bytes(found)


def _zstd(raw: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(raw)


def _lzma(raw: bytes, level: int) -> bytes:
    return lzma.compress(raw, preset=level | lzma.PRESET_EXTREME)


def _bounded_lzma(packed: bytes, limit: int) -> bytes:
    try:
        return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY).decompress(packed, max_length=limit + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(str(error)) from error


CODERS: dict[str, Coder] = {
    "range": RangeCoder(),
    "zstd": ByteCoder(22, _zstd, bounded_zstd),
    "lzma": ByteCoder(9, _lzma, _bounded_lzma),
    "none": ByteCoder(22, lambda raw, level: raw, lambda packed, limit: packed),
}
