"""What learns at test time takes the steps of ``torch.optim``, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pgolf.evaluate.optimizers import AdamW, Optimizer, Sgd

Make = Callable[[list[nn.Parameter]], Any]
BETAS = {"betas": (0.5, 0.99), "eps": 1e-10}
KINDS: dict[str, tuple[Make, Make]] = {
    "sgd": (lambda p: Sgd(p, 0.0), lambda p: torch.optim.SGD(p, fused=True)),
    "momentum": (lambda p: Sgd(p, 0.9), lambda p: torch.optim.SGD(p, momentum=0.9, fused=True)),
    "adamw": (lambda p: AdamW(p, 0.1), lambda p: torch.optim.AdamW(p, weight_decay=0.1, fused=True)),
    "betas": (
        lambda p: AdamW(p, 0.0, **BETAS),
        lambda p: torch.optim.AdamW(p, weight_decay=0.0, fused=True, **BETAS),
    ),
}


def tensors() -> list[torch.Tensor]:
    shapes = ((3, 5), (7,), (2, 2))
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_torch(kind: str) -> None:
    torch.manual_seed(0)
    values = tensors()
    ours, theirs = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
    make, make_theirs = KINDS[kind]
    optimizer: Optimizer = make(ours)
    reference = make_theirs(theirs)
    for step in range(4):
        for place, gradient in enumerate(tensors()):
            # The last parameter never has one.
            ours[place].grad, theirs[place].grad = (gradient, gradient.clone()) if place < 2 else (None, None)
        before = copy.deepcopy(optimizer.state), [value.detach().clone() for value in ours]
        for _ in range(2):  # The first one is undone.
            optimizer.state = copy.deepcopy(before[0])
            for parameter, value in zip(ours, before[1], strict=True):
                parameter.data.copy_(value)
            optimizer.step(0.1 / (step + 1))
        reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        reference.step()
        assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], values[0]) and torch.equal(ours[2], values[2])
