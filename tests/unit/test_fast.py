"""Formulas with gradients by hand equal the textbook ones, in values and in gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pgolf.model import fast
from pgolf.model.gpt import build_model
from pgolf.model.rope import rotary_tables
from pgolf.recipe import load_recipe

MODEL = load_recipe("tiny", ["model.width=16", "model.heads=2", "model.rope_dims=4"]).model
TABLES = rotary_tables(MODEL, 5, torch.device("cpu"))
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms_norm": lambda x, gain: fast.rms_norm(x),
    "rms_norm scaled": lambda x, gain: fast.rms_norm(x, 0.5),
    "norm_and_rotate": lambda x, gain: fast.norm_and_rotate(x, *TABLES),
    "norm_and_rotate with gain": lambda x, gain: fast.norm_and_rotate(x, *TABLES, gain),
    "squared relu": lambda x, gain: fast.squared_leaky_relu(x, 0.0),
    "squared leaky relu": lambda x, gain: fast.squared_leaky_relu(x, 0.5),
}


def results(formula: Callable[[Tensor, Tensor], Tensor], size: float) -> list[Tensor]:
    torch.manual_seed(0)
    x = (size * torch.randn(3, 5, 2, 8)).requires_grad_()
    gain = torch.tensor([1.5, 0.7], requires_grad=True)
    y = formula(x, gain)
    y.backward(torch.randn(y.shape))
    assert x.grad is not None
    return [y.detach(), x.grad, *([] if gain.grad is None else [gain.grad])]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("size", [1.0, 1e-4])  # The small ones feel the epsilon of the norm.
def test_values_and_gradients(name: str, size: float) -> None:
    by_hand = results(FORMULAS[name], size)
    with fast.textbook():
        expected = results(FORMULAS[name], size)
    assert len(by_hand) == len(expected)
    for found, wanted in zip(by_hand, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_gradients_by_hand_run_in_training_alone() -> None:
    x = torch.randn(1, 5, 2, 8, requires_grad=True)
    for formula in FORMULAS.values():
        gain = torch.ones(2)
        kind = type(formula(x, gain).grad_fn).__name__
        assert kind in ("_RmsNormBackward", "_NormAndRotateBackward", "_SquaredLeakyReluBackward")
        with fast.textbook():
            assert type(formula(x, gain).grad_fn).__name__ != kind
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert type(formula(x, gain).grad_fn).__name__ != kind
        with torch.no_grad():
            assert formula(x, gain).grad_fn is None


@pytest.mark.parametrize("settings", [[], ["model.mlp=relu2", "model.norm_scale=inverse_sqrt_depth"]])
def test_a_model_learns_the_same(settings: list[str]) -> None:
    model = load_recipe("tiny", settings).model
    tokens = torch.randint(0, model.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))

    def gradients() -> tuple[float, dict[str, Tensor]]:
        network, generator = build_model(model, 0).train(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        loss = network(tokens[:, :-1], tokens[:, 1:]).mean()
        loss.backward()
        return loss.item(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    loss, found = gradients()
    with fast.textbook():
        expected_loss, expected = gradients()
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max())), name
