"""U-Net skips (Ronneberger et al. 2015): late layers take back the outputs of early ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pgolf.model.fast import scaled_sum
from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.shape import Visit, schedule
from pgolf.model.slots import LayerPart


class Skips(LayerPart):
    """The first half of the layers leave their outputs on a stack; each later layer first takes one back.

    The vectors belong to the steps of the second half, whichever layers stand there; a pass through fewer
    layers than the whole schedule uses the first of them.
    """

    name = "skips"
    examples = (
        ("skip", "model.skip=add"),
        ("gated skip", "model.skip=gated"),
    )

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        early = len(schedule(model)) // 2
        self.weight = nn.Parameter(torch.ones(early, model.width))
        self.gate = nn.Parameter(torch.zeros(early, model.width)) if model.skip == "gated" else None

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.skip != "none" and len(schedule(model)) > 1

    def before(self, x: Tensor, kept: list[Tensor], order: Sequence[Visit], place: int) -> Tensor:
        step = place - len(order) // 2
        if step < 0 or not kept:
            return x
        weight, skipped = self.weight[step].to(x.dtype), kept.pop()
        if self.gate is None:
            return scaled_sum(x, None, skipped, weight)
        gate = torch.sigmoid(self.gate[step].to(x.dtype))
        return scaled_sum(x, gate, skipped, (1 - gate) * weight)

    def after(self, x: Tensor, kept: list[Tensor], order: Sequence[Visit], place: int) -> None:
        if place < len(order) // 2:
            kept.append(x)

    def single(self) -> _Single:
        return _Single(self)


class _Single:
    def __init__(self, skips: Skips) -> None:
        self.after = skips.after
        weight: Tensor = skips.weight
        self.gates: list[Tensor] | None = None
        if skips.gate is not None:
            gate = torch.sigmoid(skips.gate)
            self.gates, weight = list(gate.unbind()), (1 - gate) * weight
        self.weights = list(weight.unbind())

    def before(self, x: Tensor, kept: list[Tensor], order: Sequence[Visit], place: int) -> Tensor:
        step = place - len(order) // 2
        if step < 0 or not kept:
            return x
        own = x if self.gates is None else x * self.gates[step]
        return torch.addcmul(own, kept.pop(), self.weights[step])
