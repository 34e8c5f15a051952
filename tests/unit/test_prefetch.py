"""Batches prepared ahead are those of the loader, whatever is asked for; its thread ends with the work."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.data.loader import BatchLoader, Prefetcher, prefetcher
from pgolf.data.shards import TokenStream
from pgolf.errors import PgolfError
from pgolf.recipe.sections import TrainSection
from tests.shards import write_shard

TRAIN = TrainSection(batch_tokens=64, sequence_length=4, micro_batches=4)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "t_train_000000.bin"
    write_shard(path, np.random.RandomState(0).randint(500, size=300).astype(np.uint16))
    return path


class Recording(BatchLoader):
    """Remembers which batches were prepared, and by which threads."""

    def batch(self, step: int, part: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.__dict__.setdefault("prepared", []).append((step, part))
        self.__dict__.setdefault("threads", set()).add(threading.current_thread().name)
        return super().batch(step, part)


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_any_order_gives_the_loaders_batches(shard: Path, ahead: int, world: int) -> None:
    plain = BatchLoader(TokenStream([shard]), TRAIN, world - 1, world)
    # Priming begins at 0, training begins there again, a resumed run begins anywhere.
    asked = [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (17, 1), (18, 0), (3, 1)]
    with Prefetcher(BatchLoader(TokenStream([shard]), TRAIN, world - 1, world), ahead) as batches:
        for step, part in asked:
            for found, expected in zip(batches.batch(step, part), plain.batch(step, part), strict=True):
                assert torch.equal(found, expected)


def test_the_next_batches_are_prepared_in_order_by_a_thread(shard: Path) -> None:
    loader = Recording(TokenStream([shard]), TRAIN)
    with Prefetcher(loader, ahead=2) as batches:
        for step in range(3):
            for part in range(4):
                batches.batch(step, part)
        assert own_threads()
    assert own_threads() == []
    in_order = [divmod(index, 4) for index in range(14)]
    assert loader.prepared[:12] == in_order[:12]  # nothing twice, nothing left out
    assert loader.prepared == in_order[: len(loader.prepared)]
    assert threading.current_thread().name not in loader.threads


def test_a_mistake_in_the_data_is_raised_where_its_batch_is_asked_for(shard: Path) -> None:
    tokens = np.full(300, 7, np.uint16)
    tokens[100] = 499  # in the second batch of step 1: each takes 17 tokens
    write_shard(shard, tokens)
    stream = TokenStream([shard])
    stream._vocab_size = 400  # as if the first look had not come so far
    with (
        pytest.raises(PgolfError, match="token 499 at position 100"),
        Prefetcher(BatchLoader(stream, TRAIN), 3) as made,
    ):
        for part in range(4):
            made.batch(0, part)
        assert made.batch(1, 0)[0].max() == 7
        made.batch(1, 1)
    assert own_threads() == []


def test_an_interruption_ends_the_thread_and_the_next_start_goes_on(shard: Path) -> None:
    batches = Prefetcher(BatchLoader(TokenStream([shard]), TRAIN), ahead=2)
    with pytest.raises(KeyboardInterrupt), batches:
        batches.batch(0, 0)
        raise KeyboardInterrupt
    assert own_threads() == []
    with batches:
        assert torch.equal(batches.batch(0, 1)[0], batches.loader.batch(0, 1)[0])
    assert own_threads() == []


def test_only_a_device_has_batches_prepared_ahead_in_page_locked_memory(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: dict[int, str] = {}

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        copied = tensor.clone()
        locked[copied.data_ptr()] = threading.current_thread().name
        return copied

    # No streams and no events: torch keeps page-locked memory until the copies from it are done.
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    loader = BatchLoader(TokenStream([shard]), TRAIN)
    for name, ahead in (("cpu", 0), ("cuda", 2)):
        with prefetcher(loader, torch.device(name)) as made:
            assert made.ahead == ahead
            for found, expected in zip(made.batch(0, 1), loader.batch(0, 1), strict=True):
                assert torch.equal(found, expected)
                assert (found.data_ptr() in locked) == (name == "cuda")
    assert all(thread.startswith("batches") for thread in locked.values())
