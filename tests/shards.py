"""Shards for tests."""

from __future__ import annotations

from pathlib import Path

from pgolf.data.prepare import shard_header
from pgolf.data.shards import Tokens


def write_shard(path: Path, tokens: Tokens) -> None:
    """One shard with these tokens."""
    path.write_bytes(shard_header(len(tokens)) + tokens.astype("<u2").tobytes())
