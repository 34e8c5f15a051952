"""The model: causality, options, initial weights, shared cores."""

from __future__ import annotations

import math

import pytest
import torch

from pgolf.model.features.bigram import bigram_buckets
from pgolf.model.gpt import GPT, build_model
from pgolf.model.linear import soft_round
from pgolf.model.section import ModelSection
from pgolf.recipe.files import recipe_names
from pgolf.recipe.recipe import load_recipe

TINY = ["model.layers=3", "model.width=32", "model.heads=4", "model.kv_heads=2", "model.mlp_hidden=48"]
TINY += ["model.vocab_size=64", "model.bigram.buckets=32", "model.bigram.width=16"]
PLAIN = ["model.smear=false", "model.bigram.buckets=0", 'model.skip="none"', "model.xsa_last=0"]
# Those of the core; test_features.py has the features.
OPTIONS = {
    "leaky": ['model.mlp="leaky_relu2"'],
    "slope": ['model.mlp="leaky_relu2"', "model.mlp_slope=0.3"],
    "star": ['model.mlp="star_relu"'],
    "partial rope": ["model.rope_dims=4"],
    "rescaled rope": ["model.rope_train_length=4"],
    "shared": ["model.unique_layers=2"],
    "softcap": ["model.softcap=5.0"],
}


def section(*settings: str) -> ModelSection:
    return load_recipe("seed_456", [*TINY, "model.xsa_last=1", *settings]).model


def randomised(model: ModelSection) -> GPT:
    """A model none of whose parts is silent, as zero-initialised ones would be."""
    network = build_model(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_causal_and_does_something(option: str) -> None:
    network = randomised(section(*PLAIN, *OPTIONS[option]))
    x = tokens()
    logits = network(x)
    changed = x.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 64
    after = network(changed)
    assert torch.allclose(logits[:, :7], after[:, :7], atol=1e-5)
    assert not torch.allclose(logits[:, 7:], after[:, 7:], atol=1e-3)
    plain = randomised(section(*PLAIN))
    shared = {n: v for n, v in network.state_dict().items() if n in plain.state_dict()}
    plain.load_state_dict({**plain.state_dict(), **shared})
    assert not torch.allclose(plain(x), logits, atol=1e-4), f"{option} changes nothing"


def test_the_slope_of_the_activation_is_the_recipes() -> None:
    sloped, relu = (
        randomised(section(*PLAIN, *settings)) for settings in (OPTIONS["slope"], ['model.mlp="relu2"'])
    )
    mlp, x = sloped.cores[0].mlp, torch.randn(3, 32)
    hidden = mlp.up(x)
    assert torch.allclose(mlp(x), mlp.down(torch.where(hidden < 0, 0.3 * hidden, hidden).square()), atol=1e-5)
    none = section(*PLAIN, OPTIONS["leaky"][0], "model.mlp_slope=0")
    assert torch.equal(randomised(none)(tokens()), relu(tokens()))


def test_losses_are_the_cross_entropies_of_the_logits() -> None:
    network, x = randomised(section()), tokens()
    inputs, targets = x[:, :-1], x[:, 1:]
    log_probabilities = network(inputs).log_softmax(dim=-1)
    expected = -log_probabilities.gather(-1, targets[..., None])[..., 0]
    assert torch.allclose(network(inputs, targets), expected, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (build_model(section(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.token_embedding.weight, other.token_embedding.weight)


@pytest.mark.parametrize("name", recipe_names())
def test_every_parameter_of_every_shipped_recipe_learns(name: str) -> None:
    model = load_recipe(name).model
    network = build_model(model, 0).train()
    # The first layer has no earlier value to mix in; its pair of weights exists in the references too.
    silent = {parameter for parameter, _ in network.named_parameters()} - {"cores.0.attention.value_mix"}
    torch.manual_seed(0)
    for _ in range(4):
        tokens = torch.randint(model.vocab_size, (2, 17))
        network(tokens[:, :-1], tokens[:, 1:]).mean().backward()
        for parameter, value in network.named_parameters():
            if value.grad is not None and bool(value.grad.any()):
                silent.discard(parameter)
                with torch.no_grad():
                    value -= 0.1 * value.grad
            value.grad = None
    assert not silent


def test_initial_weights_of_the_references() -> None:
    recipe = load_recipe("seed_1232_flow", ["model.layers=2", "model.xsa_last=2", "ttt.frozen_blocks=0"])
    state = build_model(recipe.model, 0).state_dict()
    assert state["token_embedding.weight"].std().item() == pytest.approx(0.005, rel=0.02)
    query = state["cores.0.attention.query.weight"]
    assert torch.allclose(query @ query.T, torch.eye(512), atol=1e-4)
    for name in ("cores.0.attention.output.weight", "cores.1.mlp.down.weight", "refiner.velocity.weight"):
        assert state[name].count_nonzero() == 0
    assert state["bigram.table.weight"].count_nonzero() == 0
    project = state["bigram.project.weight"]
    assert torch.allclose(project.T @ project, torch.eye(128) / (2 * 2), atol=1e-4)
    assert (state["cores.0.attention.gate.bias"] == 4).all()
    assert state["cores.0.attention.gate.weight"].count_nonzero() == 0
    assert state["bigram.scale"].item() == pytest.approx(0.05)
    assert (state["cores.0.attention.query_gain"] == 1.5).all()
    older = load_recipe(
        "seed_644", ["model.layers=2", "model.xsa_last=2", "model.value_embedding.layers=[1]"]
    )
    state = build_model(older.model, 0).state_dict()
    assert state["bigram.table.weight"].std().item() == pytest.approx(0.01, rel=0.02)
    assert state["value_embedding.table.weight"].std().item() == pytest.approx(0.01, rel=0.02)


def test_bigram_buckets() -> None:
    x = torch.tensor([[3, 5, 1000]])
    assert bigram_buckets(x, 256, "xor").tolist() == [
        [255, ((36313 * 5) ^ (27191 * 3)) % 255, ((36313 * 1000) ^ (27191 * 5)) % 255]
    ]
    assert bigram_buckets(x, 256, "additive").tolist() == [[3, (3 * 1009 + 5) % 256, (5 * 1009 + 1000) % 256]]


def test_shared_cores_receive_the_mean_of_their_uses() -> None:
    shared = randomised(section("model.layers=4", "model.unique_layers=2"))
    unshared = GPT(section("model.layers=4"))
    state = {name: value for name, value in shared.state_dict().items() if not name.startswith("cores.")}
    for index in range(4):
        for name, value in shared.cores[index % 2].state_dict().items():
            state[f"cores.{index}.{name}"] = value
    # XSA is counted over unique layers: the last core of two is used by layers 1 and 3.
    for index in range(4):
        unshared.cores[index].attention.parts = shared.cores[index % 2].attention.parts
    unshared.load_state_dict(state)
    x = tokens()
    for network in (shared, unshared, copy := shared.requires_grad_(False).clone()):
        network.requires_grad_(True)
        network(x[:, :-1], x[:, 1:]).mean().backward()
    uses = [unshared.cores[index].mlp.up.weight.grad for index in (0, 2)]
    expected = (uses[0] + uses[1]) / 2
    assert torch.allclose(shared.cores[0].mlp.up.weight.grad, expected, atol=1e-6)
    assert torch.allclose(copy.cores[0].mlp.up.weight.grad, expected, atol=1e-6), "a copy keeps the mean"


def test_a_clone_is_independent() -> None:
    network = randomised(section()).eval()
    network.fake_quant.active = True
    network.token_embedding.weight.grad = torch.ones_like(network.token_embedding.weight)
    copy = network.clone()
    assert torch.equal(copy(tokens()), network(tokens()))
    assert not copy.training and copy.token_embedding.weight.grad is None
    assert not copy.fake_quant.active and copy.cores[0].mlp.up.fake_quant is copy.fake_quant
    with torch.no_grad():
        copy.token_embedding.weight.zero_()
    assert network.token_embedding.weight.abs().sum() > 0


def test_soft_rounding_goes_from_identity_to_rounding() -> None:
    x = torch.linspace(-2.4, 2.4, 49)
    assert torch.allclose(soft_round(x, torch.tensor(1e-3)), x, atol=1e-3)
    away = (x - x.floor() - 0.5).abs() > 0.05
    assert torch.allclose(soft_round(x, torch.tensor(200.0))[away], x.round()[away], atol=1e-3)
    x.requires_grad_(True)
    soft_round(x, torch.tensor(4.0)).sum().backward()
    assert (x.grad > 0).all()


def test_rope_rescaling_starts_beyond_the_trained_length() -> None:
    scaled, plain = (randomised(section(f"model.rope_train_length={length}")) for length in (8, 0))
    x = tokens(length=8)
    assert torch.allclose(scaled(x), plain(x))
    x = tokens(length=9)
    assert not torch.allclose(scaled(x), plain(x), atol=1e-4)
    assert math.isfinite(scaled(x).sum().item())
