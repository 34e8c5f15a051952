"""Looped layers (depth recurrence): what is learned for each pass, and what a loop cannot be.

The loop itself is the order of the layers: ``model/shape.py`` has its keys, and ``schedule``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant
from pgolf.model.shape import Shape, Visit
from pgolf.model.slots import LayerPart, Row

# With the plain order before, and fake quantization on and off, as many graphs as the compiler keeps: 8.
_MOST_STAGES = 3


class Loop(LayerPart):
    """Adds the vector of the pass to the stream where a pass begins, zeros at first (challenge #1518).

    Where training makes one pass only, nothing is added.
    """

    name = "loop"
    rows = (Row(r"loop\.vectors", "scalar", "control"),)
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
    largest = (("loop.passes", 1 << 6),)

    def __init__(self, model: Shape, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        self.first = model.loop.first
        self.vectors = nn.Parameter(torch.zeros(model.loop.passes, model.width))

    @staticmethod
    def wanted(model: Shape, core: int = 0) -> bool:
        return model.loop.pass_vectors and model.loop.passes > 1

    @staticmethod
    def problems(model: Shape) -> list[str]:
        loop, problems = model.loop, []
        if not 0 <= loop.first <= loop.last < model.layers:
            problems.append(
                f"model.loop.first {loop.first} to model.loop.last {loop.last} must be a stretch of the "
                f"layers 0 to {model.layers - 1}"
            )
        if loop.passes < 1:
            problems.append(f"model.loop.passes {loop.passes} must be at least 1")
        if not 0 <= loop.start_fraction <= 1:
            problems.append(f"model.loop.start_fraction {loop.start_fraction} must be 0 to 1")
        if loop.curriculum and loop.curriculum[-1] != loop.passes:
            problems.append(
                f"model.loop.curriculum {list(loop.curriculum)} must end at model.loop.passes {loop.passes}"
            )
        if any(not 1 <= passes <= loop.passes for passes in loop.curriculum):
            problems.append(
                f"model.loop.curriculum {list(loop.curriculum)} must name passes from 1 to model.loop.passes"
            )
        if len(loop.curriculum) > _MOST_STAGES:
            problems.append(
                f"model.loop.curriculum must have at most {_MOST_STAGES} entries: each is compiled by itself"
            )
        return problems

    def before(self, x: Tensor, kept: list[Tensor], order: Sequence[Visit], place: int) -> Tensor:
        begins = [at for at, visit in enumerate(order) if visit.layer == self.first]
        if len(begins) == 1 or place not in begins:
            return x
        return x + self.vectors[begins.index(place)].to(x.dtype)
