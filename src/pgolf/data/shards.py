"""Token shards: 256 little-endian int32 (20240520, 1, number of tokens, zeros), then uint16 token ids.

The layout is the field's own (modded-nanogpt, parameter golf); files written here are byte-identical.

Beside ``NAME_val_000000.bin`` there may be a *byte side-car* ``NAME_val_bytes_000000.bin`` of the same
layout: how many bytes of text each token stands for, 0 for the token that begins a document. Data sets whose
tokens do not tell their bytes have them (CaseOps); where they exist they are the authority.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import PgolfError
from pgolf.runtime.files import reading

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4
_CHECKED_FIRST = 1 << 22
# Each open shard keeps a file descriptor, of which a process has 1,024 by default.
_OPEN_SHARDS = 32

Tokens = NDArray[np.uint16]


def read_shard(path: Path, vocab_size: int | None = None) -> Tokens:
    """Open a shard's tokens as a read-only memory map; a ``PgolfError`` if it is no whole shard.

    With ``vocab_size`` every id is checked against it, which reads the whole file, in blocks.
    """
    count = shard_length(path)
    if not count:
        return np.zeros(0, dtype=np.uint16)
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    if vocab_size is not None and vocab_size < 1 << 16:
        check_ids(path, tokens, vocab_size)
    return tokens


def shard_length(path: Path) -> int:
    """Number of tokens that the header promises; a mistake if the file is no shard or cut short."""
    with reading(path) as file:
        raw, size = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
    if len(raw) < HEADER_BYTES:
        short = f"only {size} bytes, too short for a shard's header"
        raise PgolfError(f"{path}: {short}; fetch or prepare it again")
    magic, version, count = np.frombuffer(raw, dtype="<i4")[:3].tolist()
    if magic != MAGIC:
        raise PgolfError(f"{path}: not a token shard (first number {magic}, a shard has {MAGIC})")
    if version != VERSION:
        raise PgolfError(f"{path}: shard version {version}; only version {VERSION} is known")
    if count < 0 or size != HEADER_BYTES + 2 * count:
        raise PgolfError(
            f"{path}: {size} bytes, but its header promises {count} tokens ({HEADER_BYTES + 2 * count} "
            "bytes); it was cut short or damaged, fetch or prepare it again"
        )
    return int(count)


def check_ids(path: Path, tokens: Tokens, vocab_size: int) -> None:
    """Raise a ``PgolfError`` that names the first token id that is not below ``vocab_size``, if any."""
    block = 1 << 22
    for start in range(0, len(tokens), block):
        outside = np.flatnonzero(tokens[start : start + block] >= vocab_size)
        if len(outside):
            at = start + int(outside[0])
            raise PgolfError(
                f"{path}: token {tokens[at]} at position {at} is beyond the vocabulary of {vocab_size}; "
                "use the tokenizer the shard was made with"
            )


def token_shards(folder: Path, split: str) -> list[Path]:
    """The token shards ``NAME_SPLIT_000000.bin`` of a folder, in order; other files beside them are none."""
    name = re.compile(rf".+_{split}_\d+\.bin")
    return sorted(path for path in folder.glob(f"*_{split}_*.bin") if name.fullmatch(path.name))


def byte_files(folder: Path, shards: Sequence[Path], split: str) -> list[Path]:
    """The byte side-cars of a folder's shards of a split, one each; empty where there are none.

    It is a ``PgolfError`` if a shard has none though others have, or one belongs to no shard.
    """
    found = set(token_shards(folder, f"{split}_bytes"))
    expected = [path.with_name(re.sub(r"(_\d+\.bin)$", r"_bytes\1", path.name)) for path in shards]
    remedy = "fetch the data again, or remove all such files to have the tokenizer count bytes"
    for path in expected if found else ():
        if path not in found:
            raise PgolfError(f"{path}: absent, but there are files of bytes per token for others; {remedy}")
    if alone := sorted(found.difference(expected)):
        raise PgolfError(f"{alone[0]}: holds bytes per token of a shard that is not there; {remedy}")
    return expected if found else []


def read_byte_counts(path: Path, shard: Path, bos: int) -> NDArray[np.uint16]:
    """Bytes of each token of a shard (n,), from its side-car; a ``PgolfError`` where they do not fit it."""
    counts, tokens = read_shard(path), read_shard(shard)
    if len(counts) != len(tokens):
        found = f"has {len(counts)} entries, {shard.name} has {len(tokens)} tokens"
        raise PgolfError(f"{path}: {found}; fetch both again")
    wrong = np.flatnonzero((tokens == bos) & (counts != 0))
    if len(wrong):
        found = f"counts {counts[wrong[0]]} bytes for token {wrong[0]}, which begins a document and has none"
        raise PgolfError(f"{path}: {found}; it does not belong to {shard.name}")
    return np.asarray(counts)


class TokenStream:
    """Shards in order as one endless stream: after the last token comes the first again.

    With ``vocab_size`` the beginning of every shard is checked at once, the rest as it is taken:
    reading terabytes before the first step would be no service. Only the shards used last stay open.
    """

    def __init__(self, paths: Sequence[Path], vocab_size: int = 1 << 16) -> None:
        self._paths, self._vocab_size = paths, vocab_size
        self._open = functools.lru_cache(maxsize=_OPEN_SHARDS)(read_shard)
        lengths = []
        for path in paths:
            shard = self._open(path)
            check_ids(path, shard[:_CHECKED_FIRST], vocab_size)
            lengths.append(len(shard))
        self._ends = np.cumsum(lengths)
        self.total = int(self._ends[-1]) if paths else 0
        """Tokens before the stream repeats."""
        if not self.total:
            raise PgolfError(f"{paths[0].parent if paths else 'the data'}: holds no training tokens")

    def take(self, position: int, count: int) -> Tokens:
        """``count`` tokens (uint16) from any position of the stream on."""
        position %= self.total
        index = int(np.searchsorted(self._ends, position, side="right"))
        offset = position - (int(self._ends[index - 1]) if index else 0)
        parts = []
        while count:
            shard = self._open(self._paths[index])
            part = shard[offset : offset + count]
            if part.size and part.max() >= self._vocab_size:
                check_ids(self._paths[index], shard, self._vocab_size)
            parts.append(part)
            count -= len(part)
            index, offset = (index + 1) % len(self._paths), 0
        return np.concatenate(parts)
