"""Windowed attention gate: a gate for each head that reads the first channels of the layer's input only."""

from __future__ import annotations

from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from pgolf.model.features.gated_attention import GateOfOne
from pgolf.model.linear import FakeQuant
from pgolf.model.shape import Shape
from pgolf.model.slots import AttentionPart, Row, SinglePart
from pgolf.runtime.section import Section


class WindowGateSection(Section):
    """Gate of each head's output, computed from a window of the layer's input."""

    width: int = pydantic.Field(0, ge=0)
    """Channels of the input that it reads, the first ones; 0 leaves it out."""
    alpha: float = pydantic.Field(0.5, gt=0)
    """Factor inside: gain * sigmoid(alpha * W u)."""
    gain: float = pydantic.Field(1.0, gt=0)
    """Factor outside: W begins at 0, so heads begin at half of it; 2 lets everything through at first."""


class WindowGateKeys(Shape):
    """Keys of the windowed attention gate."""

    window_gate: WindowGateSection = WindowGateSection()


class WindowGate(AttentionPart, nn.Linear):
    """gain * sigmoid(alpha * W u[:width]) per head, W zeros at first (challenge #1787; with gain 2 #1667)."""

    name = "window_gate"
    rows = (Row(r"cores\.\d+\.attention\.window_gate\.weight", "scalar", "other"),)
    examples = (
        ("window gate", "model.window_gate.width=12"),
        ("window gate that lets through", "model.window_gate.width=4", "model.window_gate.gain=2"),
    )

    def __init__(self, model: WindowGateKeys, fake_quant: FakeQuant) -> None:
        gate = model.window_gate
        nn.Linear.__init__(self, gate.width, model.heads, bias=False)
        self.alpha, self.gain, self.outside = gate.alpha, gate.gain, model.width - gate.width

    @staticmethod
    def wanted(model: WindowGateKeys, core: int = 0) -> bool:
        return model.window_gate.width > 0

    @staticmethod
    def problems(model: Any) -> list[str]:
        width, problems = model.window_gate.width, []
        if width > model.width:
            problems.append(f"model.window_gate.width {width} exceeds model.width {model.width}")
        if width and model.gated_attention:
            problems.append(
                "model.window_gate and model.gated_attention gate the same outputs; leave one out"
            )
        return problems

    def initialise(self, model: WindowGateKeys) -> None:
        nn.init.zeros_(self.weight)

    def output(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.alpha * self(x[..., : self.in_features])).to(y.dtype)
        return y * (self.gain * gate)[..., None]

    def single(self, attention: Any) -> SinglePart:
        weight = nn.functional.pad(self.alpha * self.weight, (0, self.outside))
        return GateOfOne(weight, gain=self.gain)
