"""Causal grouped-query attention with normalised queries and keys, and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.attend import DocumentMask, causal_attention
from pgolf.model.fast import norm_and_rotate, remove_own_value
from pgolf.model.linear import FakeQuant, Matrix
from pgolf.recipe.sections import ModelSection

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
        mask: DocumentMask | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend within each sequence.

        Args:
            x: normed input (B, T, D).
            rotary: cosines and sines (T, rotated / 2).
            extra_value: added to the values (B, T, K * head width), or None.
            first_value: the first layer's values (B, T, K, head width) to mix in, or None.
            past: the keys and values of the positions before x, and how many there are; x is added to them.
            mask: keeps attention within documents, of the positions before x and of x; or None.
            last: how many of the last positions n the output is needed for; None for all. Not with ``past``.

        Returns:
            The output (B, n, D) and this layer's values before mixing (B, T, K, head width).
        """
        batch, length, width = x.shape
        here = slice(0 if last is None else length - last, length)
        count = here.stop - here.start
        q = self.query(x[:, here]).view(batch, count, self.heads, self.head_width)
        k = self.key(x).view(batch, length, self.kv_heads, self.head_width)
        v = self.value(x).view(batch, length, self.kv_heads, self.head_width)
        if extra_value is not None:
            v = v + extra_value.view_as(v)
        own_value = v
        if self.value_mix is not None and first_value is not None:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * first_value + mix[1] * v
        cosines, sines = rotary
        own = rotary if count == length else (cosines[here], sines[here])
        q = norm_and_rotate(q, *own, self.query_gain)
        k = norm_and_rotate(k, cosines, sines)
        if past is not None:
            y = _continued_attention(q, *past[0].write(k, v, past[1]), mask)
        elif count < length:
            y = _continued_attention(q, k.to(v.dtype).transpose(1, 2), v.transpose(1, 2), mask)
        else:
            y = causal_attention(q, k, v, mask)
        if self.exclusive:
            y = remove_own_value(y, v[:, here])
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(x[:, here])).to(y.dtype)[..., None]
        return self.output(y.reshape(batch, count, width)), own_value


def _continued_attention(q: Tensor, k: Tensor, v: Tensor, mask: DocumentMask | None) -> Tensor:
    """Attention of the last n positions: q (B, n, H, W), keys and values (B, K, T, W) of all T positions up
    to them.
    """
    batch, count, heads, width = q.shape
    kv_heads, length = k.size(1), k.size(2)
    group = heads // kv_heads
    # The query heads of a group stand as positions of their key/value head, so that no kernel must know about
    # groups.
    q = q.to(v.dtype).view(batch, count, kv_heads, group * width).transpose(1, 2)
    visible = None
    if mask is not None:
        visible = mask.dense(count).repeat_interleave(group, dim=2)
    elif count > 1:
        rows = torch.arange(length - count, length, device=q.device).repeat_interleave(group)
        visible = torch.arange(length, device=q.device) <= rows[:, None]
    y = F.scaled_dot_product_attention(
        q.reshape(batch, kv_heads, count * group, width), k, v, attn_mask=visible
    )
    return y.view(batch, kv_heads, count, group * width).transpose(1, 2).reshape(batch, count, heads, width)
