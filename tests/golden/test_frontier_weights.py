"""The looped model with lanes, gate and smear equals the public runs' own classes, weight by weight.

``data/frontier_weights.json`` holds what the classes of the public scripts computed on a CPU in float32, with
their kernels replaced by plain forms, from the weights and tokens that formulas give (a BOS in the middle of
each sequence): #2135 for loop, skips by decoder step, two lanes, windowed gate and smear (with its option to
mask BOS), once looped and once in plain order, and with the MLP's lane as output; #1493 for the loop with
parallel layers in one stream. Tolerances: logits and losses 1e-4 absolute, gradient norms 1e-3 relative.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pgolf.recipe.recipe import Recipe, load_recipe
from tests.golden.test_formula_weights import formula_model, formula_tokens

FIGURES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "frontier_weights.json").read_text(encoding="utf-8")
)
SHAPE = [
    *("model.layers=6", "model.width=64", "model.heads=4", "model.kv_heads=2", "model.mlp_hidden=192"),
    *("model.rope_dims=8", "model.rope_train_length=0", "model.xsa_last=6", "model.bigram.buckets=0"),
    *("model.mlp=leaky_relu2", "model.norm_scale=inverse_sqrt_depth", "model.qk_gain=5", "model.skip=gated"),
    *("model.value_residual=false", "model.gated_attention=false", "model.smear=false"),
    *("model.loop.first=1", "model.loop.last=2", "model.loop.passes=3"),
]
FRONTIER = [
    *(*SHAPE, "model.lanes.mode=two", "model.lanes.start=4"),
    *("model.window_gate.width=12", "model.window_gate.alpha=0.5", "model.window_smear.width=12"),
]
CASES = {
    "2135/looped": FRONTIER,
    "2135/plain order": FRONTIER,
    "2135/output of the MLP's lane": [*FRONTIER, "model.lanes.output=mlp"],
    "1493/looped": [*SHAPE, "model.lanes.mode=one", "model.lanes.start=4"],
}


def frontier_recipe(case: str) -> Recipe:
    """The toy recipe behind a case."""
    return load_recipe("seed_1232", CASES[case])


def frontier_tokens() -> tuple[Tensor, Tensor]:
    """Inputs and targets (2, 96), with a BOS in each sequence."""
    inputs, targets = (tokens.clone() for tokens in formula_tokens(2, 96))
    for row, at in ((0, 30), (1, 60)):
        inputs[row, at] = targets[row, at - 1] = 1
    return inputs, targets


@pytest.mark.parametrize("case", CASES)
def test_logits_losses_and_gradients(case: str) -> None:
    figures, network = FIGURES[case], formula_model(frontier_recipe(case))
    inputs, targets = frontier_tokens()
    plain = case.endswith("plain order")
    with network.passing(1) if plain else contextlib.nullcontext():
        with torch.no_grad():
            logits = network(inputs)
        loss = network(inputs, targets).mean()
    assert logits[0, 5, :4].tolist() + logits[1, 95, -4:].tolist() == pytest.approx(
        figures["logits"], abs=1e-4
    )
    assert loss.item() == pytest.approx(figures["loss"], abs=1e-4)
    loss.backward()
    norms = {n: p.grad.norm().item() for n, p in network.named_parameters() if p.grad is not None}
    assert norms.keys() == figures["gradient_norms"].keys()
    for name, norm in figures["gradient_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name
