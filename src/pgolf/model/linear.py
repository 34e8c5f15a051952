"""Linear layers whose float32 weights are cast to the activations' type, and their fake quantization."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CODE_MIN, _CODE_MAX = -32, 31


class FakeQuant:
    """The switch for late quantization-aware training, shared by all matrices of a model.

    While ``active`` and in training mode, every matrix is seen by the forward pass as its int6 row-wise
    quantization (step = largest magnitude of the row / 31, not below 1/31). Gradients pass straight
    through the rounding, or through a soft rounding curve whose sharpness is ``alpha``.
    """

    def __init__(self) -> None:
        self.active = False
        self.soft_round = False
        # A tensor, so that compiled code does not specialise on each of its values.
        # It has a value even where the model is only looked at, on the meta device.
        self.alpha = torch.ones((), device="cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeQuant:
        return FakeQuant()  # A model's copy is not in the training that quantizes the model.

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight (rows, columns) float32 as the forward pass should see it, same shape and type."""
        step = (weight.detach().abs().amax(dim=1, keepdim=True) / _CODE_MAX).clamp_min(1.0 / _CODE_MAX)
        if self.soft_round:
            return soft_round(weight / step, self.alpha).clamp(_CODE_MIN, _CODE_MAX) * step
        rounded = (weight.detach() / step).round().clamp(_CODE_MIN, _CODE_MAX) * step
        return weight + (rounded - weight).detach()


def soft_round(x: Tensor, alpha: Tensor) -> Tensor:
    """A differentiable rounding: near the identity for small ``alpha``, near ``round`` for large ones.

    Within each unit interval it is a tanh of slope ``alpha`` through the middle, scaled to meet the
    interval's ends (Agustsson and Theis 2020, arXiv:2006.09952).
    """
    floor = x.detach().floor()
    return floor + 0.5 + torch.tanh(alpha * (x - floor - 0.5)) / (2 * torch.tanh(alpha / 2))


class Matrix(nn.Linear):
    """A bias-free linear map with float32 weights (out, in) that computes in its input's type."""

    def __init__(self, inputs: int, outputs: int, fake_quant: FakeQuant) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.fake_quant = fake_quant

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        weight = self.weight
        if self.training and self.fake_quant.active:
            weight = self.fake_quant(weight)
        return F.linear(x, weight.to(x.dtype))
