"""Parallel layers: attention and MLP side by side, in one residual stream or in two lanes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.slots import LanePart

# Of each lane what goes on into the next layer.
_KEPT = 1.1
# What attention and MLP write into their own lane and into the other at first.
_SPLIT = 1.3, 0.7


class Lanes(LanePart):
    """Attention and MLP of the last layers side by side.

    "one" (challenge #1493): x + attention(x) + MLP(x), the same x for both, mixed with the beginning.

    "two" (challenges #1204, #1855): attention reads the first lane, mixed so, and the MLP the second; both
    write into both, lane_i = keep_i * lane_i + shares[0, i] * attention + shares[1, i] * MLP, with numbers
    learned per layer.
    """

    name = "lanes"
    examples = (
        ("parallel layers", "model.lanes.mode=one", "model.lanes.start=1"),
        ("two lanes", "model.lanes.mode=two", "model.lanes.start=1"),
        (
            "split lanes",
            *("model.lanes.mode=two", "model.lanes.start=1", "model.lanes.init=split"),
            "model.lanes.output=mlp",
        ),
    )

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        lanes = model.lanes
        self.start, self.mean, self.two = lanes.start, lanes.output == "mean", lanes.mode == "two"
        if self.two:
            count, (own, other) = model.layers - lanes.start, _SPLIT if lanes.init == "split" else (1.0, 1.0)
            self.keep = nn.Parameter(torch.full((count, 2), _KEPT))
            self.shares = nn.Parameter(torch.tensor([[own, other], [other, own]]).repeat(count, 1, 1))

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.lanes.mode != "none"

    def begins(self, layer: int) -> bool:
        return layer >= self.start

    def enter(self, x: Tensor, lane: Tensor | None) -> Tensor | None:
        return x if self.two and lane is None else lane

    def read(self, mixed: Tensor, lane: Tensor | None) -> Tensor:
        return mixed if lane is None else lane

    def write(
        self, x: Tensor, lane: Tensor | None, mixed: Tensor, attended: Tensor, fed: Tensor, layer: int
    ) -> tuple[Tensor, Tensor | None]:
        if lane is None:
            return mixed + attended + fed, None
        keep = self.keep[layer - self.start].to(x.dtype)
        attention, mlp = self.shares[layer - self.start].to(x.dtype)
        first = keep[0] * x + attention[0] * attended + mlp[0] * fed
        return first, keep[1] * lane + attention[1] * attended + mlp[1] * fed

    def leave(self, x: Tensor, lane: Tensor | None) -> Tensor:
        if lane is None:
            return x
        return 0.5 * (x + lane) if self.mean else lane
