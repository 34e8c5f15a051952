"""Batches come in the references' order, for every number of ranks, from any step on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.data.loader import BatchLoader
from pgolf.data.shards import TokenStream, read_shard
from pgolf.errors import PgolfError
from pgolf.recipe.sections import TrainSection
from tests.shards import write_shard

TRAIN = TrainSection(batch_tokens=64, sequence_length=4, micro_batches=8)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    tokens = np.random.RandomState(0).randint(500, size=300).astype(np.uint16)
    paths = []
    for index, part in enumerate(np.split(tokens, [100, 101, 101])):
        paths.append(tmp_path / f"t_train_{index:06d}.bin")
        write_shard(paths[-1], part)
    return paths


def reference_order(
    tokens: np.ndarray, world: int, rank: int, steps: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The definition: each micro-batch takes world * (local + 1) tokens, a rank uses its slice."""
    position, batches = 0, []
    accumulation = 8 // world
    local = 64 // (world * accumulation)
    for _ in range(steps * accumulation):
        chunk = np.array([tokens[(position + i) % len(tokens)] for i in range(world * (local + 1))])
        position += world * (local + 1)
        own = chunk[rank * (local + 1) : (rank + 1) * (local + 1)]
        batches.append((own[:-1].reshape(-1, 4), own[1:].reshape(-1, 4)))
    return batches


@pytest.mark.parametrize(
    ("world", "rank"), [(world, rank) for world in (1, 2, 4, 8) for rank in range(world)]
)
def test_order_of_the_references(shards: list[Path], world: int, rank: int) -> None:
    stream = TokenStream(shards)
    assert stream.total == 300
    loader = BatchLoader(stream, TRAIN, rank, world)
    expected = reference_order(stream.take(0, 300), world, rank, steps=7)  # more than once around
    for index, (inputs, targets) in enumerate(expected):
        step, part = divmod(index, 8 // world)
        x, y = loader.batch(step, part)
        assert x.dtype == y.dtype == torch.int64
        assert np.array_equal(x.numpy(), inputs)
        assert np.array_equal(y.numpy(), targets)


def test_golden_shards_in_order_and_around(shared: Path) -> None:
    paths = sorted((shared / "golden" / "shards").glob("*_train_*.bin"))
    tokens = np.concatenate([np.fromfile(path, "<u2", offset=1024) for path in paths])
    train = TrainSection(batch_tokens=16384, sequence_length=1024, micro_batches=8)
    loader = BatchLoader(TokenStream(paths, 1024), train)
    # 300,000 tokens in the first shard: step 18 runs into the second one, step 33 into the first again.
    for step in (0, 18, 33, 40):
        for part in range(8):
            start = (step * 8 + part) * 2049
            span = tokens.take(range(start, start + 2049), mode="wrap").astype(np.int64)
            x, y = loader.batch(step, part)
            assert np.array_equal(x.numpy(), span[:-1].reshape(2, 1024))
            assert np.array_equal(y.numpy(), span[1:].reshape(2, 1024))


def test_any_position_of_the_stream(shards: list[Path]) -> None:
    stream = TokenStream(shards)
    tokens = stream.take(0, 300)
    for position, count in ((0, 5), (98, 4), (299, 3), (650, 700)):
        expected = [tokens[(position + i) % 300] for i in range(count)]
        assert stream.take(position, count).tolist() == expected


def test_shards_are_mapped_not_read(shards: list[Path]) -> None:
    assert isinstance(read_shard(shards[0]), np.memmap)
    assert not read_shard(shards[0]).flags.writeable
    assert TokenStream(shards).take(0, 10).dtype == np.uint16


def test_ranks_must_share_evenly(shards: list[Path]) -> None:
    with pytest.raises(
        PgolfError, match=r"train\.micro_batches \d+ \(of train\.batch_tokens \d+\).*by 3 ranks"
    ):
        BatchLoader(TokenStream(shards), TRAIN, 0, 3)


def test_an_empty_stream_and_foreign_tokens(shards: list[Path], tmp_path: Path) -> None:
    write_shard(tmp_path / "empty.bin", np.zeros(0, np.uint16))
    with pytest.raises(PgolfError, match="no training tokens"):
        TokenStream([tmp_path / "empty.bin"])
    with pytest.raises(
        PgolfError, match=r"t_train_000000\.bin: token \d+ at position \d+ is beyond the vocabulary of 100"
    ):
        TokenStream(shards, vocab_size=100)


def test_a_bad_token_far_into_a_shard_is_named_when_it_is_reached(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgolf.data.shards._CHECKED_FIRST", 1)
    tokens = np.full(50, 7, np.uint16)
    tokens[40] = 999
    write_shard(shards[0], tokens)
    stream = TokenStream(shards[:1], vocab_size=500)
    assert stream.take(0, 40).tolist() == [7] * 40
    with pytest.raises(PgolfError, match="token 999 at position 40"):
        stream.take(30, 15)


def test_more_shards_than_files_that_may_be_open(tmp_path: Path) -> None:
    tokens = np.random.RandomState(0).randint(500, size=900).astype(np.uint16)
    paths = [tmp_path / f"t_train_{index:06d}.bin" for index in range(300)]
    for path, part in zip(paths, np.split(tokens, 300), strict=True):
        write_shard(path, part)
    before = len(list(Path("/proc/self/fd").iterdir()))
    stream = TokenStream(paths, 500)
    assert np.array_equal(stream.take(5, 1800), np.resize(np.roll(tokens, -5), 1800))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 40
