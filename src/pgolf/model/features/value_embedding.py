"""Value embedding: what a token is, added to the attention values of some layers."""

from __future__ import annotations

import math

import pydantic
import torch
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant, Matrix
from pgolf.model.shape import Shape
from pgolf.model.slots import Row, ValueSource, orthogonal
from pgolf.runtime.section import Section


class ValueEmbeddingSection(Section):
    """Token identity added to the attention values of some layers."""

    layers: tuple[int, ...] = ()
    """0-based layers that receive it; empty leaves it out."""
    width: int = pydantic.Field(128, ge=1)
    """Columns of the shared table, projected to the width of the values where they differ."""


class ValueEmbeddingKeys(Shape):
    """Keys of the value embedding."""

    value_embedding: ValueEmbeddingSection = ValueEmbeddingSection()


class ValueEmbedding(ValueSource):
    """One token table whose rows are added to the attention values of several layers."""

    name = "value_embedding"
    rows = (
        Row(r"value_embedding\.(table|project)\.weight", "scalar", "other", exact=True),
        Row(r"value_embedding\.(scale|layer_scales)", "scalar", "control"),
    )
    examples = (
        ("value embedding", "model.value_embedding.layers=[1]", "model.value_embedding.width=8"),
        ("unprojected values", "model.value_embedding.layers=[0,2]", "model.value_embedding.width=16"),
    )
    largest = (("value_embedding.width", 1 << 20),)

    def __init__(self, model: ValueEmbeddingKeys, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        section, kv_width = model.value_embedding, model.kv_heads * model.head_width
        self.slot = {layer: index for index, layer in enumerate(section.layers)}
        self.table = nn.Embedding(model.vocab_size, section.width)
        self.project = Matrix(section.width, kv_width, fake_quant) if section.width != kv_width else None
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.layer_scales = nn.Parameter(torch.ones(len(section.layers)))

    @staticmethod
    def wanted(model: ValueEmbeddingKeys, core: int = 0) -> bool:
        return bool(model.value_embedding.layers)

    @staticmethod
    def problems(model: ValueEmbeddingKeys) -> list[str]:
        layers, problems = model.value_embedding.layers, []
        if outside := [layer for layer in layers if not 0 <= layer < model.layers]:
            problems.append(f"model.value_embedding.layers {outside} are outside 0 to {model.layers - 1}")
        if len(set(layers)) != len(layers):
            problems.append("model.value_embedding.layers names a layer twice")
        return problems

    def initialise(self, model: ValueEmbeddingKeys) -> None:
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
