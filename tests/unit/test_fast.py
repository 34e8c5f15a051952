"""Formulas with gradients by hand equal the textbook ones, in values and in gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pgolf.model import fast
from pgolf.model.features.exclusive import remove_own_value
from pgolf.model.gpt import build_model
from pgolf.model.rope import rotary_tables
from pgolf.recipe.recipe import load_recipe

MODEL = load_recipe("tiny", ["model.width=16", "model.heads=2", "model.rope_dims=4"]).model
FACTORS = torch.linspace(-1, 2, 16).view(2, 8)
TABLES = rotary_tables(MODEL, 5, torch.device("cpu"))
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms_norm": lambda x, gain: fast.rms_norm(x),
    "rms_norm scaled": lambda x, gain: fast.rms_norm(x, 0.5),
    "norm_and_rotate": lambda x, gain: fast.norm_and_rotate(x, *TABLES),
    "norm_and_rotate with gain": lambda x, gain: fast.norm_and_rotate(x, *TABLES, gain),
    "squared relu": lambda x, gain: fast.squared_leaky_relu(x, 0.0),
    "squared leaky relu": lambda x, gain: fast.squared_leaky_relu(x, 0.5),
    "scaled sum": lambda x, gain: fast.scaled_sum(x, FACTORS[0], x.detach() ** 2, FACTORS[1]),
    "scaled sum of other": lambda x, gain: fast.scaled_sum(x.detach() ** 2, FACTORS[0], x, FACTORS[1]),
    "scaled sum, one factor": lambda x, gain: fast.scaled_sum(x, None, x * x, FACTORS[1]),
    "remove own value": lambda x, gain: remove_own_value(x, 0.3 * x[:, :, :1] - 0.2 * x[:, :, 1:].flip(1)),
    "remove own value, no groups": lambda x, gain: remove_own_value(x, x.flip(1)),
}


BY_HAND = {
    f"{kind}Backward"
    for kind in ("_RmsNorm", "_NormAndRotate", "_SquaredLeakyRelu", "_ScaledSum", "_RemoveOwnValue")
}


def nodes(y: Tensor) -> set[str]:
    """Names of the steps that autograd will take back from a result."""
    found, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.add(type(node).__name__)
            waiting += [before for before, _ in node.next_functions]
    return found


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


def test_factors_get_their_gradients() -> None:
    torch.manual_seed(0)
    x, other, upstream = torch.randn(3, 4, 5, 8).unbind()

    def gradients(first: bool) -> list[Tensor]:
        factors = [factor.clone().requires_grad_() for factor in FACTORS]
        y = fast.scaled_sum(x, factors[0] if first else None, other, factors[1])
        y.backward(upstream)
        return [factor.grad for factor in factors if factor.grad is not None]

    for first in (True, False):
        by_hand = gradients(first)
        with fast.textbook():
            expected = gradients(first)
        assert len(by_hand) == len(expected) == 1 + first
        for found, wanted in zip(by_hand, expected, strict=True):
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_values_that_are_zero_take_nothing_away() -> None:
    y = torch.randn(1, 5, 4, 8, requires_grad=True)
    v = torch.zeros(1, 5, 2, 8, requires_grad=True)
    z = remove_own_value(y, v)
    assert torch.equal(z, y)
    z.sum().backward()
    assert y.grad is not None and torch.equal(y.grad, torch.ones_like(y))


def test_formulas_by_hand_run_in_float32_on_the_cpu_alone() -> None:
    x = torch.randn(1, 5, 2, 8, requires_grad=True)
    for formula in FORMULAS.values():
        gain = torch.ones(2)
        assert nodes(formula(x, gain)) & BY_HAND
        with fast.textbook():
            assert not nodes(formula(x, gain)) & BY_HAND
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not nodes(formula(x, gain)) & BY_HAND
        with torch.no_grad():
            assert fast.by_hand(x)
            assert formula(x, gain).grad_fn is None
    assert not fast.by_hand(x.double()) and not fast.by_hand(x.to("meta"))


def test_norms_keep_the_format_of_their_input_under_the_autocast_of_cuda() -> None:
    torch.set_autocast_enabled("cuda", True)  # What ``torch.autocast`` does only where there is a device.
    try:
        with FakeTensorMode():  # One needs no such device for it.
            x = torch.empty(2, 6, 4, 8, device="cuda", dtype=torch.bfloat16)
            assert fast.rms_norm(x).dtype == fast.rms_norm(x, 0.5).dtype == torch.bfloat16
    finally:
        torch.set_autocast_enabled("cuda", False)


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


def test_a_head_that_is_silenced_can_be_heard_again() -> None:
    x, upstream = torch.randn(1, 5, 2, 8), torch.randn(1, 5, 2, 8)

    def gradient() -> Tensor:
        gain = torch.tensor([0.0, 1.0], requires_grad=True)
        fast.norm_and_rotate(x, *TABLES, gain).backward(upstream)
        assert gain.grad is not None
        return gain.grad

    by_hand = gradient()
    with fast.textbook():
        assert torch.allclose(by_hand, gradient(), rtol=1e-5, atol=1e-6)
    assert by_hand[0] != 0
