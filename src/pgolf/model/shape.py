"""The keys of the model that every part of it may need, and the order of its layers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pydantic

from pgolf.runtime.section import Section


class Shape(Section):
    """Sizes of the model, and what its core is made of."""

    vocab_size: int = pydantic.Field(1024, ge=4, le=65536)
    """Pieces of the tokenizer."""
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


def schedule(shape: Shape) -> tuple[Visit, ...]:
    """The layers in the order in which the stream passes through them, each with the core it uses.

    Everything that depends on this order reads it from here: the forward pass, the cache (one entry per
    visit), the pass for single tokens, FLOPs, and which cores the first layers of test-time training freeze.
    """
    return tuple(Visit(layer, layer % shape.cores, layer // shape.cores) for layer in range(shape.layers))
