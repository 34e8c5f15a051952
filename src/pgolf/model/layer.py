"""A layer of the model: its own vectors, and the core whose matrices it uses."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pgolf.model.attend import DocumentMask
from pgolf.model.attention import Attention
from pgolf.model.cache import LayerCache
from pgolf.model.fast import rms_norm, scaled_sum
from pgolf.model.linear import FakeQuant
from pgolf.model.mlp import Mlp
from pgolf.model.section import ModelSection
from pgolf.model.slots import LanePart


class Core(nn.Module):
    """The matrices of a layer, possibly shared by several layers."""

    def __init__(self, model: ModelSection, fake_quant: FakeQuant, index: int) -> None:
        super().__init__()
        self.attention = Attention(model, fake_quant, index)
        self.mlp = Mlp(model, fake_quant)


class Layer(nn.Module):
    """The vectors of a layer, and how it uses a core."""

    def __init__(self, model: ModelSection, index: int) -> None:
        super().__init__()
        self.index = index
        self.norm_scale = 1 / math.sqrt(index + 1) if model.norm_scale == "inverse_sqrt_depth" else 1.0
        self.residual_mix = nn.Parameter(torch.tensor([[1.0], [0.0]]).expand(2, model.width).contiguous())
        self.attention_scale = nn.Parameter(torch.ones(model.width))
        self.mlp_scale = nn.Parameter(torch.ones(model.width))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        core: Core,
        rotary: tuple[Tensor, Tensor],
        extra_value: Tensor | None,
        first_value: Tensor | None,
        past: tuple[LayerCache, int] | None = None,
        mask: DocumentMask | None = None,
        last: int | None = None,
        lanes: LanePart | None = None,
        lane: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The new stream (B, T, D), or its ``last`` positions; its second lane, where there is one; and the
        attention's values (B, T, K, W).
        """
        mixed = scaled_sum(x, self.residual_mix[0], x0, self.residual_mix[1])
        attended, value = core.attention(
            rms_norm(mixed, self.norm_scale), rotary, extra_value, first_value, past, mask, last
        )
        if last is not None:
            x, mixed = x[:, -last:], mixed[:, -last:]
            lane = None if lane is None else lane[:, -last:]
        if lanes is None:
            x = scaled_sum(mixed, None, attended, self.attention_scale)
            return scaled_sum(x, None, self.feed(x, core), self.mlp_scale), lane, value
        attended = attended * self.attention_scale.to(attended.dtype)
        fed = self.feed(lanes.read(mixed, lane), core) * self.mlp_scale.to(attended.dtype)
        x, lane = lanes.write(x, lane, mixed, attended, fed, self.index)
        return x, lane, value

    def feed(self, x: Tensor, core: Core) -> Tensor:
        """The MLP's output for what it reads (B, T, D)."""
        fed: Tensor = core.mlp(rms_norm(x, self.norm_scale))
        return fed
