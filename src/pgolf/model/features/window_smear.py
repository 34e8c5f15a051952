"""Windowed smear: each position adds a share of the one before it that its own first channels decide."""

from __future__ import annotations

import pydantic
import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant
from pgolf.model.shape import Shape
from pgolf.model.slots import EmbeddingPart, Reading, Row
from pgolf.runtime.section import Section


class WindowSmearSection(Section):
    """Share of the previous position's embedding, decided by a window of the position's own."""

    width: int = pydantic.Field(0, ge=0)
    """Channels of the embedding that decide, the first ones; 0 leaves it out."""


class WindowSmearKeys(Shape):
    """Keys of the windowed smear."""

    window_smear: WindowSmearSection = WindowSmearSection()


class WindowSmear(EmbeddingPart):
    """x[t] + share * sigmoid(W x[t, :width]) * x[t-1], both zeros at first (challenges #1667, #1851).

    Nothing comes across a BOS, with ``model.document_mask`` or without.
    """

    name = "window_smear"
    rows = (Row(r"window_smear\.(gate\.weight|share)", "scalar", "control"),)
    examples = (("window smear", "model.window_smear.width=12"),)

    def __init__(self, model: WindowSmearKeys, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        self.gate = nn.Linear(model.window_smear.width, 1, bias=False)
        self.share = nn.Parameter(torch.zeros(1))
        self.bos = model.bos

    @staticmethod
    def wanted(model: WindowSmearKeys, core: int = 0) -> bool:
        return model.window_smear.width > 0

    @staticmethod
    def problems(model: WindowSmearKeys) -> list[str]:
        width = model.window_smear.width
        if width <= model.width:
            return []
        return [f"model.window_smear.width {width} exceeds model.width {model.width}"]

    def initialise(self, model: WindowSmearKeys) -> None:
        nn.init.zeros_(self.gate.weight)

    def forward(self, x: Tensor, reading: Reading) -> Tensor:
        gate = self.share.to(x.dtype) * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))
        inside = (reading.tokens != self.bos)[..., None]
        return x + gate.to(x.dtype) * inside * reading.shifted(self, x)
