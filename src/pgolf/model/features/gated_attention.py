"""Gated attention (Qiu et al. 2025, arXiv:2505.06708): a gate for each head that reads the layer's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.slots import AttentionPart, SinglePart


class GatedAttention(AttentionPart, nn.Linear):
    """sigmoid(W x + b) per head; it begins near 1 (b = 4, W = 0)."""

    name = "gate"
    examples = (("gated attention", "model.gated_attention=true"),)

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        nn.Linear.__init__(self, model.width, model.heads)

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.gated_attention

    def initialise(self, model: ModelSection) -> None:
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, 4.0)

    def output(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return y * torch.sigmoid(self(x)).to(y.dtype)[..., None]

    def single(self, attention: Any) -> SinglePart:
        return GateOfOne(self.weight, self.bias)


class GateOfOne(SinglePart):
    """A gate per head for a single position: gain * sigmoid(weight u + bias)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, gain: float = 1.0) -> None:
        super().__init__(weight, bias)
        self.gain = gain

    def output(self, y: Tensor, v: Tensor, read: Tensor | None) -> Tensor:
        assert read is not None
        gate = torch.sigmoid(read).view(*y.shape[:2], 1)
        return y * (gate if self.gain == 1.0 else self.gain * gate)
