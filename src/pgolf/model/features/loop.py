"""Looped layers (depth recurrence): what is learned for each pass, and what a loop cannot be.

The loop itself is the order of the layers: ``model/shape.py`` has its keys, and ``schedule``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.shape import Visit
from pgolf.model.slots import LayerPart

# With the plain order before, and fake quantization on and off, as many graphs as the compiler keeps: 8.
_MOST_STAGES = 3


class Loop(LayerPart):
    """Adds the vector of the pass to the stream where a pass begins, zeros at first (challenge #1518).

    Where training makes one pass only, nothing is added.
    """

    name = "loop"
    examples = (
        ("loop", "model.loop.first=1", "model.loop.last=1", "model.loop.passes=3"),
        (
            "pass vectors",
            *(
                "model.loop.first=1",
                "model.loop.last=2",
                "model.loop.passes=2",
                "model.loop.pass_vectors=true",
            ),
        ),
    )

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        self.first = model.loop.first
        self.vectors = nn.Parameter(torch.zeros(model.loop.passes, model.width))

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.loop.pass_vectors and model.loop.passes > 1

    def before(self, x: Tensor, kept: list[Tensor], order: Sequence[Visit], place: int) -> Tensor:
        begins = [at for at, visit in enumerate(order) if visit.layer == self.first]
        if len(begins) == 1 or place not in begins:
            return x
        return x + self.vectors[begins.index(place)].to(x.dtype)
