"""Bigram embedding: a small hashed table of (previous token, token) pairs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant, Matrix
from pgolf.model.section import ModelSection
from pgolf.model.slots import EmbeddingPart, Reading, orthogonal


class Bigram(EmbeddingPart):
    """A table indexed by (previous token, token), projected to the model width."""

    name = "bigram"
    examples = (
        ("bigram", "model.bigram.buckets=32", "model.bigram.width=16"),
        ("additive bigram", "model.bigram.buckets=32", "model.bigram.width=16", "model.bigram.hash=additive"),
    )

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        bigram = model.bigram
        self.hash, self.buckets = bigram.hash, bigram.buckets
        self.table = nn.Embedding(bigram.buckets, bigram.width)
        project = bigram.always_project or bigram.width != model.width
        self.project = Matrix(bigram.width, model.width, fake_quant) if project else None
        self.scale = nn.Parameter(torch.tensor(0.05)) if bigram.hash == "xor" else None

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return bool(model.bigram.buckets)

    def initialise(self, model: ModelSection) -> None:
        additive = self.hash == "additive"
        nn.init.normal_(self.table.weight, std=0.01 if additive else 0.0)
        if self.project is None:
            return
        if orthogonal(self.project.weight):
            self.project.weight.div_(math.sqrt(2 * model.layers))
        elif additive:
            # A table that starts at zero needs a projection that does not: else neither ever gets a gradient.
            nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor, reading: Reading) -> Tensor:
        tokens, previous = reading.tokens, reading.before(self, reading.tokens)
        if previous is None:
            buckets = bigram_buckets(tokens, self.buckets, self.hash)
        else:
            buckets = bigram_buckets(torch.cat((previous, tokens), dim=1), self.buckets, self.hash)[:, 1:]
        if reading.starts is not None:  # Embedded as at position 0.
            alone = bigram_buckets(tokens.reshape(-1, 1), self.buckets, self.hash).view_as(tokens)
            buckets = torch.where(reading.starts, alone, buckets)
        pairs = self.table(buckets)
        if self.project is not None:
            pairs = self.project(pairs)
        return x + (pairs if self.scale is None else pairs * self.scale.to(pairs.dtype))


def bigram_buckets(tokens: Tensor, buckets: int, hash_name: str) -> Tensor:
    """Bucket of each position's token pair, (B, T) int64 in [0, buckets).

    "xor" keeps the last bucket for position 0 and hashes the others into the rest; "additive" treats
    the missing token before position 0 as token 0.
    """
    if hash_name == "additive":
        return (F.pad(tokens[:, :-1], (1, 0)) * 1009 + tokens) % buckets
    hashed = torch.bitwise_xor(36313 * tokens[:, 1:], 27191 * tokens[:, :-1]) % (buckets - 1)
    return F.pad(hashed, (1, 0), value=buckets - 1)
