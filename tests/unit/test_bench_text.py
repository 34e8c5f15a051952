"""Benchmarks on real text: what a memory costs, and what general compressors make of the held-out text."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgolf.bench.memory import STAGES, _growth, _seconds, bench_memory
from pgolf.bench.yardstick import measure, text_of, yardstick
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.data.prepare import prepare
from pgolf.data.readers import Reading
from pgolf.errors import PgolfError

TRAINING = [f"The {n % 9} herons of lake {n * 7919 % 1000} saw {n % 5} fish; what a day." for n in range(150)]
HELD_OUT = [f"The {n % 9} herons of lake {n * 613 % 1000} saw {n % 5} fish; what a day." for n in range(12)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text("\n\n".join(TRAINING))
    (folder / "val.txt").write_text("\n\n".join(HELD_OUT))
    reading, val = Reading(split="blank-lines"), [folder / "val.txt"]
    prepare([folder / "train.txt"], folder / "data", val_text=val, vocab_size=300, reading=reading)
    return open_dataset(folder / "data")


def test_a_memory_is_measured_at_every_stage(dataset: Dataset) -> None:
    told: list[tuple[int, int]] = []
    found = bench_memory(
        dataset, 1000, 4000, block=64, order=2, progress=lambda done, total: told.append((done, total))
    )
    assert [row["stage"] for row in found["rows"]] == list(STAGES)
    for row in found["rows"]:
        assert len(row["cpu_microseconds_tenths"]) == 10
        assert min(row["cpu_microseconds"], row["microseconds"], row["bytes_per_million"]) > 0
        assert row["extrapolated_bytes"] > row["bytes_per_million"] / 1000
        # A text that repeats itself costs far less than 8.2 bits, what 300 equal chances do.
        assert 0.1 < row["bits_per_target"] < 5
    assert told[-1] == (2000, 2000)


def test_more_text_takes_at_least_as_much_time_for_each_target() -> None:
    cold_at_first, slower = [5.0, *[1.0] * 9], [1.0, *[2.0] * 9]
    assert _seconds(_growth(cold_at_first, 1000), 10**6) == pytest.approx(1.4)
    assert _seconds(_growth(slower, 1000), 10**6) > 2


def test_more_targets_than_there_are_would_be_seen_twice(dataset: Dataset) -> None:
    with pytest.raises(PgolfError, match=r"data: has .* training targets; give --targets no more"):
        bench_memory(dataset, 10_000_000, 20)


def test_compressors_that_have_read_the_training_text(dataset: Dataset) -> None:
    stream = dataset.train_stream()
    assert text_of(dataset.tokenizer, stream.take(0, stream.total)).decode() == "\n".join(TRAINING)
    found = measure(dataset, cap=None)
    assert found["bytes"] == sum(map(len, HELD_OUT))
    assert [row["compressor"][:6] for row in found["rows"]] == ["PPMd H"] * 3 + ["bzip2 ", "xz -9e"]
    for row in found["rows"]:
        assert 0 < row["primed_bpb"] < row["alone_bpb"]
        assert row["training_bytes"] == len("\n".join(TRAINING))


def test_the_training_text_is_cut_to_what_a_cap_holds(dataset: Dataset) -> None:
    cap = 300
    for row in measure(dataset, cap)["rows"]:
        assert 0.9 * cap < row["training_packed"] <= cap
        assert 0 < row["training_bytes"] < len("\n".join(TRAINING))


def test_a_yardstick_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match="no run with scores"):
        yardstick(tmp_path)
