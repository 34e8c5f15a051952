"""Kernels on a CUDA device against the plain formulas in float64 on the same inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.kernels.available import has_triton
from pgolf.model.attend import DocumentMask, causal_attention, document_ids
from pgolf.model.gpt import build_model
from pgolf.model.loss import chunked_losses, loss_form, target_losses
from pgolf.optim.place import place
from pgolf.recipe.recipe import load_recipe
from pgolf.runtime.device import autocast

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
needs_triton = pytest.mark.skipif(not has_triton(), reason="needs Triton")
CAP = 30.0


def _case(vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator(CUDA).manual_seed(0)
    hidden = torch.randn(2, 300, 256, device=CUDA, generator=generator).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(vocabulary, 256, device=CUDA, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (2, 300), device=CUDA, generator=generator)
    return hidden, weight, targets, torch.rand(2, 300, device=CUDA, generator=generator)


def _formula(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = CAP * torch.tanh(hidden.double() @ weight.double().t() / CAP)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@needs_triton
@pytest.mark.parametrize("vocabulary", (320, 1024, 8192, 10_001))
@pytest.mark.parametrize(("dtype", "tolerance"), ((torch.float32, 2e-3), (torch.bfloat16, 1e-2)))
def test_losses_and_gradients_of_the_kernel(vocabulary: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets, upstream = _case(vocabulary, dtype)
    assert loss_form(600, vocabulary, CUDA) == "kernel"
    expected = _formula(hidden, weight, targets)
    wanted = torch.autograd.grad(expected, (hidden, weight), upstream.double())
    flat = targets.flatten()
    for losses in (
        target_losses(hidden, weight, targets, CAP),
        chunked_losses(hidden.flatten(0, 1), weight, flat, CAP, 128).view_as(targets),
    ):
        assert losses.dtype == torch.float32
        assert _distance(losses, expected) < tolerance
        for ours, theirs in zip(torch.autograd.grad(losses, (hidden, weight), upstream), wanted, strict=True):
            assert _distance(ours, theirs) < tolerance


@needs_triton
def test_the_kernel_needs_no_memory_for_float32_logits() -> None:
    rows, vocabulary = 16_384, 8192
    hidden = torch.randn(rows, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.long, device=CUDA)
    target_losses(hidden[:8], weight, targets[:8], CAP).sum().backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    target_losses(hidden, weight, targets, CAP).sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 1.2 * 2 * (2 * rows * vocabulary), "the products and their gradient, both bf16"


@pytest.mark.parametrize("masked", (False, True))
def test_attention_of_whatever_backend(masked: bool) -> None:
    generator = torch.Generator(CUDA).manual_seed(0)
    shapes = ((2, 384, heads, 64) for heads in (8, 4, 4))
    q, k, v = (
        torch.randn(shape, device=CUDA, generator=generator).bfloat16().requires_grad_() for shape in shapes
    )
    tokens = torch.randint(2, 60, (2, 384), device=CUDA, generator=generator)
    tokens[:, (17, 200)] = 1
    mask = DocumentMask(document_ids(tokens, 1)) if masked else None
    y = causal_attention(q, k, v, mask)
    visible = torch.ones(384, 384, dtype=torch.bool, device=CUDA).tril() if mask is None else mask.dense(384)
    expected = F.scaled_dot_product_attention(
        *(tensor.double().transpose(1, 2) for tensor in (q, k, v)), attn_mask=visible, enable_gqa=True
    ).transpose(1, 2)
    assert _distance(y, expected) < 1e-2
    upstream = torch.randn(y.shape, device=CUDA, generator=generator)
    ours = torch.autograd.grad(y, (q, k, v), upstream.bfloat16())
    for found, wanted in zip(ours, torch.autograd.grad(expected, (q, k, v), upstream.double()), strict=True):
        assert _distance(found, wanted) < 2e-2


# A loop, two lanes, gates by a window, and a document mask.
FRONTIER = ["model.layers=4", "model.xsa_last=4", "model.lanes.start=2", "model.vocab_size=1024"]
FRONTIER += ["model.loop.first=1", "model.loop.last=1", "model.loop.passes=2"]


@pytest.mark.parametrize(
    ("name", "settings"),
    (("quickstart", []), ("quickstart", ["model.document_mask=true"]), ("frontier", FRONTIER)),
)
def test_one_compiled_graph_follows_the_model_as_written(name: str, settings: list[str]) -> None:
    recipe = load_recipe(name, settings)
    network = place(build_model(recipe.model, 0), recipe, CUDA).train()
    tokens = torch.randint(1, 1024, (4, 257), device=CUDA, generator=torch.Generator(CUDA).manual_seed(0))
    forward = torch.compile(network, dynamic=False, fullgraph=True)
    gradients = []
    for run in (network, forward):
        with autocast(CUDA):
            loss = run(tokens[:, :-1], tokens[:, 1:]).mean()
        loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten().float() for p in network.parameters() if p.grad is not None])
        )
        network.zero_grad(set_to_none=True)
    assert _distance(gradients[1], gradients[0]) < 5e-2
