"""Whole runs equal the references': 20 training steps and packing (evaluation: test_evaluation.py).

Tolerances: training losses 5e-3 at each step and validation 5e-3 (the references print four decimals);
codes, steps and kept tensors equal.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from pgolf.compress.legacy import REFERENCE_NAMES, import_reference, reference_names
from pgolf.compress.scheme import quantize_state
from pgolf.compress.stored import Quantized
from pgolf.compress.weights import load_weights
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.evaluate.evaluate import EvalResult
from pgolf.train.loop import train
from pgolf.train.metrics import read_metrics
from pgolf.train.run import Run
from tests.golden.toy import trajectory_recipe

NUMBERS = ("456", "644", "1232")


class Silent:
    """A watcher that shows nothing."""

    def step(self, step: int, loss: float, tokens_per_second: float) -> None: ...

    def validation(self, step: int, result: EvalResult) -> None: ...

    def evaluation(self, what: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def dataset(shared: Path) -> Dataset:
    return open_dataset(shared / "golden" / "shards", shared / "tokenizers" / "fineweb_1024_bpe.model", 1024)


def _golden(shared: Path, number: str) -> dict[str, Any]:
    return json.loads((shared / "golden" / f"pr{number}" / "trajectory.json").read_text())["results"]


@pytest.mark.parametrize("number", NUMBERS)
def test_training_follows_the_reference(shared: Path, dataset: Dataset, tmp_path: Path, number: str) -> None:
    recipe, golden = trajectory_recipe(number), _golden(shared, number)
    folder = shared / "golden" / f"pr{number}"
    initial = import_reference(folder / "init.safetensors", recipe)
    train(Run(recipe, dataset, tmp_path, torch.device("cpu"), initial), Silent())
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    losses = {str(entry["step"]): entry["train_loss"] for entry in metrics if "train_loss" in entry}
    assert losses == pytest.approx(golden["train_loss"], abs=5e-3)
    validations = {
        str(entry["step"]): [entry["val_loss"], entry["val_bpb"]] for entry in metrics if "val_bpb" in entry
    }
    assert validations.keys() == golden["val_loss_and_bpb"].keys()
    for step, pair in validations.items():
        assert pair == pytest.approx(golden["val_loss_and_bpb"][step], abs=5e-3), step
    # The averaged weights, too: their largest difference stays far below a quantization step.
    ours, theirs = load_weights(tmp_path).state, import_reference(folder / "final.safetensors", recipe)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 5e-3


@pytest.mark.parametrize("number", NUMBERS)
def test_packing_gives_the_references_codes(shared: Path, number: str) -> None:
    recipe, folder = trajectory_recipe(number), shared / "golden" / f"pr{number}"
    stored = quantize_state(import_reference(folder / "final.safetensors", recipe), recipe.compress)
    raw = zstandard.ZstdDecompressor().decompress((folder / "artifact.ptz").read_bytes())
    artifact = torch.load(io.BytesIO(raw), weights_only=True)
    theirs = artifact["w"] if "w" in artifact else artifact["passthrough"]
    codes = different = 0
    for name, value in stored.items():
        shape = value.codes.shape if isinstance(value, Quantized) else value.shape
        names = reference_names(name, REFERENCE_NAMES[number], shape)
        if isinstance(value, Quantized):
            assert torch.equal(value.scale, theirs[f"{names[0]}.scale"]), name
            codes += value.codes.numel()
            different += int((value.codes != theirs[f"{names[0]}.q"]).sum())
        else:
            kept = theirs[names[0]] if len(names) == 1 else torch.cat([theirs[piece] for piece in names])
            assert kept.dtype == value.dtype, name
            assert torch.equal(kept, value), name
    assert different <= 1e-4 * codes
    assert (codes > 0) == (number == "456"), "at toy size only #456 quantizes anything"
