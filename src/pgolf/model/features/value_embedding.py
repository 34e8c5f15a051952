"""Value embedding: what a token is, added to the attention values of some layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant, Matrix
from pgolf.model.section import ModelSection
from pgolf.model.slots import ValueSource, orthogonal


class ValueEmbedding(ValueSource):
    """One token table whose rows are added to the attention values of several layers."""

    name = "value_embedding"
    examples = (
        ("value embedding", "model.value_embedding.layers=[1]", "model.value_embedding.width=8"),
        ("unprojected values", "model.value_embedding.layers=[0,2]", "model.value_embedding.width=16"),
    )

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        section, kv_width = model.value_embedding, model.kv_heads * model.head_width
        self.slot = {layer: index for index, layer in enumerate(section.layers)}
        self.table = nn.Embedding(model.vocab_size, section.width)
        self.project = Matrix(section.width, kv_width, fake_quant) if section.width != kv_width else None
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.layer_scales = nn.Parameter(torch.ones(len(section.layers)))

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return bool(model.value_embedding.layers)

    def initialise(self, model: ModelSection) -> None:
        nn.init.normal_(self.table.weight, std=0.01)
        if self.project is None:
            return
        if orthogonal(self.project.weight):
            self.project.weight.div_(math.sqrt(2 * model.layers))
        else:
            nn.init.zeros_(self.project.weight)

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
