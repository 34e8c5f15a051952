"""The same code on a CUDA device: bf16 autocast, compiled, trained, packed and scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pgolf.compress.stored import Stored
from pgolf.compress.tuning import Tuner
from pgolf.recipe.recipe import load_recipe
from tests.e2e.conftest import RECIPE, pgolf, sentences
from tests.unit.stand_ins import small_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_whole_job_on_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(sentences(300)))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    options = ("--split", "blank-lines", "--val-fraction", "0.1", "--vocab-size", "320")
    pgolf("data", "prepare", "--text", "text.txt", *options, "--out", "data", cwd=tmp_path)
    for device in ("cuda", "cpu"):
        pgolf("run", "tiny.toml", "--data", "data", "--out", device, "--device", device, cwd=tmp_path)
    scores = {
        device: json.loads((tmp_path / device / "result.json").read_text())["evaluations"]
        for device in ("cuda", "cpu")
    }
    for name, on_cpu in scores["cpu"].items():
        assert scores["cuda"][name]["val_bpb"] == pytest.approx(on_cpu["val_bpb"], rel=0.03), name


def test_tuning_comes_as_near_as_on_the_cpu() -> None:
    recipe = load_recipe("tiny", ["model.layers=2", "model.xsa_last=2", "compress.effort=20"])
    state = small_model(recipe, spread=0.05).state_dict()
    text = torch.randint(320, (64, 65), generator=torch.Generator().manual_seed(1))
    rounded: dict[str, Stored] = {
        name: (value * 8).round().half() / 8
        for name, value in state.items()
        if name.startswith("cores.0.mlp")
    }
    found = []
    for device in ("cpu", "cuda"):
        tuner = Tuner(state, recipe, text, torch.device(device))
        tuner.fix(rounded)
        stored: dict[str, Stored] = {name: value.half() for name, value in tuner.weights().items()}
        found.append(tuner.divergence(stored, text))
    assert found[1] == pytest.approx(found[0], rel=0.05)
