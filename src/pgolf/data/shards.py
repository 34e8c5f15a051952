"""Token shards: 256 little-endian int32 (20240520, 1, number of tokens, zeros), then uint16 token ids.

The layout is the field's own (modded-nanogpt, parameter golf); files written here are byte-identical.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import PgolfError
from pgolf.files import atomic_write, flush_to_disk

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4
TOKENS_PER_SHARD = 100_000_000

Tokens = NDArray[np.uint16]


def read_shard(path: Path, vocab_size: int | None = None) -> Tokens:
    """Open a shard's tokens as a read-only memory map.

    Args:
        path: the file.
        vocab_size: if given, every id is checked against it (this reads the whole file, in blocks).

    Raises:
        PgolfError: absent, not a shard, cut short, or an id is outside the vocabulary.
    """
    count = shard_length(path)
    if not count:
        return np.zeros(0, dtype=np.uint16)
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    if vocab_size is not None and vocab_size < 1 << 16:
        check_ids(path, tokens, vocab_size)
    return tokens


def shard_length(path: Path) -> int:
    """Number of tokens that the header promises, checked against the size of the file.

    Raises:
        PgolfError: absent, not a shard, or cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as error:
        raise PgolfError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(raw) < HEADER_BYTES:
        raise PgolfError(f"{path}: only {size} bytes, too short for a shard's header; fetch or prepare it again")
    header = np.frombuffer(raw, dtype="<i4")
    if header[0] != MAGIC:
        raise PgolfError(f"{path}: not a token shard (first number {header[0]}, a shard has {MAGIC})")
    if header[1] != VERSION:
        raise PgolfError(f"{path}: shard version {header[1]}; only version {VERSION} is known")
    count = int(header[2])
    if count < 0 or size != HEADER_BYTES + 2 * count:
        raise PgolfError(
            f"{path}: {size} bytes, but its header promises {count} tokens ({HEADER_BYTES + 2 * count} bytes); "
            "it was cut short or damaged, fetch or prepare it again"
        )
    return count


def shard_header(count: int) -> bytes:
    """The 1,024 bytes that precede ``count`` tokens."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


def write_shard(path: Path, tokens: Tokens) -> None:
    """Write one shard atomically."""
    with atomic_write(path) as file:
        file.write(shard_header(len(tokens)))
        file.write(np.ascontiguousarray(tokens, dtype="<u2").tobytes())


class ShardWriter:
    """Streams tokens into numbered shards ``PREFIX_SPLIT_000000.bin`` of bounded size.

    Files are not atomic one by one: write into a temporary folder and rename that when ``close`` is over.
    """

    def __init__(self, folder: Path, prefix: str, split: str, tokens_per_shard: int = TOKENS_PER_SHARD) -> None:
        self.folder, self.stem, self.limit = folder, f"{prefix}_{split}", tokens_per_shard
        self.paths: list[Path] = []
        self._file: IO[bytes] | None = None
        self._count = 0

    def add(self, tokens: Tokens) -> None:
        """Append tokens, opening new shards as they fill up."""
        while len(tokens):
            if self._file is None:
                path = self.folder / f"{self.stem}_{len(self.paths):06d}.bin"
                self.paths.append(path)
                self._file, self._count = path.open("wb"), 0
                self._file.write(shard_header(0))
            part = tokens[: self.limit - self._count]
            self._file.write(np.ascontiguousarray(part, dtype="<u2").tobytes())
            self._count += len(part)
            tokens = tokens[len(part) :]
            if self._count == self.limit:
                self._finish_shard()

    def close(self) -> list[Path]:
        """Finish the last shard and return all paths in order."""
        self._finish_shard()
        return self.paths

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._file.seek(0)
        self._file.write(shard_header(self._count))
        self._file.flush()
        flush_to_disk(self._file.fileno())
        self._file.close()
        self._file = None


def check_ids(path: Path, tokens: Tokens, vocab_size: int) -> None:
    """Make sure that every token id is below ``vocab_size``, or name the first that is not.

    Raises:
        PgolfError: an id is outside the vocabulary.
    """
    block = 1 << 22
    for start in range(0, len(tokens), block):
        outside = np.flatnonzero(tokens[start : start + block] >= vocab_size)
        if len(outside):
            position = start + int(outside[0])
            raise PgolfError(
                f"{path}: token {tokens[position]} at position {position} is beyond the vocabulary of {vocab_size}; "
                "use the tokenizer the shard was made with"
            )
