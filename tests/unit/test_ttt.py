"""Test-time training: what it updates, by how much, and what it leaves alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.evaluate.ttt import Adapter, ScoredChunk, frozen_parameters, lr_factor
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import Recipe
from tests.unit.stand_ins import LENGTH, random_tokens, small_model, small_recipe

SIZE = 40  # two whole sequences of 16 and a rest of 8


def chunk_of(index: int, size: int = SIZE) -> ScoredChunk:
    return ScoredChunk(index, random_tokens(size + 1, seed=index))


def adapter_of(network: GPT, recipe: Recipe, chunks: int) -> Adapter:
    return Adapter(network, recipe.ttt, LENGTH, chunks)


def weights(network: GPT) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def changed(before: dict[str, Tensor], network: GPT) -> set[str]:
    return {name for name, value in network.named_parameters() if not torch.equal(before[name], value)}


OPTIMIZERS = {
    "sgd": ['ttt.optimizer="sgd"', "ttt.momentum=0.9"],
    "adamw": ['ttt.optimizer="adamw"', "ttt.weight_decay=0.1", "ttt.lr=0.003"],
}


def by_hand(network: GPT, recipe: Recipe, chunks: int) -> dict[str, Tensor]:
    """Weights after the first ``chunks`` - 1 chunks, written out without the adapter."""
    ttt = recipe.ttt
    state = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in network.parameters()]
    steps = 0
    for index in range(chunks - 1):
        rate = ttt.lr * 0.5 * (1 + math.cos(math.pi * index / (chunks - 1)))
        tokens = torch.tensor(chunk_of(index).text.astype(np.int64))
        for row in [0, 1] * ttt.epochs:
            steps += 1
            span = tokens[row * LENGTH : (row + 1) * LENGTH + 1]
            loss = network(span[None, :-1], span[None, 1:]).mean()
            gradients = torch.autograd.grad(loss, [p for p, _, _ in state])
            norm = math.sqrt(sum(g.double().pow(2).sum().item() for g in gradients))
            factor = min(1.0, ttt.grad_clip / (norm + 1e-6))
            with torch.no_grad():
                for (p, first, second), gradient in zip(state, gradients, strict=True):
                    g = gradient * factor
                    if ttt.optimizer == "sgd":
                        first.mul_(ttt.momentum).add_(g)
                        p -= rate * first
                    else:
                        first.mul_(0.9).add_(0.1 * g)
                        second.mul_(0.999).add_(0.001 * g * g)
                        p *= 1 - rate * ttt.weight_decay
                        root = (second / (1 - 0.999**steps)).sqrt() + 1e-8
                        p -= rate * (first / (1 - 0.9**steps)) / root
    return weights(network)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_follows_the_update_rule_over_chunks(optimizer: str) -> None:
    recipe = small_recipe(
        *OPTIMIZERS[optimizer],
        "ttt.epochs=2",
        "ttt.batch_sequences=1",
        "ttt.grad_clip=0.5",
        'ttt.schedule="cosine"',
        "ttt.frozen_blocks=0",
    )
    network = small_model(recipe)
    adapter = adapter_of(network, recipe, 3)
    for index in range(3):
        adapter.adapt(chunk_of(index))
    expected = by_hand(small_model(recipe), recipe, 3)
    start = weights(small_model(recipe))
    for name, value in network.named_parameters():
        # AdamW divides by the gradient's size, so entries with next to none differ by rounding.
        assert torch.allclose(value, expected[name], atol=2e-4), name
    moved = max((value - start[name]).abs().max().item() for name, value in network.named_parameters())
    assert moved > 0.005


def test_the_optimizer_remembers_earlier_chunks() -> None:
    recipe = small_recipe('ttt.schedule="constant"')
    lasting, forgetful = small_model(recipe), small_model(recipe)
    adapter = adapter_of(lasting, recipe, 3)
    for index in range(2):
        adapter.adapt(chunk_of(index))
        adapter_of(forgetful, recipe, 3).adapt(chunk_of(index))
    assert changed(weights(lasting), forgetful)


def test_the_last_chunk_is_not_trained_on() -> None:
    recipe = small_recipe('ttt.schedule="constant"')
    network = small_model(recipe)
    before = weights(network)
    adapter = adapter_of(network, recipe, 3)
    adapter.adapt(chunk_of(2))
    assert not changed(before, network)
    adapter.adapt(chunk_of(1))
    assert changed(before, network) == set(before)


@pytest.mark.parametrize("settings", [["ttt.epochs=0"], ["ttt.lr=0"]])
def test_nothing_to_learn_changes_nothing(settings: list[str]) -> None:
    recipe = small_recipe(*settings)
    network = small_model(recipe)
    before = weights(network)
    adapter_of(network, recipe, 3).adapt(chunk_of(0))
    assert not changed(before, network)


def test_only_whole_sequences_are_trained_on() -> None:
    recipe = small_recipe('ttt.schedule="constant"')
    network, other = small_model(recipe), small_model(recipe)
    before = weights(network)
    adapter_of(network, recipe, 3).adapt(chunk_of(0, LENGTH - 1))
    assert not changed(before, network)
    chunk, cut = chunk_of(0), ScoredChunk(0, chunk_of(0).text[: 2 * LENGTH + 1])
    adapter_of(network, recipe, 3).adapt(chunk)
    adapter_of(other, recipe, 3).adapt(cut)
    assert changed(before, network) and not changed(weights(other), network)


def test_only_vectors_learn() -> None:
    recipe = small_recipe("ttt.only=vectors", "ttt.frozen_blocks=2", "ttt.lr=0.1")
    network = small_model(recipe)
    before = weights(network)
    adapter_of(network, recipe, 2).adapt(chunk_of(0))
    blocks = [
        f"{part}.{index}.{name}"
        for index in (2, 3)
        for part, name in [
            *(("layers", name) for name in ("residual_mix", "attention_scale", "mlp_scale")),
            ("cores", "attention.query_gain"),
        ]
    ]
    assert changed(before, network) == {*blocks, "bigram.scale", "smear.gate", "skips.weight"}


def test_frozen_blocks_keep_their_layers_and_cores() -> None:
    recipe = small_recipe("ttt.frozen_blocks=2")
    network = small_model(recipe)
    before = weights(network)
    adapter_of(network, recipe, 3).adapt(chunk_of(0))
    frozen = {name for name in before if name.startswith(("layers.0.", "layers.1.", "cores.0.", "cores.1."))}
    assert len(frozen) > 10
    assert changed(before, network) == set(before) - frozen


def test_freezing_a_block_freezes_the_core_it_shares() -> None:
    # Three cores serve four layers: core 0 belongs to layers 0 and 3.
    recipe = small_recipe("model.unique_layers=3", "ttt.frozen_blocks=1")
    network = small_model(recipe)
    before = weights(network)
    adapter_of(network, recipe, 3).adapt(chunk_of(0))
    kept = set(before) - changed(before, network)
    assert kept == {name for name in before if name.startswith(("layers.0.", "cores.0."))}
    assert "layers.3.mlp_scale" not in kept
    assert frozen_parameters(network, 0) == set()


def test_gradient_clip_bounds_the_update() -> None:
    settings = [
        'ttt.optimizer="sgd"',
        "ttt.epochs=1",
        "ttt.momentum=0",
        "ttt.lr=1",
        'ttt.schedule="constant"',
    ]
    moved = {}
    for clip in (0.01, 0.0):
        recipe = small_recipe(*settings, f"ttt.grad_clip={clip}")
        network = small_model(recipe)
        before = weights(network)
        adapter_of(network, recipe, 3).adapt(chunk_of(0, 2 * LENGTH))
        steps = [(value.detach() - before[name]).pow(2).sum() for name, value in network.named_parameters()]
        moved[clip] = math.sqrt(sum(step.item() for step in steps))
    assert moved[0.01] == pytest.approx(0.01, rel=1e-2)
    assert moved[0.0] > 0.1


@pytest.mark.parametrize(
    ("schedule", "chunks", "factors"),
    [
        ("constant", 5, [1, 1, 1, 1]),
        ("cosine", 5, [1, 0.853553, 0.5, 0.146447]),
        ("warmup_cosine", 6, [1, 1, 0.853553, 0.5, 0.146447, 0]),
        ("warmup_cosine", 60, [1 / 3, 2 / 3, 1, 1, 0.5 * (1 + math.cos(math.pi / 56))]),
        ("cosine", 1, [1]),
        ("warmup_cosine", 1, [1]),
    ],
)
def test_schedules(schedule: str, chunks: int, factors: list[float]) -> None:
    ttt = small_recipe(f'ttt.schedule="{schedule}"').ttt
    assert [lr_factor(ttt, chunk, chunks) for chunk in range(len(factors))] == pytest.approx(
        factors, abs=1e-6
    )
