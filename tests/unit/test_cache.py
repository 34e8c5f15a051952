"""Reading a window piece by piece with a cache equals reading it at once, for every option of the core;
test_features.py has the features."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.model.gpt import GPT, build_model
from pgolf.model.step import extend
from pgolf.recipe.recipe import load_recipe
from tests.unit.test_model import OPTIONS, PLAIN, randomised, section, tokens

LENGTH = 12
# What an option may need of another one, and the reference's own combinations.
VARIANTS = {
    **{name: [*PLAIN, *settings] for name, settings in OPTIONS.items()},
    "plain": PLAIN,
    "one head per group": ["model.kv_heads=4"],
    "one group": ["model.kv_heads=1"],
    "one layer": ["model.layers=1", "model.xsa_last=0"],
    "shared, exclusive, residual": ["model.layers=5", "model.unique_layers=2", "model.value_residual=true"],
    "frontier": [
        *(*PLAIN, 'model.skip="gated"', "model.xsa_last=3", 'model.mlp="leaky_relu2"', "model.mlp_slope=0.3"),
        *("model.loop.last=1", "model.loop.passes=3", "model.loop.pass_vectors=true"),
        *('model.lanes.mode="two"', "model.lanes.start=2", 'model.norm_scale="inverse_sqrt_depth"'),
        *("model.window_gate.width=12", "model.window_smear.width=12", "model.rope_dims=4"),
    ],
    "everything": [
        "model.smear=true",
        'model.skip="gated"',
        "model.xsa_last=3",
        "model.value_residual=true",
        "model.gated_attention=true",
        "model.value_embedding.layers=[0,1]",
        "model.value_embedding.width=8",
        'model.refiner="flow"',
        "model.rope_dims=4",
        "model.rope_train_length=4",
        'model.norm_scale="inverse_sqrt_depth"',
    ],
}


def pieces(network: GPT, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    cache = network.cache(x.size(0), LENGTH)
    parts = [extend(network, part, cache) for part in x.split(sizes, dim=1)]
    assert cache.used == x.size(1)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pieces_give_the_hidden_states_of_the_whole_window(variant: str) -> None:
    network = randomised(section(*VARIANTS[variant])).eval()
    x = tokens(length=LENGTH)
    expected = network.hidden(x)
    for sizes in ([LENGTH], [1] * LENGTH, [1, 4, 1, 2, 3, 1], [7, 1, 1, 3]):
        assert torch.allclose(pieces(network, x, sizes), expected, atol=1e-5, rtol=1e-5), sizes
    assert torch.equal(pieces(network, x, [1] * LENGTH), pieces(network, x, [1] * LENGTH))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_pieces_of_any_prefix(data: st.DataObject) -> None:
    network = randomised(section(*VARIANTS["everything"])).eval()
    sizes = data.draw(
        st.lists(st.integers(1, 5), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) <= LENGTH)
    )
    x = tokens(length=LENGTH)
    expected = network.hidden(x)[:, : sum(sizes)]
    assert torch.allclose(pieces(network, x[:, : sum(sizes)], sizes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["quickstart", "seed_456", "seed_644", "seed_1232_flow"])
def test_shipped_recipes(name: str) -> None:
    smaller = ["model.layers=3", "model.xsa_last=1", "ttt.frozen_blocks=0"]
    values = ["model.value_embedding.layers=[1]"] if name == "seed_644" else []
    recipe = load_recipe(name, [*smaller, *values])
    network = build_model(recipe.model, 0).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    x = torch.randint(recipe.model.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(4))
    assert torch.allclose(pieces(network, x, [5] + [1] * 7), network.hidden(x), atol=1e-5, rtol=1e-5)


def test_a_cache_is_reused_after_reset_and_a_new_one_sees_new_weights() -> None:
    network = randomised(section(*VARIANTS["everything"])).eval()
    x, other = tokens(length=LENGTH), tokens(length=LENGTH).flip(1)
    cache = network.cache(2, LENGTH)
    memory = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    first = extend(network, other, cache)
    assert first.shape == (2, LENGTH, 32)
    cache.reset()
    assert torch.equal(extend(network, x[:, :5], cache), pieces(network, x[:, :5], [5]))
    assert memory == [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    assert torch.allclose(pieces(network, x, [5] + [1] * 7), network.hidden(x), atol=1e-5, rtol=1e-5)


def test_longer_than_the_cache_is_refused() -> None:
    network = randomised(section()).eval()
    cache = network.cache(2, 4)
    extend(network, tokens(length=3), cache)
    with pytest.raises(AssertionError, match="5 tokens in a cache made for 4"):
        extend(network, tokens(length=2), cache)
    extend(network, tokens(length=1), cache)
    assert cache.used == 4


def test_rotations_are_those_of_a_window_of_the_cache_length() -> None:
    network = randomised(section("model.rope_train_length=8")).eval()
    x = tokens(length=6)
    short, long = network.cache(2, 8), network.cache(2, LENGTH)
    assert torch.allclose(extend(network, x, short), network.hidden(x), atol=1e-5)
    assert not torch.allclose(extend(network, x, long), network.hidden(x), atol=1e-4)


def test_one_entry_per_layer_in_memory_of_the_right_size() -> None:
    network = randomised(section("model.layers=4", "model.unique_layers=2"))
    cache = network.cache(3, 7)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(3, 2, 7, 8)] * 4
    with torch.no_grad():
        hidden = extend(network, tokens(3, 7), cache)
    assert not hidden.requires_grad
    assert not any(layer.keys.requires_grad for layer in cache.layers)


@pytest.mark.parametrize("read", [1, 4])
def test_a_copy_of_a_cache_goes_its_own_way(read: int) -> None:
    network = randomised(section(*VARIANTS["everything"])).eval()
    x = tokens(length=LENGTH)
    cache = network.cache(2, LENGTH)
    extend(network, x[:, :read], cache)
    copied = copy.deepcopy(cache)
    other = [extend(network, x[:, index : index + 1].flip(0), copied) for index in range(read, LENGTH)]
    rest = [extend(network, x[:, index : index + 1], cache) for index in range(read, LENGTH)]
    assert torch.allclose(torch.cat(rest, dim=1), network.hidden(x)[:, read:], atol=1e-5, rtol=1e-5)
    mixed = torch.cat((x[:, :read], x[:, read:].flip(0)), dim=1)
    assert torch.allclose(torch.cat(other, dim=1), network.hidden(mixed)[:, read:], atol=1e-5, rtol=1e-5)
