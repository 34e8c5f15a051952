"""The slots of the model: where a feature can stand, what it is given there, and what it says about itself.

    tokens ── token embedding ─┬─ norm ── stream ──► x ──► layers ──► norm ── head ──► hidden states
                               │                           │    ▲
    EmbeddingPart ─────────────┘    StreamPart   LayerPart ┘    │      HeadPart
                                      LanePart (how they write) ┤
    (changes the embedding)                                     │
                       in each layer's attention:  ValueSource (adds to the values)
                                                   AttentionPart (values, then the heads' outputs)

A feature is one file in ``features/``: a class derived from one below, which has the module, its cost, and
settings that turn it on in the tests. ``parts.py`` lists them. Keys, checks and the groups of parameters, for
which nobody needs torch, are in ``section.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pgolf.model.cache import KvCache
from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.shape import Visit

# Smaller matrices keep the framework's initial values: orthogonal ones would be too special.
_ORTHOGONAL_FROM = 64


class Reading:
    """A forward pass over tokens (B, T): alone, or after those that a cache has read.

    Args:
        tokens: int64 (B, T).
        cache: what was read before, or None.
        starts: true where a document begins that must not see what is before it, bool (B, T); or None.
    """

    def __init__(self, tokens: Tensor, cache: KvCache | None = None, starts: Tensor | None = None) -> None:
        self.tokens, self.cache, self.starts = tokens, cache, starts

    def shifted(self, part: Part, x: Tensor) -> Tensor:
        """What a part was given one position earlier, (B, T, D); zeros where nothing may be seen."""
        earlier = self.before(part, x)
        if earlier is None:
            moved = nn.functional.pad(x[:, :-1], (0, 0, 1, 0))
        else:
            moved = torch.cat((earlier, x[:, :-1]), dim=1)
        return moved if self.starts is None else moved.masked_fill(self.starts[..., None], 0)

    def before(self, part: Part, now: Tensor) -> Tensor | None:
        """What a part was given at the position before the first one, (B, 1, ...); None where there is none.

        Of ``now``, what it is given here (B, T, ...), the last position is kept for the tokens that come
        next.
        """
        if self.cache is None:
            return None
        earlier = self.cache.remembered.get(part.name)
        self.cache.remembered[part.name] = now[:, -1:]
        return earlier


class Part(nn.Module):
    """A feature of the model."""

    name: ClassVar[str]
    """Attribute of the model, or of each attention, that it becomes; so its parameters' names begin."""
    examples: ClassVar[tuple[tuple[str, ...], ...]]
    """For the tests: a case's name, and the settings that turn it on in a model of three layers of width 32.
    """

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__()

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        """Whether the model's section asks for it; of attention: in this core."""
        raise NotImplementedError

    def initialise(self, model: ModelSection) -> None:
        """Set initial weights that are neither the constructor's constants nor the framework's default."""

    def flops(self) -> int:
        """Operations per token: those of its matrix products, by default."""
        return _own_flops(self)

    def attach(self, owner: nn.Module) -> None:
        """Hang it, with its parameters, on the model or the attention that it belongs to."""
        owner.add_module(self.name, self)


class EmbeddingPart(Part):
    """Changes the token embedding, before the first norm."""

    def forward(self, x: Tensor, reading: Reading) -> Tensor:
        """From (B, T, D) to (B, T, D)."""
        raise NotImplementedError


class StreamPart(Part):
    """Changes what enters the residual stream, after the first norm."""

    def forward(self, x: Tensor, reading: Reading) -> Tensor:
        """From (B, T, D) to (B, T, D)."""
        raise NotImplementedError


class ValueSource(Part):
    """Adds to the values of some layers what depends on the tokens alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        """What the layers share, of tokens (B, T)."""
        raise NotImplementedError

    def for_layer(self, shared: Tensor, layer: int) -> Tensor | None:
        """What to add to a layer's values, (B, T, K * head width); None for nothing."""
        raise NotImplementedError


class AttentionPart(Part):
    """Changes the values or the heads' outputs of every attention that it stands in."""

    def value(self, v: Tensor, first: Tensor | None, attention: Any) -> Tensor:
        """From this layer's values (B, T, K, W) to those that are attended to.

        Args:
            v: values.
            first: those of the first layer, before this; None in that layer itself.
            attention: what it was attached to.
        """
        return v

    def output(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """From the heads' outputs (B, n, H, W) to those that go on.

        Args:
            y: outputs.
            v: values of the same positions, as attended to (B, n, K, W).
            x: the layer's normed input (B, n, D).
        """
        return y

    def single(self, attention: Any) -> SinglePart | None:
        """The same for single positions (``step.py``), with the weights of now; None: it cannot."""
        return None


class SinglePart:
    """An attention part for a single position.

    Args:
        weight: rows (n, D) of a matrix that it applies to the layer's normed input; they are multiplied with
            the projections' in one product.
        bias: (n,), added to the result.
    """

    def __init__(self, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def value(self, v: Tensor, first: Tensor | None) -> Tensor:
        """As ``AttentionPart.value``, for (B, K * W)."""
        return v

    def output(self, y: Tensor, v: Tensor, read: Tensor | None) -> Tensor:
        """``AttentionPart.output``: y (B * K, H / K, W), v (B * K, 1, W), the product ``read`` (B, n)."""
        return y


class LanePart(Part):
    """Has attention and MLP of some layers read and write side by side, not one after the other.

    The stream may have a second lane there; embeddings, skips and whatever else stands between the layers
    know the first one. All that it is given may be whole windows (B, T, D) or single positions (B, D).
    """

    def begins(self, layer: int) -> bool:
        """Whether this layer is one of them."""
        raise NotImplementedError

    def enter(self, x: Tensor, lane: Tensor | None) -> Tensor | None:
        """The second lane before such a layer, from the stream and the lane as it was, if it was there."""
        return lane

    def read(self, mixed: Tensor, lane: Tensor | None) -> Tensor:
        """What the MLP reads; attention reads ``mixed``, the stream mixed with its beginning."""
        return mixed

    def write(
        self, x: Tensor, lane: Tensor | None, mixed: Tensor, attended: Tensor, fed: Tensor, layer: int
    ) -> tuple[Tensor, Tensor | None]:
        """Stream and lane after the layer; ``attended`` and ``fed`` are the scaled outputs of both."""
        raise NotImplementedError

    def leave(self, x: Tensor, lane: Tensor | None) -> Tensor:
        """The stream behind the last layer."""
        return x


class LayerPart(Part):
    """Stands between the layers, in the residual stream."""

    def before(self, x: Tensor, kept: list[Tensor], order: Sequence[Visit], place: int) -> Tensor:
        """The stream (..., D) as the layer ``order[place]`` gets it; ``kept`` is this pass's own list.

        Training may pass through fewer layers than ``schedule`` has, so the order of this pass is given.
        """
        return x

    def after(self, x: Tensor, kept: list[Tensor], order: Sequence[Visit], place: int) -> None:
        """Is told the stream after that layer."""

    def single(self) -> Any:
        """An object with the same two methods for a single position (B, D), with the weights of now."""
        return self


class HeadPart(Part):
    """Changes the final hidden states, after the last norm."""

    def forward(self, x: Tensor) -> Tensor:
        """From (B, T, D) to (B, T, D)."""
        raise NotImplementedError


class CapPart(Part):
    """Learns the softcap of the logits."""

    def forward(self) -> Tensor:
        """Caps of positive and of negative logits, (2,)."""
        raise NotImplementedError


def added_values(sources: Sequence[ValueSource], shared: Sequence[Tensor], layer: int) -> Tensor | None:
    """What all sources add to a layer's values; None for nothing.

    Args:
        sources: of the model.
        shared: what each of them returned for the tokens.
        layer: the layer.
    """
    total: Tensor | None = None
    for source, values in zip(sources, shared, strict=True):
        if (added := source.for_layer(values, layer)) is not None:
            total = added if total is None else total + added
    return total


def product_flops(module: nn.Module) -> int:
    """Operations per token of a module's matrix products, a multiplication and an addition being two."""
    return module.flops() if isinstance(module, Part) else _own_flops(module)


def _own_flops(module: nn.Module) -> int:
    own = 2 * module.weight.numel() if isinstance(module, nn.Linear) else 0
    return own + sum(product_flops(child) for child in module.children())


def orthogonal(weight: Tensor) -> bool:
    """Make a matrix orthogonal if both of its sides are at least 64; tells whether it is."""
    large = min(weight.shape) >= _ORTHOGONAL_FROM
    if large:
        nn.init.orthogonal_(weight)
    return large
