"""Learned softcaps: one for positive logits, one for negative ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.slots import CapPart


class AsymmetricCap(CapPart):
    """c * exp(offset / c) for either sign, c being ``model.softcap`` (the idea is challenge #1923's).

    So a cap stays positive, a step moves it as far at first as one of the cap itself would, and weight decay
    draws it to c. It is part of the training loss; in the public runs it was not, and never moved.
    """

    name = "cap"
    examples = (("asymmetric softcap", "model.asymmetric_softcap=true"),)

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        self.softcap: float = model.softcap
        self.offset = nn.Parameter(torch.zeros(2))

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.asymmetric_softcap

    def forward(self) -> Tensor:
        return self.softcap * torch.exp(self.offset.float() / self.softcap)
