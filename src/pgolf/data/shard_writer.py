"""Writing token shards; ``shards.py`` has the layout."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from pgolf.data.shards import MAGIC, VERSION, Tokens
from pgolf.runtime.writing import flush_to_disk

TOKENS_PER_SHARD = 100_000_000


def shard_header(count: int) -> bytes:
    """The 1,024 bytes that precede ``count`` tokens."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


class ShardWriter:
    """Streams tokens into numbered shards ``PREFIX_SPLIT_000000.bin`` of bounded size.

    Files are not atomic one by one: write into a temporary folder and rename that when ``close`` is over.
    """

    def __init__(self, folder: Path, prefix: str, split: str, tokens_per_shard: int) -> None:
        self.folder, self.stem, self.limit = folder, f"{prefix}_{split}", tokens_per_shard
        self.paths: list[Path] = []
        self._file: IO[bytes] | None = None
        self._count = 0

    def add(self, tokens: Tokens) -> None:
        """Append tokens, opening new shards as they fill up."""
        while len(tokens):
            if self._file is None:
                self.paths.append(self.folder / f"{self.stem}_{len(self.paths):06d}.bin")
                self._file, self._count = self.paths[-1].open("wb"), 0
                self._file.write(shard_header(0))
            part = tokens[: self.limit - self._count]
            self._file.write(part.astype("<u2").tobytes())
            self._count += len(part)
            tokens = tokens[len(part) :]
            if self._count == self.limit:
                self._finish_shard()

    def close(self) -> list[Path]:
        """Finish the last shard and return all paths in order."""
        self._finish_shard()
        return self.paths

    def _finish_shard(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.write(shard_header(self._count))
            self._file.flush()
            flush_to_disk(self._file.fileno())
            self._file.close()
            self._file = None
