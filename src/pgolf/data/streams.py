"""The bytes of a text file, decompressed on the way: plain, .gz or .zst."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from pgolf.errors import PgolfError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

Advance = Callable[[int], None]
"""Called with the number of bytes of the file that were consumed since the last call."""

# Small, for a block of zstd may stand for twenty thousand times its size.
_BLOCK_BYTES = 1 << 13
_LARGEST_WINDOW = 1 << 31


def lines(path: Path, compression: str, advance: Advance) -> Iterator[bytes]:
    """The lines of a file, each with its line break; errors are those of ``blocks``."""
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
    """The content of a file in pieces; a ``PgolfError`` if it is damaged, or not compressed as its name says.

    Memory holds one piece, and for zstd the frame's window: up to 2 GiB (``zstd --long=31``), of which only
    what was written in the frame is ever touched.
    """
    # Frame by frame (gzip: member by member): the libraries' own readers take a truncated file for a whole.
    frame, ended = None, False
    try:
        with path.open("rb") as file:
            while piece := file.read(_BLOCK_BYTES):
                advance(len(piece))
                if not compression:
                    yield piece
                    continue
                while piece:
                    if ended and frame is None and not (piece := piece.lstrip(b"\0")):
                        break  # Some tools pad a file with zeros.
                    frame = frame or _new_frame(compression)
                    yield frame.decompress(piece)
                    piece = frame.unused_data
                    if frame.eof:
                        frame, ended = None, True
    except (zstandard.ZstdError, zlib.error) as error:
        kind = COMPRESSIONS[compression]
        raise PgolfError(f"{path}: damaged or not {kind}-compressed ({error})") from error
    except MemoryError as error:
        remedy = "decompressing needs more memory than there is; write it with a smaller window"
        raise PgolfError(f"{path}: {remedy}") from error
    if frame is not None:
        raise PgolfError(f"{path}: the compressed data ends too early; copy or download the file again")


def _new_frame(compression: str) -> Any:
    if compression == ".zst":
        return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
    return zlib.decompressobj(wbits=31)
