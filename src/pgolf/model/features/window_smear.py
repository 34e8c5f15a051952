"""Windowed smear: each position adds a share of the one before it that its own first channels decide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.slots import EmbeddingPart, Reading


class WindowSmear(EmbeddingPart):
    """x[t] + share * sigmoid(W x[t, :width]) * x[t-1], both zeros at first (challenges #1667, #1851).

    Nothing comes across a BOS, with ``model.document_mask`` or without.
    """

    name = "window_smear"
    examples = (("window smear", "model.window_smear.width=12"),)

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        self.gate = nn.Linear(model.window_smear.width, 1, bias=False)
        self.share = nn.Parameter(torch.zeros(1))
        self.bos = model.bos

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.window_smear.width > 0

    def initialise(self, model: ModelSection) -> None:
        nn.init.zeros_(self.gate.weight)

    def forward(self, x: Tensor, reading: Reading) -> Tensor:
        gate = self.share.to(x.dtype) * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))
        inside = (reading.tokens != self.bos)[..., None]
        return x + gate.to(x.dtype) * inside * reading.shifted(self, x)
