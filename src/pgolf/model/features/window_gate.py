"""Windowed attention gate: a gate for each head that reads the first channels of the layer's input only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pgolf.model.features.gated_attention import GateOfOne
from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.slots import AttentionPart, SinglePart


class WindowGate(AttentionPart, nn.Linear):
    """gain * sigmoid(alpha * W u[:width]) per head, W zeros at first (challenge #1787; with gain 2 #1667)."""

    name = "window_gate"
    examples = (
        ("window gate", "model.window_gate.width=12"),
        ("window gate that lets through", "model.window_gate.width=4", "model.window_gate.gain=2"),
    )

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        gate = model.window_gate
        nn.Linear.__init__(self, gate.width, model.heads, bias=False)
        self.alpha, self.gain, self.outside = gate.alpha, gate.gain, model.width - gate.width

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.window_gate.width > 0

    def initialise(self, model: ModelSection) -> None:
        nn.init.zeros_(self.weight)

    def output(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.alpha * self(x[..., : self.in_features])).to(y.dtype)
        return y * (self.gain * gate)[..., None]

    def single(self, attention: Any) -> SinglePart:
        weight = nn.functional.pad(self.alpha * self.weight, (0, self.outside))
        return GateOfOne(weight, gain=self.gain)
