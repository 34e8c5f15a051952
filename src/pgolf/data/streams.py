"""The bytes of a text file, decompressed on the way: plain, .gz or .zst."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from pgolf.errors import PgolfError

COMPRESSIONS = (".gz", ".zst")

Advance = Callable[[int], None]
"""Called with the number of bytes of the file that were consumed since the last call."""

# Small, for a block of zstd may stand for twenty thousand times its size.
_BLOCK_BYTES = 1 << 13
_LARGEST_WINDOW = 1 << 31


def lines(path: Path, compression: str, advance: Advance) -> Iterator[bytes]:
    """The lines of a file, each with its line break.

    Raises:
        PgolfError: damaged, cut short, or not compressed as its name says.
    """
    if not compression:
        with path.open("rb") as file:
            for line in file:
                advance(len(line))
                yield line
        return
    rest: list[bytes] = []
    for block in blocks(path, compression, advance):
        *whole, last = block.split(b"\n")
        for line in whole:
            yield b"".join((*rest, line, b"\n"))
            rest.clear()
        rest.append(last)
    if line := b"".join(rest):
        yield line


def blocks(path: Path, compression: str, advance: Advance) -> Iterator[bytes]:
    """The content of a file in pieces.

    Memory holds one piece, and for zstd the frame's window: up to 2 GiB (``zstd --long=31``), of which only
    what was written in the frame is ever touched.

    Raises:
        PgolfError: damaged, cut short, or not compressed as its name says.
    """
    with path.open("rb") as file:
        pieces = iter(lambda: file.read(_BLOCK_BYTES), b"")
        if not compression:
            for piece in pieces:
                advance(len(piece))
                yield piece
        else:
            yield from _decompressed(path, compression, pieces, advance)


def _decompressed(path: Path, compression: str, pieces: Iterator[bytes], advance: Advance) -> Iterator[bytes]:
    # Frame by frame (gzip: member by member), for the libraries' own readers take a truncated file for a
    # complete one.
    frame = None
    ended = False
    try:
        for compressed in pieces:
            advance(len(compressed))
            while compressed:
                if frame is None and ended:
                    compressed = compressed.lstrip(b"\0")  # Some tools pad a file with zeros.
                    if not compressed:
                        break
                frame = frame or _new_frame(compression)
                yield frame.decompress(compressed)
                compressed = frame.unused_data
                if frame.eof:
                    frame, ended = None, True
    except (zstandard.ZstdError, zlib.error) as error:
        kind = "zstd" if compression == ".zst" else "gzip"
        raise PgolfError(f"{path}: damaged or not {kind}-compressed ({error})") from error
    except MemoryError as error:
        raise PgolfError(
            f"{path}: decompressing needs more memory than there is; write it with a smaller window"
        ) from error
    if frame is not None:
        raise PgolfError(f"{path}: the compressed data ends too early; copy or download the file again")


def _new_frame(compression: str) -> Any:
    if compression == ".zst":
        return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
    return zlib.decompressobj(wbits=31)
