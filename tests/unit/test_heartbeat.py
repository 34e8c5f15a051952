"""Signs of life between ranks: who is silent, for how long, and who is not."""

from __future__ import annotations

import time

import pytest
import torch.distributed as dist

from pgolf.runtime import ranks
from pgolf.runtime.ranks import Heartbeat


@pytest.fixture
def three() -> list[Heartbeat]:
    store = dist.HashStore()
    return [Heartbeat(store, rank, 3) for rank in range(3)]


def test_who_beats_is_not_silent_however_long_it_takes(three: list[Heartbeat]) -> None:
    for _ in range(100):
        for one in three:
            one.beat()
    assert [one.silent(2 * one.interval) for one in three] == [[], [], []]


def test_who_stops_is_silent_after_as_many_beats_of_the_others(three: list[Heartbeat]) -> None:
    first, second, third = three
    third.beat()
    for beats in range(12):
        first.beat()
        second.beat()
        assert (
            first.silent(10 * first.interval)
            == second.silent(10 * second.interval)
            == ([2] if beats >= 10 else [])
        )
    # Nobody is silent for who has been held up as well; and one sign is enough to be alive again.
    assert third.silent(third.interval) == []
    third.beat()
    first.beat()
    assert first.silent(2 * first.interval) == []


def test_beats_come_from_a_thread_until_they_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_INTERVAL", 0.001)
    store = dist.HashStore()
    working, waiting = Heartbeat(store, 0, 2), Heartbeat(store, 1, 2)
    working.start()
    end = time.monotonic() + 60
    while int(store.get("alive 0")) < 3 and time.monotonic() < end:
        pass  # Busy, and yet it beats.
    assert int(store.get("alive 0")) >= 3
    working.stop()
    for _ in range(4):
        waiting.beat()
    assert waiting.silent(2 * waiting.interval) == [0]
