"""Smear: each position takes a learned share of the one before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.slots import Reading, StreamPart


class Smear(StreamPart):
    """(1 - g) * x[t] + g * x[t-1], g = sigmoid(gate) per channel; zeros stand before the first position."""

    name = "smear"
    examples = (("smear", "model.smear=true"),)

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        self.gate = nn.Parameter(torch.zeros(model.width))

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.smear

    def forward(self, x: Tensor, reading: Reading) -> Tensor:
        gate = torch.sigmoid(self.gate.to(x.dtype))
        return (1 - gate) * x + gate * reading.shifted(self, x)
