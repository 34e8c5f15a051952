"""What enters the residual stream besides the token embedding: bigrams, smear, value embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant, Matrix
from pgolf.recipe.sections import ModelSection


class BigramEmbedding(nn.Module):
    """A small hashed table indexed by (previous token, token), projected to the model width."""

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__()
        bigram = model.bigram
        self.hash, self.buckets = bigram.hash, bigram.buckets
        self.table = nn.Embedding(bigram.buckets, bigram.width)
        project = bigram.always_project or bigram.width != model.width
        self.project = Matrix(bigram.width, model.width, fake_quant) if project else None
        self.scale = nn.Parameter(torch.tensor(0.05)) if bigram.hash == "xor" else None

    def forward(self, tokens: Tensor, previous: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        """Embed tokens (B, T) int64 as (B, T, D); ``previous`` (B, 1) is the token before them, if there is
        one.

        Where ``starts`` (B, T) bool is true, a token is embedded as at position 0.
        """
        if previous is None:
            buckets = bigram_buckets(tokens, self.buckets, self.hash)
        else:
            buckets = bigram_buckets(torch.cat((previous, tokens), dim=1), self.buckets, self.hash)[:, 1:]
        if starts is not None:
            alone = bigram_buckets(tokens.reshape(-1, 1), self.buckets, self.hash).view_as(tokens)
            buckets = torch.where(starts, alone, buckets)
        x = self.table(buckets)
        if self.project is not None:
            x = self.project(x)
        return x if self.scale is None else x * self.scale.to(x.dtype)


def bigram_buckets(tokens: Tensor, buckets: int, hash_name: str) -> Tensor:
    """Bucket of each position's token pair, (B, T) int64 in [0, buckets).

    "xor" keeps the last bucket for position 0 and hashes the others into the rest; "additive" treats
    the missing token before position 0 as token 0.
    """
    if hash_name == "additive":
        return (F.pad(tokens[:, :-1], (1, 0)) * 1009 + tokens) % buckets
    hashed = torch.bitwise_xor(36313 * tokens[:, 1:], 27191 * tokens[:, :-1]) % (buckets - 1)
    return F.pad(hashed, (1, 0), value=buckets - 1)


class Smear(nn.Module):
    """Blend each position with the one before it: (1 - g) * x[t] + g * x[t-1], g per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, previous: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D); before them stands ``previous`` (B, 1, D), or zeros.

        Zeros also stand before each position where ``starts`` (B, T) bool is true.
        """
        gate = torch.sigmoid(self.gate.to(x.dtype))
        before = (
            F.pad(x[:, :-1], (0, 0, 1, 0)) if previous is None else torch.cat((previous, x[:, :-1]), dim=1)
        )
        if starts is not None:
            before = before.masked_fill(starts[..., None], 0)
        return (1 - gate) * x + gate * before


class ValueEmbedding(nn.Module):
    """One token table whose rows are added to the attention values of several layers."""

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__()
        section, kv_width = model.value_embedding, model.kv_heads * model.head_width
        self.slot = {layer: index for index, layer in enumerate(section.layers)}
        self.table = nn.Embedding(model.vocab_size, section.width)
        self.project = Matrix(section.width, kv_width, fake_quant) if section.width != kv_width else None
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.layer_scales = nn.Parameter(torch.ones(len(section.layers)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up tokens (B, T) as values (B, T, K * head width), shared by all layers."""
        x = self.table(tokens)
        if self.project is not None:
            x = self.project(x)
        return x * self.scale.to(x.dtype)

    def for_layer(self, shared: Tensor, layer: int) -> Tensor | None:
        """The shared values scaled for one layer, or None where the layer receives none."""
        if layer not in self.slot:
            return None
        return shared * self.layer_scales[self.slot[layer]].to(shared.dtype)
