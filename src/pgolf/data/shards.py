"""Token shards: 256 little-endian int32 (20240520, 1, number of tokens, zeros), then uint16 token ids.

The layout is the field's own (modded-nanogpt, parameter golf); files written here are byte-identical.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import PgolfError

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4

Tokens = NDArray[np.uint16]


def read_shard(path: Path, vocab_size: int | None = None) -> Tokens:
    """Open a shard's tokens as a read-only memory map.

    With ``vocab_size`` every id is checked against it, which reads the whole file, in blocks.

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
        raise PgolfError(
            f"{path}: only {size} bytes, too short for a shard's header; fetch or prepare it again"
        )
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
    """Make sure that every token id is below ``vocab_size``, or name the first that is not.

    Raises:
        PgolfError: an id is outside the vocabulary.
    """
    block = 1 << 22
    for start in range(0, len(tokens), block):
        outside = np.flatnonzero(tokens[start : start + block] >= vocab_size)
        if len(outside):
            at = start + int(outside[0])
            raise PgolfError(
                f"{path}: token {tokens[at]} at position {at} is beyond the vocabulary of {vocab_size}; "
                "use the tokenizer the shard was made with"
            )
