"""Causal grouped-query attention with normalised queries and keys, and the parts that stand in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.attend import DocumentMask, causal_attention
from pgolf.model.cache import LayerCache
from pgolf.model.fast import norm_and_rotate
from pgolf.model.linear import FakeQuant, Matrix
from pgolf.model.parts import build_parts
from pgolf.model.section import ModelSection
from pgolf.model.slots import AttentionPart


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) over H query heads and K key/value heads.

    Queries and keys are RMS-normalised per head (Dehghani et al. 2023) and rotated; each query head has
    a learned gain. The parts are features that the recipe asks for in this core.
    """

    def __init__(self, model: ModelSection, fake_quant: FakeQuant, core: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = model.heads, model.kv_heads, model.head_width
        kv_width = model.kv_heads * model.head_width
        self.query = Matrix(model.width, model.width, fake_quant)
        self.key = Matrix(model.width, kv_width, fake_quant)
        self.value = Matrix(model.width, kv_width, fake_quant)
        self.output = Matrix(model.width, model.width, fake_quant)
        # From the normed input to the result, past the attention: for adapters (``evaluate/lora.py``).
        self.beside: Matrix | None = None
        self.query_gain = nn.Parameter(torch.full((model.heads,), model.qk_gain))
        self.parts = build_parts(AttentionPart, self, model, fake_quant, core)

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
            first_value: the first layer's values (B, T, K, head width), for parts; None in that layer.
            past: the keys and values of the positions before x, and how many there are; x is added to them.
            mask: keeps attention within documents, of the positions before x and of x; or None.
            last: how many of the last positions n the output is needed for; None for all. Not with ``past``.

        Returns:
            The output (B, n, D) and this layer's values before the parts (B, T, K, head width).
        """
        batch, length, width = x.shape
        here = slice(0 if last is None else length - last, length)
        count = here.stop - here.start
        q = self.query(x[:, here]).view(batch, count, self.heads, self.head_width)
        k = self.key(x).view(batch, length, self.kv_heads, self.head_width)
        v = self.value(x).view(batch, length, self.kv_heads, self.head_width)
        if extra_value is not None:
            # In the format of the values, which is that of the attention: a table may be float32.
            v = v + extra_value.view_as(v).to(v.dtype)
        own_value = v
        for part in self.parts:
            v = part.value(v, first_value, self)
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
        for part in self.parts:
            y = part.output(y, v[:, here], x[:, here])
        y = self.output(y.reshape(batch, count, width))
        return (y if self.beside is None else y + self.beside(x[:, here])), own_value


def _continued_attention(q: Tensor, k: Tensor, v: Tensor, mask: DocumentMask | None) -> Tensor:
    """Attention of the last n of T positions: q (B, n, H, W), keys and values (B, K, T, W) of all."""
    batch, count, heads, width = q.shape
    kv_heads, length = k.size(1), k.size(2)
    group = heads // kv_heads
    # The query heads of a group stand as positions of their key/value head: no kernel must know groups.
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
