"""General compressors on the same files, beside a model: bytes and seconds, and what the model itself weighs.

Every compressor is set to its strongest, and everything is unpacked and compared with the original.
"""

from __future__ import annotations

import bz2
import lzma
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zstandard

from pgolf.codec.job import Job
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes

Progress = Callable[[int, int], None]
OURS = "pgolf"
# Parts of one compressor's work, for the progress.
_STEPS = 1000
_PPMD_ORDERS = (4, 6, 8, 16, 32)
_PPMD_MEMORY, _PPMD_LARGEST_MEMORY = 16 << 20, 256 << 20
_BZ2_LEVEL, _BROTLI_WINDOW, _ZSTD_LEVEL = 9, 24, 22


@dataclass(frozen=True)
class Row:
    """What one compressor makes of a file."""

    compressor: str
    bytes: int | None
    """Of the compressed file; None: its package is not installed."""
    bytes_with_model: int | None
    """With the model, which the others do not need."""
    bits_per_byte: float | None
    """Of the compressed file alone; None for an empty one."""
    encode_seconds: float | None
    decode_seconds: float | None
    note: str = ""
    """What else to know of it."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Way:
    compressor: str
    compress: Callable[[bytes, Progress], bytes]
    expand: Callable[[bytes, Progress], bytes]
    note: str = ""
    model_bytes: int = 0


def compare_files(
    paths: Sequence[Path],
    model: Path,
    tokenizer: Path | None = None,
    *,
    ttt: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Compress every file in every way.

    Args:
        paths: the files.
        model: artifact, weights file or run folder.
        tokenizer: its SentencePiece model, if it is not beside it.
        ttt: let the model learn from the text as it goes.
        threads: of torch.
        progress: told (parts done, all parts) of the work, where a compressor counts as much as the model.

    Returns:
        For each file its name, bytes and ``Row`` objects as JSON values.

    Raises:
        PgolfError: a file cannot be read, or the model cannot be used.
    """
    contents = [read_bytes(path) for path in paths]
    job = Job(model, tokenizer)
    ways = [*_general(), _ours(job, ttt, threads)]
    total, done = len(paths) * len(ways) * _STEPS, 0

    def report(part: int, parts: int) -> None:
        if progress is not None:
            progress(done + part * _STEPS // parts, total)

    found = []
    for path, content in zip(paths, contents, strict=True):
        rows = []
        for way in ways:
            rows.append(_measure(way, content, report) if isinstance(way, _Way) else way)
            done += _STEPS
        found.append(
            {"file": str(path), "bytes": len(content), "compressors": [row.to_json() for row in rows]}
        )
    report(0, 1)
    return found


def _general() -> Iterator[_Way | Row]:
    yield _plain("bzip2 -9", lambda content: bz2.compress(content, _BZ2_LEVEL), bz2.decompress)
    yield _plain(
        "xz -9e", lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME), lzma.decompress
    )
    yield _plain(
        f"zstd --ultra -{_ZSTD_LEVEL}",
        lambda content: zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(content),
        lambda packed: zstandard.ZstdDecompressor().decompress(packed),
    )
    yield _brotli()
    yield _ppmd()


def _brotli() -> _Way | Row:
    try:
        import brotli
    except ImportError:
        return Row("brotli -q 11", None, None, None, None, None, "not installed: pip install brotli")
    return _plain(
        "brotli -q 11",
        lambda content: brotli.compress(content, quality=11, lgwin=_BROTLI_WINDOW),
        brotli.decompress,
    )


def _ppmd() -> _Way | Row:
    try:
        import pyppmd
    except ImportError:
        return Row("PPMd", None, None, None, None, None, "not installed: pip install pyppmd")

    def memory(size: int) -> int:
        # More than a text of this size ever needs: what is not used costs time all the same.
        return min(max(64 * size, _PPMD_MEMORY), _PPMD_LARGEST_MEMORY)

    # 7-Zip's variant, each order in turn; the first byte says which one was best.
    def compress(content: bytes) -> bytes:
        packed = (
            bytes((order,))
            + pyppmd.compress(content, max_order=order, mem_size=memory(len(content)), variant="H")
            for order in _PPMD_ORDERS
        )
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

    return _plain("PPMd H", compress, expand, f"best of orders {', '.join(map(str, _PPMD_ORDERS))}")


def _plain(
    compressor: str, compress: Callable[[bytes], bytes], expand: Callable[[bytes], bytes], note: str = ""
) -> _Way:
    """A compressor that is too quick to report progress."""
    return _Way(compressor, lambda content, _: compress(content), lambda packed, _: expand(packed), note)


def _ours(job: Job, ttt: bool, threads: int) -> _Way:
    size = job.model_path.stat().st_size
    return _Way(
        f"{OURS} with test-time training" if ttt else OURS,
        lambda content, report: job.compress(content, ttt, threads, report)[0],
        lambda packed, report: job.decompress(packed, "the compressed file", report)[0],
        f"model of {size:,} bytes",
        size,
    )


def _measure(way: _Way, content: bytes, report: Progress) -> Row:
    started = time.perf_counter()
    packed = way.compress(content, lambda done, total: report(done, 2 * total))
    encoded = time.perf_counter()
    back = way.expand(packed, lambda done, total: report(total + done, 2 * total))
    decoded = time.perf_counter()
    if back != content:
        raise PgolfError(f"{way.compressor}: gave back something else than it was given")
    return Row(
        way.compressor,
        len(packed),
        len(packed) + way.model_bytes,
        8 * len(packed) / len(content) if content else None,
        encoded - started,
        decoded - encoded,
        way.note,
    )
