"""Reading on from a cache: the next tokens of a window, and the short pass for one token at a time.

A single position costs next to no arithmetic; its time is that of starting some operations per layer. So
whatever depends on the weights alone is computed beforehand: projections that read the same input become one
matrix, factors of a layer's output are multiplied into its matrices. The result differs from the ordinary
pass by rounding only; tests/unit/test_cache.py compares the two for every feature. A part of attention
without a form for single positions (``AttentionPart.single``) has the model read them by the ordinary pass.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model.attention import Attention
from pgolf.model.cache import KvCache
from pgolf.model.gpt import GPT
from pgolf.model.layer import Core, Layer
from pgolf.model.slots import LanePart, Reading, SinglePart, added_values

# What F.rms_norm adds to the mean square.
_EPSILON = torch.tensor(torch.finfo(torch.float32).eps)


@torch.inference_mode()
def extend(network: GPT, tokens: Tensor, cache: KvCache) -> Tensor:
    """Read the next tokens of windows that ``cache`` holds the beginning of, without gradients.

    Args:
        network: the model; its weights must not change between the pieces of a window.
        tokens: (B, n) int64, n >= 1; with what the cache holds at most its length.
        cache: the positions read so far; n positions are added.

    Returns:
        Final hidden states (B, n, D): up to rounding those that ``hidden`` gives these positions of a full
        window.
    """
    if cache.step is None and tokens.size(1) == 1:
        cache.step = single_pass(network)
    if tokens.size(1) > 1 or cache.step is False:
        return network.hidden(tokens, cache=cache)
    hidden: Tensor = cache.step(tokens, cache)
    return hidden


def single_pass(network: GPT) -> Step | Literal[False]:
    """The short pass of a model; False in training, not in float32 on the CPU, with a document mask, where
    a part of its attention has no form for single positions, or with matrices beside attention or MLP.
    """
    device = network.token_embedding.weight.device
    if (
        device.type != "cpu"
        or network.training
        or torch.is_autocast_enabled("cpu")
        or network.config.document_mask
    ):
        return False
    layers, cores = cast("list[Layer]", list(network.layers)), cast("list[Core]", list(network.cores))
    steps = []
    for visit in network.schedule:
        attention = cores[visit.core].attention
        if attention.beside is not None or cores[visit.core].mlp.beside is not None:
            return False
        parts = [part.single(attention) for part in attention.parts]
        if None in parts:
            return False
        own = [part for part in parts if part is not None]
        lanes = network.lanes_of(visit.layer)
        steps.append(_LayerStep(layers[visit.layer], cores[visit.core], own, lanes))
    return Step(network, steps)


class Step:
    """The forward pass for one position, with a copy of the weights as they are now. Float32 on the CPU.

    Args:
        network: the model.
        layers: its layers, in the order of the schedule.
    """

    def __init__(self, network: GPT, layers: list[_LayerStep]) -> None:
        model = network.config
        self.network, self.layers = network, layers
        self.start_mix = torch.stack([layer.start_mix for layer in layers])[:, None]
        self.between = [part.single() for part in network.layer_parts]
        # A row times (identity * cosines + swap * signed sines) is the rotated row.
        width, half = model.head_width, (model.rope_dims or model.head_width) // 2
        self.identity = torch.eye(width)
        order = [*range(half, 2 * half), *range(half), *range(2 * half, width)]
        self.swap = self.identity[:, order]

    def __call__(self, tokens: Tensor, cache: KvCache) -> Tensor:
        """Read one token per sequence, (B, 1) int64; returns the final hidden states (B, 1, D)."""
        network, reading = self.network, Reading(tokens, cache)
        cosines, sines = cache.rotary(1)
        rotation = self._rotation(cosines[0], sines[0])
        embedded = network.token_embedding(tokens)
        for embed in network.embedding_parts:
            embedded = embed(embedded, reading)
        x = _norm(embedded[:, 0])[:, None]
        for stream in network.stream_parts:
            x = stream(x, reading)
        x = x[:, 0]
        starts = (self.start_mix * x).unbind()
        shared = [source(tokens)[:, 0] for source in network.value_sources]
        first: Tensor | None = None
        kept: list[list[Tensor]] = [[] for _ in self.between]
        lane: Tensor | None = None
        for place, (layer, visit) in enumerate(zip(self.layers, network.schedule, strict=True)):
            if layer.lanes is not None:
                lane = layer.lanes.enter(x, lane)
            for between, own in zip(self.between, kept, strict=True):
                x = between.before(x, own, network.schedule, place)
            extra = added_values(network.value_sources, shared, visit.layer)
            mixed = torch.addcmul(starts[place], x, layer.mix)
            x, lane, value = layer(x, lane, mixed, rotation, extra, first, cache, place)
            if place == 0:
                first = value
            for between, own in zip(self.between, kept, strict=True):
                between.after(x, own, network.schedule, place)
        cache.advance(1)
        x = _norm(network.merged(x, lane))[:, None]
        for refine in network.head_parts:
            x = refine(x)
        return x

    def _rotation(self, cosines: Tensor, sines: Tensor) -> Tensor:
        """The matrix (W, W) that rotates a row of one head to a position."""
        rest = self.identity.size(0) - 2 * cosines.size(0)
        scale = torch.cat((cosines, cosines, cosines.new_ones(rest)))
        return torch.addcmul(
            self.identity * scale, self.swap, torch.cat((sines, -sines, sines.new_zeros(rest)))
        )


class _LayerStep:
    """One layer with its core."""

    def __init__(self, layer: Layer, core: Core, parts: list[SinglePart], lanes: LanePart | None) -> None:
        attention, mlp, norm_scale = core.attention, core.mlp, layer.norm_scale
        self.heads, self.kv_heads, self.width = attention.heads, attention.kv_heads, attention.head_width
        self.parts, self.lanes, self.layer = parts, lanes, layer.index
        self.mix, self.start_mix = layer.residual_mix[0], layer.residual_mix[1]
        # All that reads the normed input, in one product: queries and keys, values, what the parts ask for.
        matrices = [torch.cat((attention.query.weight, attention.key.weight)), attention.value.weight]
        matrices += [part.weight for part in parts if part.weight is not None]
        biases = [part.bias for part in parts if part.weight is not None]
        self.sizes = [len(matrix) for matrix in matrices]
        self.read = (torch.cat(matrices) * norm_scale).t()
        self.bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            own = [
                matrix.new_zeros(len(matrix)) if bias is None else bias
                for matrix, bias in zip(matrices, [None, None, *biases], strict=True)
            ]
            self.bias = torch.cat(own)
        self.write = (attention.output.weight * layer.attention_scale[:, None]).t()
        self.gains = _gains(attention)
        # relu(s*u)^2 = s^2 * relu(u)^2 for a factor s > 0 on the input, so the factor can wait.
        square = norm_scale * norm_scale
        self.up, self.slope = mlp.up.weight.t(), mlp.slope
        self.activation: tuple[Tensor, Tensor] | None = None
        scale = layer.mlp_scale * square
        if mlp.scale is not None and mlp.bias is not None:
            self.activation, scale = (mlp.scale * square, mlp.bias), layer.mlp_scale
        self.down = (mlp.down.weight * scale[:, None]).t()

    def __call__(
        self,
        x: Tensor,
        lane: Tensor | None,
        mixed: Tensor,
        rotation: Tensor,
        extra_value: Tensor | None,
        first_value: Tensor | None,
        cache: KvCache,
        place: int,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """From stream, lane and mixed stream (B, D) to stream and lane after the layer, and to its own values
        (B, K * W).
        """
        batch, heads, kv_heads, width = mixed.size(0), self.heads, self.kv_heads, self.width
        group, rows = heads // kv_heads, heads + kv_heads
        normed = _norm(mixed)
        read = normed.mm(self.read) if self.bias is None else torch.addmm(self.bias, normed, self.read)
        both, value, *others = read.split_with_sizes(self.sizes, 1)
        qk = both.reshape(batch * rows, width)
        scale = _inverse_rms(qk).mul_(self.gains if batch == 1 else self.gains.repeat(batch, 1))
        query, key = (qk * scale).mm(rotation).view(batch, rows, width).split_with_sizes((heads, kv_heads), 1)
        own_value = value = value if extra_value is None else value + extra_value
        for part in self.parts:
            value = part.value(value, first_value)
        value = value.reshape(batch * kv_heads, 1, width)
        keys, values = cache.layers[place].append(key, value.view(batch, kv_heads, width), cache.used)
        query = query.reshape(batch * kv_heads, group, width)
        y = torch.softmax(torch.bmm(query, keys.transpose(1, 2)), dim=-1).bmm(values)
        for part in self.parts:
            y = part.output(y, value, None if part.weight is None else others.pop(0))
        y = y.view(batch, heads * width)
        if self.lanes is None:
            x = torch.addmm(mixed, y, self.write)
            return torch.addmm(x, self._hidden(x), self.down), lane, own_value
        attended, fed = y.mm(self.write), self._hidden(self.lanes.read(mixed, lane)).mm(self.down)
        x, lane = self.lanes.write(x, lane, mixed, attended, fed, self.layer)
        return x, lane, own_value

    def _hidden(self, x: Tensor) -> Tensor:
        """The MLP's activations (B, hidden width) for what it reads."""
        hidden = F.leaky_relu(_norm(x).mm(self.up), self.slope).square_()
        if self.activation is None:
            return hidden
        return torch.addcmul(self.activation[1], hidden, self.activation[0])


def _gains(attention: Attention) -> Tensor:
    """Factors (H + K, 1) of normed query and key rows; the queries' include attention's 1/sqrt(W)."""
    gains = attention.query_gain / math.sqrt(attention.head_width)
    return torch.cat((gains, gains.new_ones(attention.kv_heads)))[:, None]


def _inverse_rms(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_EPSILON, norm, norm, value=1 / x.size(-1)).rsqrt_()


def _norm(x: Tensor) -> Tensor:
    """RMS norm of rows (n, D), in four operations instead of the framework's dozen."""
    return x * _inverse_rms(x)
