"""The shard format, and everything that can be wrong with a file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pgolf.data.prepare import ShardWriter
from pgolf.data.shards import check_ids, read_shard
from pgolf.errors import PgolfError
from tests.shards import write_shard

TOKENS = np.array([1, 5, 9, 1, 65535], np.uint16)


def test_the_layout_byte_for_byte(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.bin", TOKENS)
    content = (tmp_path / "s.bin").read_bytes()
    assert content == struct.pack("<256i", 20240520, 1, 5, *[0] * 253) + struct.pack("<5H", *TOKENS.tolist())
    assert read_shard(tmp_path / "s.bin").tolist() == TOKENS.tolist()


def test_shards_of_the_references_are_read_and_rewritten_identically(shared: Path, tmp_path: Path) -> None:
    for path in sorted((shared / "golden" / "shards").glob("*.bin")):
        write_shard(tmp_path / path.name, read_shard(path, 1024))
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_streaming_fills_shards_in_order(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "text", "train", tokens_per_shard=4)
    for part in np.split(np.arange(10, dtype=np.uint16), [3, 9]):
        writer.add(part)
    paths = writer.close()
    assert [path.name for path in paths] == [f"text_train_{index:06d}.bin" for index in range(3)]
    assert [read_shard(path).tolist() for path in paths] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "cut short or damaged"),
        (lambda b: b + b"\0\0", "cut short or damaged"),
        (lambda b: b[:900], "too short for a shard's header"),
        (lambda b: b"", "too short for a shard's header"),
        (lambda b: b"\x89PNG" + b[4:], "not a token shard"),
        (lambda b: b[:4] + struct.pack("<i", 2) + b[8:], "shard version 2"),
        (lambda b: b[:8] + struct.pack("<i", -5) + b[12:], "cut short or damaged"),
        (lambda b: b[:8] + struct.pack("<i", 2**31 - 1) + b[12:], "cut short or damaged"),
    ],
)
def test_damaged_and_foreign_files_are_named(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "s.bin"
    write_shard(path, TOKENS)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(PgolfError, match=rf"s\.bin: .*{message}"):
        read_shard(path)


def test_missing_files_and_foreign_tokens(tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match="cannot be read"):
        read_shard(tmp_path / "missing.bin")
    write_shard(tmp_path / "s.bin", TOKENS)
    with pytest.raises(PgolfError, match="token 65535 at position 4 is beyond the vocabulary of 1024"):
        read_shard(tmp_path / "s.bin", 1024)
    write_shard(tmp_path / "none.bin", TOKENS[:0])
    assert len(read_shard(tmp_path / "none.bin", 1024)) == 0


def test_positions_are_counted_from_the_start_of_the_shard() -> None:
    tokens = np.zeros((1 << 22) + 9, np.uint16)
    tokens[-2] = 700
    check_ids(Path("s.bin"), tokens, 701)
    with pytest.raises(PgolfError, match=f"token 700 at position {len(tokens) - 2} "):
        check_ids(Path("s.bin"), tokens, 700)
