"""Benchmarks do the same work both ways and say what they measured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pgolf.bench.compare import SAME, compare_benches
from pgolf.bench.harness import WORK, run_bench
from pgolf.bench.plain import PlainTrainer
from pgolf.errors import PgolfError
from pgolf.model.gpt import build_model
from pgolf.recipe.recipe import load_recipe

RECIPE = load_recipe(
    "tiny", ["model.width=32", "train.batch_tokens=128", "evaluate.stride=32", "ttt.epochs=1"]
)
CPU = torch.device("cpu")


@pytest.mark.parametrize("what", WORK)
def test_both_ways_agree_and_what_is_written_can_be_compared(what: str, tmp_path: Path) -> None:
    found = run_bench(what, RECIPE, CPU, repeats=2)
    assert found["figure"] == pytest.approx(found["figure_plain"], rel=5e-3)
    assert found["milliseconds"] > 0
    assert found["ratio_range"][0] <= found["ratio"] <= found["ratio_range"][1]
    assert found["cpu_ratio"] > 0
    assert found["peak_memory"] > 1 << 20 and found["peak_memory_plain"] > 1 << 20
    assert {"tflops_per_second", "mfu"} <= found.keys() if what == "train" else "mfu" not in found
    assert found["environment"]["device"] == "cpu"
    assert found["environment"]["cpu"]
    assert ("tokens_per_second" in found) == (what != "pack")
    assert len(found["milliseconds_repeats"]) == 2
    (tmp_path / "a.json").write_text(json.dumps(found))
    assert compare_benches(tmp_path / "a.json", tmp_path / "a.json").verdict == SAME


def test_a_reduced_step_says_so() -> None:
    large = load_recipe("tiny", ["train.batch_tokens=65536", "model.width=16"])
    assert "(the recipe's has 65,536)" in WORK["train"](large, CPU).scope


def test_an_evaluation_in_too_many_windows_is_thinned_and_says_so() -> None:
    long = RECIPE.with_overrides(["train.sequence_length=256", "train.batch_tokens=256", "evaluate.stride=4"])
    assert "stride 64 (the recipe's is 4)" in WORK["eval"](long, CPU).scope
    assert "the recipe's" not in WORK["eval"](RECIPE, CPU).scope


@pytest.mark.parametrize(
    ("kind", "averages"), [("none", False), ("swa", False), ("ema", True), ("swa_of_ema", True)]
)
def test_the_plain_step_averages_only_where_pgolf_does(kind: str, averages: bool) -> None:
    recipe = RECIPE.with_overrides([f"average.kind={kind}"])
    assert bool(PlainTrainer(build_model(recipe.model, 0), recipe).average) == averages


def test_chunks_hold_at_least_one_window() -> None:
    long = RECIPE.with_overrides(
        [
            "train.sequence_length=2048",
            "train.batch_tokens=2048",
            "evaluate.stride=1024",
            "ttt.chunk_tokens=4096",
        ]
    )
    assert "chunks of 2,048" in WORK["ttt"](long, CPU).scope


def test_ways_that_disagree_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pgolf.bench.harness._error", lambda *_: float(os.getpid())
    )  # Another in each process.
    with pytest.raises(PgolfError, match="the plain loop computes"):
        run_bench("pack", RECIPE, CPU, repeats=1)
    with pytest.raises(PgolfError, match="unknown; use train, eval, ttt, pack"):
        run_bench("speed", RECIPE, CPU, repeats=1)


def test_a_plain_process_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgolf.bench.harness._serve_plainly", _end)
    with pytest.raises(PgolfError, match="bench pack: the process of the plain way ended"):
        run_bench("pack", RECIPE, CPU, repeats=1)


def _end(*_: object) -> None:
    os._exit(1)


@pytest.fixture(autouse=True)
def _copied_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # A new process imports torch for seconds; one test starts one, the others take a copy of this one.
    if request.node.name.endswith("[train]") or torch.cuda.is_available() or os.uname().sysname != "Linux":
        return
    copies = torch.multiprocessing.get_context("fork")
    monkeypatch.setattr("multiprocessing.get_context", lambda _: copies)
