"""Rounding in turn: the order of the turns, and that what is left makes good what was rounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pgolf.compress import tuning
from pgolf.compress.calibrate import Calibration, calibrate
from pgolf.compress.container import read_artifact
from pgolf.compress.pack import Packed, fit, pack
from pgolf.compress.stored import Stored, dequantize
from pgolf.compress.tuning import Tuner, turns
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import load_recipe
from tests.unit.stand_ins import small_model

RECIPE = load_recipe("tiny", ["model.layers=2", "model.xsa_last=2", "compress.effort=8"])
LIMIT = 26_000


@pytest.fixture(scope="module")
def network() -> GPT:
    return small_model(RECIPE, spread=0.05)


@pytest.fixture(scope="module")
def calibration(network: GPT) -> Calibration:
    text = torch.randint(320, (272, 65), generator=torch.Generator().manual_seed(1))
    return replace(calibrate(network, text[:16], "train"), text=text[16:])


def packed(network: GPT, calibration: Calibration) -> Packed:
    return fit(network.state_dict(), RECIPE, "", Path("m.pgolf"), LIMIT, 0, calibration, note=lambda *_: None)


def test_embeddings_come_first_then_the_layers_in_their_order() -> None:
    names = [f"cores.{core}.{rest}.weight" for core in (10, 9) for rest in ("mlp.up", "attention.key")]
    order = turns([*names, "token_embedding.weight", "cores.9.attention.query.weight"])
    assert order == [
        ["token_embedding.weight"],
        ["cores.9.attention.key.weight", "cores.9.attention.query.weight"],
        ["cores.9.mlp.up.weight"],
        ["cores.10.attention.key.weight"],
        ["cores.10.mlp.up.weight"],
    ]


def test_at_the_same_bytes_the_predictions_are_nearer(network: GPT, calibration: Calibration) -> None:
    plain = packed(network, replace(calibration, text=None))
    tuned = packed(network, calibration)
    assert (plain.origin["grid"], tuned.origin["grid"]) == ("solved", "tuned")
    assert max(len(plain.content), len(tuned.content)) <= LIMIT
    judge = Tuner(network.state_dict(), RECIPE, torch.zeros(1, 2, dtype=torch.int64))
    unseen = torch.randint(320, (32, 65), generator=torch.Generator().manual_seed(2))
    assert judge.divergence(tuned.stored, unseen) < 0.95 * judge.divergence(plain.stored, unseen)


def test_what_is_rounded_stays_and_the_rest_moves(network: GPT, calibration: Calibration) -> None:
    assert calibration.text is not None
    tuner, name = Tuner(network.state_dict(), RECIPE, calibration.text), "cores.0.mlp.up.weight"
    stored: dict[str, Stored] = {name: network.get_parameter(name).detach().half()}
    tuner.fix(stored)
    after = tuner.weights()
    assert torch.equal(after[name], dequantize(stored[name]))
    others = [key for key, _ in network.named_parameters() if key != name]
    assert all(not torch.equal(after[key], network.get_parameter(key)) for key in others if "gain" not in key)


def test_tuning_that_does_not_help_is_left_out(
    network: GPT, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_RATE", 10.0)
    assert packed(network, calibration).origin["grid"] == "solved"


def test_the_report_leaves_out_what_single_tensors_cost(
    network: GPT, calibration: Calibration, tmp_path: Path
) -> None:
    report = pack(network.state_dict(), RECIPE, "", tmp_path / "m.pgolf", 80_000, calibration)
    assert read_artifact(tmp_path / "m.pgolf").origin["grid"] == "tuned"
    assert all(tensor.predicted is tensor.measured is None for tensor in report.tensors)
    assert "loss" not in report.rows()


@pytest.mark.parametrize(
    "wrong",
    [
        ["compress.calibration=self"],
        ["compress.scheme=rowwise"],
        ["qat.enabled=true", "qat.grid=export"],
    ],
)
def test_it_needs_training_text_and_steps_that_are_solved(wrong: list[str]) -> None:
    with pytest.raises(PgolfError, match=r"compress\.effort"):
        load_recipe("tiny", ["compress.effort=8", *wrong])
