"""The three ways to the losses agree with the formula, each other, and the gradients of the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model import loss
from pgolf.model.gpt import build_model
from pgolf.model.loss import capped, chunked_losses, loss_form, target_losses
from pgolf.recipe.recipe import load_recipe

ROWS, VOCABULARY, WIDTH, CAP = 23, 37, 8, 3.0


def _case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=generator)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = CAP * torch.tanh(hidden @ weight.t() / CAP)
    return -logits.log_softmax(dim=1)[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("rows", (1, 7, 23, 100))
def test_chunks_give_the_losses_and_gradients_of_the_formula_for_any_weights_of_the_targets(
    rows: int,
) -> None:
    hidden, weight, targets = _case()
    upstream = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    expected = _plain(hidden, weight, targets)
    found = chunked_losses(hidden, weight, targets, CAP, rows)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)
    wanted = torch.autograd.grad(expected, (hidden, weight), upstream)
    for ours, theirs in zip(torch.autograd.grad(found, (hidden, weight), upstream), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)


def test_chunked_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, targets = _case()
    assert torch.autograd.gradcheck(lambda h, w: chunked_losses(h, w, targets, CAP, 5), (hidden, weight))


@pytest.mark.parametrize("form", ("plain", "chunked"))
def test_learned_caps_give_the_losses_and_gradients_of_the_formula(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "loss_form", lambda *_: form)
    hidden, weight, targets = _case()
    caps = torch.tensor([2.0, 5.0], dtype=torch.float64, requires_grad=True)
    z = hidden @ weight.t()
    logits = torch.where(z >= 0, caps[0] * torch.tanh(z / caps[0]), caps[1] * torch.tanh(z / caps[1]))
    expected = F.cross_entropy(logits, targets, reduction="none")
    found = target_losses(hidden, weight, targets, caps, rows=5)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)
    upstream = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, (hidden, weight, caps), upstream)
    for ours, theirs in zip(
        torch.autograd.grad(found, (hidden, weight, caps), upstream), wanted, strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", ("plain", "chunked"))
def test_leading_dimensions_are_kept_and_sums_need_no_dense_gradient(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "loss_form", lambda *_: form)
    hidden, weight, targets = _case(torch.float32)
    losses = target_losses(hidden[:20].view(4, 5, WIDTH), weight, targets[:20].view(4, 5), CAP)
    assert losses.shape == (4, 5)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses.flatten(), _plain(hidden, weight, targets)[:20], atol=1e-5, rtol=0)
    losses.sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad[20:], torch.zeros(3, WIDTH))


@pytest.mark.parametrize("cap", (CAP, 30.0, 100.0))  # Exponentials up to that of the last one would overflow.
def test_the_plain_form_by_hand_gives_the_losses_and_gradients_of_the_formula(cap: float) -> None:
    hidden, weight, targets = _case(torch.float32)
    upstream = torch.linspace(-1, 2, ROWS)
    exact = [tensor.detach().double().requires_grad_() for tensor in (50 * hidden, weight)]
    logits = cap * torch.tanh(exact[0] @ exact[1].t() / cap)
    expected = -logits.log_softmax(dim=1)[torch.arange(ROWS), targets]
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    loud = (50 * hidden).detach().requires_grad_()
    found = target_losses(loud, weight, targets, cap)
    assert torch.allclose(found.double(), expected, atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, (loud, weight), upstream), wanted, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize("form", ("plain", "chunked"))
def test_autocast_forms_products_in_bf16_and_the_rest_in_float32(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "loss_form", lambda *_: form)
    hidden, weight, targets = _case(torch.float32)
    z = F.linear(hidden.bfloat16(), weight.bfloat16())
    expected = F.cross_entropy(capped(z, CAP), targets, reduction="none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = target_losses(hidden, weight, targets, CAP)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, expected, atol=1e-6, rtol=0)
    exact = torch.autograd.grad(_plain(hidden, weight, targets).mean(), (hidden, weight))
    for ours, theirs in zip(torch.autograd.grad(losses.mean(), (hidden, weight)), exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_the_form_follows_from_the_size_of_the_logits_and_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert loss_form(1024, 1024, cpu) == "plain"
    assert loss_form(98304, 1024, cpu) == "chunked"
    for there, form in ((True, "kernel"), (False, "chunked")):
        monkeypatch.setattr(loss, "has_triton", lambda there=there: there)
        assert loss_form(98304, 1024, cuda) == form
        assert loss_form(98304, 1024, cuda, learned=True) == "chunked", "the kernel knows one cap"


def test_large_logits_never_exist_at_once() -> None:
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*arguments, **(options or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    rows, vocabulary = 20_000, 512
    hidden, weight = torch.randn(rows, 4), torch.randn(vocabulary, 4)
    with Watch():
        target_losses(hidden, weight, torch.zeros(rows, dtype=torch.long), CAP)
    assert 0 < largest < rows * vocabulary / 8


def test_the_model_uses_it_with_its_own_softcap_and_embedding() -> None:
    network = build_model(load_recipe("tiny", ["model.softcap=2.5"]).model, seed=0)
    tokens = torch.randint(320, (2, 9), generator=torch.Generator().manual_seed(1))
    losses = network(tokens[:, :-1], tokens[:, 1:])
    logits = network(tokens[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view_as(
        losses
    )
    assert torch.allclose(losses, expected, atol=1e-6, rtol=0)
    assert logits.abs().max() < 2.5
