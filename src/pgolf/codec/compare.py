"""General compressors on the same files, beside a model: bytes and seconds, and what the model itself weighs.

Every compressor is set to its strongest, and everything is unpacked and compared with the original.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from pgolf.codec.job import Job
from pgolf.codec.payload import Progress
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes

Coding = Callable[[bytes, Progress], bytes]
OURS = "pgolf"
# Parts of one compressor's work, for the progress.
_STEPS = 1000
_PPMD_ORDERS = (4, 6, 8, 16, 32)
_PPMD_MEMORY, _PPMD_LARGEST_MEMORY = 16 << 20, 1 << 30


class Way(NamedTuple):
    """A compressor, or why it is not here."""

    compressor: str
    compress: Coding | None
    expand: Coding | None
    note: str = ""
    model_bytes: int = 0


def compare_files(
    paths: Sequence[Path],
    model: Path,
    tokenizer: Path | None = None,
    *,
    ttt: bool = False,
    memory: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Compress every file in every way; ``model``, ``tokenizer``, ``ttt``, ``threads`` as in ``job.py``.

    With ``memory`` the model with a memory beside it is one way more.

    ``progress`` is told (parts done, all parts) of the work, where a compressor counts as much as the model.

    Returns:
        For each file its name and bytes, and of each compressor: bytes (None: not installed), bytes with the
        model that only pgolf needs, bits per byte (None for an empty file), seconds, and a note.
    """
    contents = [read_bytes(path) for path in paths]
    job = Job(model, tokenizer)
    with_memory = [False, True] if memory else [False]
    ways = [*general_compressors(), *(_ours(job, ttt, each, threads) for each in with_memory)]
    total, done = len(paths) * len(ways) * _STEPS, 0

    def report(part: int, parts: int) -> None:
        if progress is not None:
            progress(done + part * _STEPS // parts, total)

    found = []
    for path, content in zip(paths, contents, strict=True):
        rows = []
        for way in ways:
            rows.append(_measure(way, content, report))
            done += _STEPS
        found.append({"file": str(path), "bytes": len(content), "compressors": rows})
    report(0, 1)
    return found


def general_compressors() -> Iterator[Way]:
    """All but the model, those that are not installed included."""
    yield _plain("bzip2 -9", partial(bz2.compress, compresslevel=9), bz2.decompress)
    yield _plain("xz -9e", partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME), lzma.decompress)
    yield _plain("zstd --ultra -22", partial(zstandard.compress, level=22), zstandard.decompress)
    yield _brotli()
    yield ppmd_of(_PPMD_ORDERS)


def _missing(compressor: str, package: str) -> Way:
    return Way(compressor, None, None, f"not installed: pip install {package}")


def _brotli() -> Way:
    try:
        brotli: Any = importlib.import_module("brotli")
    except ImportError:
        return _missing("brotli -q 11", "brotli")
    return _plain("brotli -q 11", partial(brotli.compress, quality=11, lgwin=24), brotli.decompress)


def ppmd_of(orders: Sequence[int]) -> Way:
    """7-Zip's PPMd (variant H): the best of some orders."""
    try:
        pyppmd: Any = importlib.import_module("pyppmd")
    except ImportError:
        return _missing("PPMd", "pyppmd")

    def memory(size: int) -> int:
        # More than a text of this size ever needs: what is not used costs time all the same.
        return min(max(64 * size, _PPMD_MEMORY), _PPMD_LARGEST_MEMORY)

    # Each order in turn; the first byte says which one was best.
    def compress(content: bytes) -> bytes:
        pack = partial(pyppmd.compress, content, mem_size=memory(len(content)), variant="H")
        packed = (bytes((order,)) + pack(max_order=order) for order in orders)
        # Its decoder has to be told the length.
        return len(content).to_bytes(4, "little") + min(packed, key=len)

    def expand(packed: bytes) -> bytes:
        size = int.from_bytes(packed[:4], "little")
        if not size:
            return b""
        decoder = pyppmd.Ppmd7Decoder(max_order=packed[4], mem_size=memory(size))
        found = decoder.decode(packed[5:], size)
        while len(found) < size and decoder.needs_input:
            found += decoder.decode(b"\x00", size - len(found))
        return bytes(found)

    if len(orders) == 1:
        return _plain(f"PPMd H, order {orders[0]}", compress, expand)
    return _plain("PPMd H", compress, expand, f"best of orders {', '.join(map(str, orders))}")


def _plain(
    compressor: str, compress: Callable[[bytes], bytes], expand: Callable[[bytes], bytes], note: str = ""
) -> Way:
    """A compressor that is too quick to report progress."""
    return Way(compressor, lambda content, _: compress(content), lambda packed, _: expand(packed), note)


def _ours(job: Job, ttt: bool, memory: bool, threads: int) -> Way:
    size = job.model_path.stat().st_size
    parts = [name for name, on in (("test-time training", ttt), ("memory", memory)) if on]
    return Way(
        f"{OURS} with {' and '.join(parts)}" if parts else OURS,
        lambda content, report: job.compress(content, ttt, threads, report, memory=memory)[0],
        lambda packed, report: job.decompress(packed, "the compressed file", report)[0],
        f"model of {size:,} bytes",
        size,
    )


def _measure(way: Way, content: bytes, report: Progress) -> dict[str, Any]:
    names = ("bytes", "bytes_with_model", "bits_per_byte", "encode_seconds", "decode_seconds")
    numbers: tuple[float | None, ...] = (None,) * len(names)
    if way.compress is not None and way.expand is not None:
        started = time.perf_counter()
        packed = way.compress(content, lambda done, total: report(done, 2 * total))
        encoded = time.perf_counter()
        back = way.expand(packed, lambda done, total: report(total + done, 2 * total))
        decoded = time.perf_counter()
        if back != content:
            raise PgolfError(f"{way.compressor}: gave back something else than it was given")
        size = len(packed)
        bits = 8 * size / len(content) if content else None
        numbers = size, size + way.model_bytes, bits, encoded - started, decoded - encoded
    return {"compressor": way.compressor, **dict(zip(names, numbers, strict=True)), "note": way.note}
