"""Fake quantization on the grid that the budget solver chose: training sees what the artifact holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pgolf.compress.code_size import code_bytes
from pgolf.compress.container import read_artifact
from pgolf.compress.pack import pack
from pgolf.compress.stored import dequantize_state
from pgolf.compress.weights import load_weights
from pgolf.data.dataset import Dataset
from pgolf.errors import PgolfError
from pgolf.model.gpt import build_model
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.folder import open_run
from pgolf.train.loop import train
from tests.unit.test_qat import CPU, SETTINGS, Watcher, copied, dataset, equal, started

__all__ = ["dataset"]  # a fixture

# Some 3 bits for each of the 33,000 weights.
CAP = code_bytes() + 12_500
SHORT = ["train.steps=6", "train.warmdown_steps=4"]


def recipe(*settings: str) -> Recipe:
    budget = [
        *("compress.scheme=budget", "compress.rounding=gptq", "compress.calibration_tokens=256"),
        *(f"compress.cap={CAP}", "average.kind=none"),
    ]
    return load_recipe("tiny", [*SETTINGS, *budget, *settings])


def test_a_step_sees_exactly_what_packing_stores(dataset: Dataset, tmp_path: Path) -> None:
    made = recipe()
    run = started(made, dataset, tmp_path / "run")
    before = copied(run.network)
    assert run.grid is not None
    stored = {name: run.grid.store(name, tensor) for name, tensor in before.items()}
    other = build_model(made.model, 0).train()
    other.load_state_dict(dequantize_state(stored))
    loss = run.accumulate_gradients(0)
    expected = sum(other(*run.batches.batch(0, part)).mean() for part in range(2)) / 2
    assert isinstance(expected, torch.Tensor)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert equal(run.network.state_dict(), before), "the optimizer must find the exact weights"
    # What is packed from these very weights is that grid, unchanged.
    out = tmp_path / "same.pgolf"
    report = pack(before, made, "", out, grid=run.grid)
    assert report.origin["grid"] == "trained"
    if report.origin["shift"] == 1:
        assert equal(read_artifact(out).state, dict(other.state_dict()))
    assert 0.99 * CAP < report.total_bytes <= CAP


def test_the_grid_survives_resuming(dataset: Dataset, tmp_path: Path) -> None:
    for died_after, label in ((3, "before"), (5, "after")):
        made = recipe(*SHORT, f"train.checkpoint_every={died_after}")

        class Dies(Watcher):
            def step(self, step: int, loss: float, tokens_per_second: float, last: int = died_after) -> None:
                if step == last + 1:
                    raise ConnectionError

        folder = tmp_path / label
        train(open_run(made, dataset, folder / "whole", CPU), Watcher())
        with pytest.raises(ConnectionError):
            train(open_run(made, dataset, folder / "cut", CPU), Dies())
        resumed = open_run(made, dataset, folder / "cut", CPU, resume=True)
        assert (resumed.grid is not None) == (label == "after")
        train(resumed, Watcher())
        whole, cut = load_weights(folder / "whole"), load_weights(folder / "cut")
        assert equal(cut.state, whole.state)
        assert whole.grid is not None
        assert cut.grid is not None
        assert equal(cut.grid.tensors(), whole.grid.tensors())
        assert cut.grid.about() == whole.grid.about()


def test_training_ends_on_the_cap_and_another_cap_is_solved_anew(dataset: Dataset, tmp_path: Path) -> None:
    made = recipe("train.steps=24", "train.warmdown_steps=18", "qat.threshold=0.2")
    train(open_run(made, dataset, tmp_path / "run", CPU), Watcher())
    weights = load_weights(tmp_path / "run")
    report = pack(weights.state, made, "", tmp_path / "a.pgolf", grid=weights.grid)
    assert report.origin["grid"] == "trained"
    assert 0.99 * CAP < report.total_bytes <= CAP
    assert weights.grid is not None
    artifact = read_artifact(tmp_path / "a.pgolf")
    # Most rows keep the steps that training rounded on.
    name = "cores.0.mlp.up.weight"
    steps = artifact.stored[name].scale  # type: ignore[union-attr]
    assert (steps == weights.grid.steps[name]).float().mean() > 0.4
    for cap in (CAP - 4000, CAP + 4000):
        report = pack(weights.state, made, "", tmp_path / "b.pgolf", cap=cap, grid=weights.grid)
        assert report.origin["grid"] == "solved"
        assert 0.99 * cap < report.total_bytes <= cap


def test_a_grid_is_used_only_where_it_was_chosen_in_the_same_way(dataset: Dataset, tmp_path: Path) -> None:
    made = recipe(*SHORT)
    train(open_run(made, dataset, tmp_path / "run", CPU), Watcher())
    weights = load_weights(tmp_path / "run")
    same = made.with_overrides([f"compress.cap={CAP + 10}"]).compress
    other = made.with_overrides(["compress.damping=0.02"]).compress
    assert weights.grid_for(same) is not None
    assert weights.grid_for(other) is None


def test_a_cap_too_small_for_any_grid_leaves_a_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    made = recipe(*SHORT, f"compress.cap={code_bytes() + 500}")
    with pytest.raises(PgolfError, match=r"no grid to round on fits the cap of [\d,]+ bytes"):
        train(open_run(made, dataset, tmp_path / "run", CPU), Watcher())
    kept = load_weights(tmp_path / "run" / "checkpoint.safetensors")
    report = pack(kept.state, kept.recipe, "", tmp_path / "a.pgolf", cap=CAP)
    assert report.total_bytes <= CAP
