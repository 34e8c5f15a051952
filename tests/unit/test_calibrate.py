"""Sensitivities: what they predict is what happens, and measuring them leaves no trace."""

from __future__ import annotations

import pytest
import torch

from pgolf.compress.calibrate import Calibration, calibrate, sample_text
from pgolf.model.gpt import GPT, build_model
from pgolf.recipe.recipe import load_recipe

PARTS = [
    *("model.layers=3", "model.xsa_last=2", "model.value_residual=true", "model.gated_attention=true"),
    *("model.value_embedding.layers=[1]", "model.value_embedding.width=16", 'model.refiner="flow"'),
]


def spread(network: GPT, seed: int = 0) -> GPT:
    """The network with noise on every weight, so that no part of it is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.08 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.fixture(scope="module")
def network() -> GPT:
    network = spread(build_model(load_recipe("tiny", PARTS).model, 0))
    with torch.no_grad():
        # As it starts, this part is so quiet that its effect is lost in float32.
        for part in ("table.weight", "project.weight", "scale"):
            network.get_parameter(f"value_embedding.{part}").mul_(10)
    return network


@pytest.fixture(scope="module")
def tokens(network: GPT) -> torch.Tensor:
    return torch.randint(network.config.vocab_size, (24, 65), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def calibration(network: GPT, tokens: torch.Tensor) -> Calibration:
    return calibrate(network, tokens, "train")


def test_every_matrix_and_table_is_covered(network: GPT, calibration: Calibration) -> None:
    linear = {
        f"{name}.weight" for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)
    }
    tables = {
        f"{name}.weight" for name, module in network.named_modules() if isinstance(module, torch.nn.Embedding)
    }
    assert set(calibration.sensitivities) == linear | tables
    for name, sensitivity in calibration.sensitivities.items():
        rows, columns = network.get_parameter(name).shape
        assert all(part.shape == (rows,) for part in sensitivity.rows)
        assert all(part.shape == (columns, columns) for part in sensitivity.columns)


def test_column_moments_are_those_of_the_inputs(
    network: GPT, tokens: torch.Tensor, calibration: Calibration
) -> None:
    seen = []
    module = network.get_submodule("cores.1.mlp.down")
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    with torch.no_grad():
        network.eval()(tokens[:, :-1])
    handle.remove()
    x = torch.cat(seen).flatten(0, -2)
    expected = x.T @ x / len(x)
    assert torch.allclose(
        calibration.sensitivities["cores.1.mlp.down.weight"].columns[0], expected, rtol=1e-3
    )


@pytest.mark.parametrize(
    "name",
    [
        *(
            "cores.0.attention.query.weight",
            "cores.1.attention.value.weight",
            "cores.1.attention.output.weight",
        ),
        *(
            "cores.2.mlp.up.weight",
            "cores.2.mlp.down.weight",
            "token_embedding.weight",
            "bigram.table.weight",
        ),
        *("bigram.project.weight", "value_embedding.table.weight", "refiner.up.weight"),
    ],
)
def test_the_predicted_rise_of_the_loss_is_what_happens(
    network: GPT, tokens: torch.Tensor, calibration: Calibration, name: str
) -> None:
    generator = torch.Generator().manual_seed(2)
    parameter = network.get_parameter(name)
    error = (
        torch.randn(parameter.shape, generator=generator) * 0.1 * parameter.detach().square().mean().sqrt()
    )
    if "table" in name:
        # Rows that the text looks up rarely are smoothed in the prediction: leave them exact.
        error[calibration.sensitivities[name].rows[0] * tokens[:, 1:].numel() < 3] = 0
    with torch.no_grad():
        before = network.eval()(tokens[:, :-1]).log_softmax(dim=-1)
        exact = parameter.clone()
        parameter += error
        after = network(tokens[:, :-1]).log_softmax(dim=-1)
        parameter.copy_(exact)
    # With labels from the model itself, the mean rise of the loss is the divergence of the distributions.
    happened = float((before.exp() * (before - after)).sum(dim=-1).mean())
    # The factors are taken as independent, which they are not quite.
    assert 1 / 3 < calibration.sensitivities[name].loss(error) / happened < 3


def test_measuring_leaves_the_model_as_it_was(tokens: torch.Tensor) -> None:
    network = spread(build_model(load_recipe("tiny").model, 0)).train()
    network.get_parameter("cores.0.mlp.up.weight").requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learns = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    calibrate(network, tokens[:4], "train")
    assert network.training
    assert learns == {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_the_source_is_described(network: GPT, tokens: torch.Tensor) -> None:
    first = calibrate(network, tokens[:2], "train").source
    assert (first["source"], first["tokens"]) == ("train", 128)
    changed = tokens[:2].clone()
    changed[0, 0] = (changed[0, 0] + 1) % 320
    assert calibrate(network, changed, "train").source["sha256"] != first["sha256"]


def test_sampled_text_follows_the_model(network: GPT) -> None:
    first, again, other = (sample_text(network, 4, 12, seed) for seed in (0, 0, 1))
    assert first.shape == (4, 12)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    sure = spread(build_model(load_recipe("tiny").model, 0))
    sure.project = lambda hidden: (
        50.0
        * torch.nn.functional.one_hot(  # type: ignore[method-assign]
            torch.full((len(hidden),), 7), 320
        )
    )
    assert (sample_text(sure, 3, 9)[:, 1:] == 7).all()
