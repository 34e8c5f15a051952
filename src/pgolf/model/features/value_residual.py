"""Value residual: the first layer's values in every later layer (Zhou et al. 2024, arXiv:2410.17897)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pgolf.model.section import ModelSection
from pgolf.model.slots import AttentionPart, SinglePart


class ValueResidual(AttentionPart):
    """mix[0] * first + mix[1] * v, with a learned pair per attention that begins at one half each."""

    name = "value_residual"
    examples = (("value residual", "model.value_residual=true"),)

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.value_residual

    def attach(self, owner: nn.Module) -> None:
        # The pair is the attention's own parameter in every artifact that there is.
        owner.register_parameter("value_mix", nn.Parameter(torch.tensor([0.5, 0.5])))

    def value(self, v: Tensor, first: Tensor | None, attention: Any) -> Tensor:
        if first is None:
            return v
        mix = attention.value_mix.to(v.dtype)
        return mix[0] * first + mix[1] * v

    def single(self, attention: Any) -> SinglePart:
        return _Single(*attention.value_mix.tolist())


class _Single(SinglePart):
    def __init__(self, first: float, own: float) -> None:
        super().__init__()
        self.first, self.own = first, own

    def value(self, v: Tensor, first: Tensor | None) -> Tensor:
        return v if first is None else torch.add(first * self.first, v, alpha=self.own)
