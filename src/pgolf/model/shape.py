"""The keys of the model that every part of it may need, and the order of its layers."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

import pydantic

from pgolf.runtime.section import Section


class LoopSection(Section):
    """Layers that the stream passes through several times with the same weights (depth recurrence)."""

    first: int = 0
    """First layer of the loop, 0-based."""
    last: int = 0
    """Last layer of the loop."""
    passes: int = 1
    """Passes through these layers, at least 1; every evaluation makes all of them. 1 is no loop."""
    start_fraction: float = 0.0
    """Part of training (0 to 1) with one pass only, before the loop begins."""
    curriculum: tuple[int, ...] = ()
    """Passes in equal shares of the training after that, ending at passes; empty: all of them at once."""
    pass_vectors: bool = False
    """Add a learned vector of its own to the stream at the beginning of each pass."""

    def stages(self) -> tuple[tuple[float, int], ...]:
        """From which part of training on (0 to 1) how many passes are made, in order."""
        counts = self.curriculum or (self.passes,)
        share = (1 - self.start_fraction) / len(counts)
        plain = ((0.0, 1),) if self.start_fraction else ()
        return (*plain, *((self.start_fraction + index * share, n) for index, n in enumerate(counts)))

    def passes_at(self, progress: float) -> int:
        """How many passes training makes when this part of it (0 to 1) is done."""
        return [passes for begin, passes in self.stages() if begin <= progress][-1]


class Shape(Section):
    """Sizes of the model, and what its core is made of."""

    vocab_size: int = pydantic.Field(1024, ge=4, le=65536)
    """Pieces of the tokenizer."""
    bos: int = pydantic.Field(1, ge=0, le=65535)
    """The token that begins every document; 1 in the field's tokenizers and in those that pgolf trains."""
    layers: int = pydantic.Field(11, ge=1)
    """Depth in transformer layers."""
    unique_layers: int = pydantic.Field(0, ge=0)
    """Distinct attention and MLP cores, reused cyclically over the layers; 0 means one per layer."""
    width: int = pydantic.Field(512, ge=1)
    """Width of the residual stream."""
    heads: int = pydantic.Field(8, ge=1)
    """Query heads."""
    kv_heads: int = pydantic.Field(4, ge=1)
    """Key and value heads; each serves heads / kv_heads query heads."""
    mlp_hidden: int = pydantic.Field(1536, ge=1)
    """Hidden width of the MLP."""
    mlp: Literal["relu2", "star_relu", "leaky_relu2"] = "relu2"
    """Activation: relu(x)^2; relu(x)^2 * scale + bias with learned vectors; leaky_relu(x, mlp_slope)^2."""
    mlp_slope: float = pydantic.Field(0.5, ge=0, le=1)
    """Slope of "leaky_relu2" below zero."""
    rope_dims: int = pydantic.Field(0, ge=0)
    """Rotated dimensions of each head; 0 rotates all of them."""
    rope_base: float = pydantic.Field(10000.0, gt=1)
    """Base of the rotary frequencies."""
    rope_train_length: int = pydantic.Field(0, ge=0)
    """Longer sequences than this (in tokens) get an NTK-rescaled base; 0 never rescales."""
    norm_scale: Literal["one", "inverse_sqrt_depth"] = "one"
    """Factor on the normed input of layer i: 1, or 1/sqrt(i + 1)."""

    loop: LoopSection = LoopSection()

    def problems(self) -> list[str]:
        """What is wrong with the features' keys though each is well-typed, a phrase each."""
        return []

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def cores(self) -> int:
        """Number of distinct attention and MLP cores."""
        return self.unique_layers or self.layers


class Visit(NamedTuple):
    """One entry in the order of layers."""

    layer: int
    """Whose vectors."""
    core: int
    """Whose attention and MLP matrices."""
    round: int
    """How often this core was used before."""


def schedule(shape: Shape, passes: int | None = None) -> tuple[Visit, ...]:
    """The layers in the order in which the stream passes through them, each with the core it uses.

    Everything that depends on this order reads it from here: the forward pass, the cache (one entry per
    visit), the pass for single tokens, skips, FLOPs and estimates.

    Args:
        shape: the model's.
        passes: through the loop; by default all of them.
    """
    loop = shape.loop
    inside = range(loop.first, loop.last + 1)
    looped = [*inside] * (loop.passes if passes is None else passes)
    used: Counter[int] = Counter()
    visits = []
    for layer in (*range(loop.first), *looped, *range(loop.last + 1, shape.layers)):
        core = layer % shape.cores
        visits.append(Visit(layer, core, used[core]))
        used[core] += 1
    return tuple(visits)
