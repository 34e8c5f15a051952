"""Adapters as the public runs have them equal their classes: head, past attention and MLP, one per pass.

``data/frontier_adapters.json`` holds what ``forward_ttt`` and ``BatchedTTTLoRA`` of #2135 computed on a CPU
in float32, kernels replaced by plain forms, for one document with weights and factors from formulas: query,
key, value, "o", "mlp" and the head, ten visits of six layers, with lanes and without.
Tolerances: logits and losses 1e-4 absolute, gradient norms of each factor 1e-3 relative.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pgolf.evaluate.lora import Adapters
from pgolf.recipe.recipe import load_recipe
from tests.golden.test_formula_weights import formula_model, formula_weight
from tests.golden.test_frontier_weights import FRONTIER, SHAPE, frontier_tokens

FIGURES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "frontier_adapters.json").read_text(encoding="utf-8")
)
_WINDOWS = ["model.window_gate.width=12", "model.window_gate.alpha=0.5", "model.window_smear.width=12"]
CASES = {"2135/lanes": FRONTIER, "2135/no lanes": [*SHAPE, *_WINDOWS]}
CHUNK = 48
ADAPTERS = [
    'ttt.lora.targets=["query", "key", "value", "beside_attention", "beside_mlp", "head"]',
    *("ttt.method=lora_document", "ttt.lora.per_pass=true", "ttt.lora.rank=4", "ttt.lora.alpha=144"),
    *("ttt.frozen_blocks=0", "ttt.grad_clip=0", "ttt.lora.lr=0"),
]


def factor(name: str, which: str, shape: tuple[int, ...]) -> Tensor:
    """The values of a factor, "up" or "down"."""
    return 0.1 * formula_weight(f"{name}.{which}.weight", shape)


def formula_adapters(case: str) -> Adapters:
    """Adapters that have learned factors from formulas."""
    recipe = load_recipe("seed_1232", [*CASES[case], *ADAPTERS])
    adapters = Adapters(formula_model(recipe), recipe.ttt, 96)
    with torch.no_grad():
        for which, factors in (("up", adapters.up), ("down", adapters.down)):
            for name, values in factors.items():
                values.copy_(factor(name, which, tuple(values.shape)))
    adapters.learned = True
    adapters.merge()
    return adapters


@pytest.mark.parametrize("case", CASES)
def test_logits_losses_and_gradients(case: str) -> None:
    figures, adapters = FIGURES[case], formula_adapters(case)
    inputs, targets = (tokens[:1] for tokens in frontier_tokens())
    with torch.no_grad():
        logits, losses = adapters.student(inputs), adapters.student(inputs, targets)
    assert logits[0, 5, :4].tolist() + logits[0, 95, -4:].tolist() == pytest.approx(
        figures["logits"], abs=1e-4
    )
    assert losses[0, ::8].tolist() == pytest.approx(figures["losses"], abs=1e-4)
    adapters._gradients(inputs, targets, torch.arange(96)[None] >= 96 - CHUNK, 1.0)
    norms = {
        f"{name}.{which}": values[name].grad.norm().item()  # type: ignore[union-attr]
        for which, values in (("up", adapters.up), ("down", adapters.down))
        for name in values
    }
    assert norms.keys() == figures["gradient_norms"].keys() and len(norms) == 2 * (10 * 5 + 1)
    for name, norm in figures["gradient_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name
