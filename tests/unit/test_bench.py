"""Benchmarks do the same work both ways and say what they measured."""

from __future__ import annotations

import pytest
import torch

from pgolf.bench import run_bench
from pgolf.bench.harness import WORK
from pgolf.errors import PgolfError
from pgolf.recipe import load_recipe

RECIPE = load_recipe("tiny", ["model.width=32", "train.batch_tokens=128", "evaluate.stride=32", "ttt.epochs=1"])
CPU = torch.device("cpu")


@pytest.mark.parametrize("what", WORK)
def test_both_ways_agree(what: str) -> None:
    found = run_bench(what, RECIPE, CPU, repeats=2)
    assert found["figure"] == pytest.approx(found["figure_plain"], rel=5e-3)
    assert found["milliseconds"] > 0
    assert found["ratio_range"][0] <= found["ratio"] <= found["ratio_range"][1]
    assert found["peak_memory"] > 1 << 20
    assert found["environment"]["device"] == "cpu"
    assert ("tokens_per_second" in found) == (what != "pack")


def test_a_reduced_step_says_so() -> None:
    large = load_recipe("tiny", ["train.batch_tokens=65536", "model.width=16"])
    assert "(the recipe's has 65,536)" in run_bench("train", large, CPU, repeats=1)["scope"]


def test_ways_that_disagree_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgolf.bench.plain.evaluate_plainly", lambda *_: 1.0)
    with pytest.raises(PgolfError, match="the plain loop computes"):
        run_bench("eval", RECIPE, CPU, repeats=1)
    with pytest.raises(PgolfError, match="unknown; use train, eval, ttt, pack"):
        run_bench("speed", RECIPE, CPU, repeats=1)
