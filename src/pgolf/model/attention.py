"""Causal grouped-query attention with normalised queries and keys, and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant, Matrix
from pgolf.model.rope import rotate
from pgolf.recipe import ModelSection

if TYPE_CHECKING:
    from pgolf.model.cache import LayerCache


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) over H query heads and K key/value heads.

    Queries and keys are RMS-normalised per head (Dehghani et al. 2023) and rotated; each query head has
    a learned gain. Options, each off unless the recipe asks for it: exclusive self-attention, value
    residual, output gate.
    """

    def __init__(self, model: ModelSection, fake_quant: FakeQuant, exclusive: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = model.heads, model.kv_heads, model.head_width
        kv_width = model.kv_heads * model.head_width
        self.query = Matrix(model.width, model.width, fake_quant)
        self.key = Matrix(model.width, kv_width, fake_quant)
        self.value = Matrix(model.width, kv_width, fake_quant)
        self.output = Matrix(model.width, model.width, fake_quant)
        self.query_gain = nn.Parameter(torch.full((model.heads,), model.qk_gain))
        self.exclusive = exclusive
        self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5])) if model.value_residual else None
        self.gate = nn.Linear(model.width, model.heads) if model.gated_attention else None

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        extra_value: Tensor | None,
        first_value: Tensor | None,
        past: tuple[LayerCache, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend within each sequence.

        Args:
            x: normed input (B, T, D).
            rotary: cosines and sines (T, rotated / 2).
            extra_value: added to the values (B, T, K * head width), or None.
            first_value: the first layer's values (B, T, K, head width) to mix in, or None.
            past: the keys and values of the positions before x, and how many there are; x is added to them.

        Returns:
            The output (B, T, D) and this layer's values before mixing (B, T, K, head width).
        """
        batch, length, width = x.shape
        q = self.query(x).view(batch, length, self.heads, self.head_width)
        k = self.key(x).view(batch, length, self.kv_heads, self.head_width)
        v = self.value(x).view(batch, length, self.kv_heads, self.head_width)
        if extra_value is not None:
            v = v + extra_value.view_as(v)
        own_value = v
        if self.value_mix is not None and first_value is not None:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * first_value + mix[1] * v
        q = rotate(F.rms_norm(q, (self.head_width,)), *rotary)
        k = rotate(F.rms_norm(k, (self.head_width,)), *rotary)
        q = q * self.query_gain.to(q.dtype)[:, None]
        y = _causal_attention(q, k, v) if past is None else _continued_attention(q, *past[0].write(k, v, past[1]))
        if self.exclusive:
            y = remove_own_value(y, v)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(x)).to(y.dtype)[..., None]
        return self.output(y.reshape(batch, length, width)), own_value


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # Rotary tables and gains are float32; under autocast this brings q and k back to the values' type.
    q, k = q.to(v.dtype), k.to(v.dtype)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1))
    return y.transpose(1, 2)


def _continued_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last n positions: q (B, n, H, W), keys and values (B, K, T, W) of all T positions up to them."""
    batch, count, heads, width = q.shape
    kv_heads, length = k.size(1), k.size(2)
    if count == 1:
        # Every position is visible, so the query heads of a group may stand as positions of their key/value head.
        y = F.scaled_dot_product_attention(q.to(v.dtype).view(batch, kv_heads, heads // kv_heads, width), k, v)
        return y.reshape(batch, 1, heads, width)
    visible = torch.ones(count, length, dtype=torch.bool, device=q.device).tril(length - count)
    q = q.to(v.dtype).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=heads != kv_heads).transpose(1, 2)


def remove_own_value(y: Tensor, v: Tensor) -> Tensor:
    """Exclusive self-attention: take out of each head's output what points along its own value.

    y (B, T, H, W) are the heads' outputs, v (B, T, K, W) the values of the same positions; query heads
    of one group share a value head. Returns y minus its projection on the unit vector of v.
    """
    batch, length, heads, width = y.shape
    grouped = y.view(batch, length, v.size(2), heads // v.size(2), width)
    direction = F.normalize(v, dim=-1).unsqueeze(3)
    along = (grouped * direction).sum(dim=-1, keepdim=True)
    return (grouped - along * direction).view_as(y)
