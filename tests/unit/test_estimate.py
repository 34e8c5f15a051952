"""Estimates before training, against what can be counted."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pgolf.estimate import estimate
from pgolf.model.gpt import build_model, parameter_count
from pgolf.recipe import load_recipe, recipe_names

TINY = ["train.sequence_length=64", "train.batch_tokens=128", "train.micro_batches=1"]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_estimates(name: str) -> None:
    found = estimate(load_recipe(name))
    assert sum(found.parameters_by_group.values()) == found.parameters
    assert found.training_flops_per_token == 3 * found.forward_flops_per_token
    assert found.training_memory_cpu > 16 * found.parameters
    assert found.training_memory_cuda < found.training_memory_cpu
    assert len(found.rows()) == 5


def test_the_shipped_recipes_are_predicted_to_fit() -> None:
    for name in recipe_names():
        found = estimate(load_recipe(name))
        # The estimate of small matrices is up to a tenth too high.
        assert found.artifact_bytes + found.code_bytes <= 1.1 * found.cap, name


@pytest.mark.parametrize("settings", [[], ["model.unique_layers=1", "model.xsa_last=1"]])
def test_flops_are_those_that_torch_counts(settings: list[str]) -> None:
    recipe = load_recipe("tiny", [*TINY, *settings])
    network = build_model(recipe.model, 0)
    assert parameter_count(network) == estimate(recipe).parameters
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 64, dtype=torch.int64))
    # On the CPU torch does not count attention: scores and values, over half of the square.
    attention = 2 * 2 * recipe.model.width * recipe.model.layers * 64 / 2
    expected = counter.get_total_flops() / 128 + attention
    assert estimate(recipe).forward_flops_per_token == pytest.approx(expected, rel=0.02)
