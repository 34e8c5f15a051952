"""One token at a time: the forward pass of ``gpt.py`` for a single position, in as few operations as
possible.

A single position costs next to no arithmetic; its time is that of starting some operations per layer. So
whatever depends on the weights alone is computed beforehand: projections that read the same input become one
matrix, factors of a layer's output are multiplied into its matrices. The result differs from the ordinary
pass by rounding only; tests/unit/test_cache.py compares the two for every option of the model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model.cache import KvCache

if TYPE_CHECKING:
    from pgolf.model.attention import Attention
    from pgolf.model.gpt import GPT, Core, Layer

# What F.rms_norm adds to the mean square, and F.normalize's smallest divisor.
_EPSILON = torch.tensor(torch.finfo(torch.float32).eps)
_SMALLEST_NORM = 1e-12


def steps_singly(network: GPT) -> bool:
    """Whether single tokens can take the short pass: not in training, in float32 on the CPU, without document
    mask.
    """
    device = network.token_embedding.weight.device
    if network.config.document_mask:
        return False
    return device.type == "cpu" and not network.training and not torch.is_autocast_enabled("cpu")


class Step:
    """The forward pass for one position, with a copy of the weights as they are now. Float32 on the CPU.

    Args:
        network: the model.
    """

    def __init__(self, network: GPT) -> None:
        model = network.config
        self.network, self.model = network, model
        layers = cast("list[Layer]", list(network.layers))
        cores = cast("list[Core]", list(network.cores))
        self.layers = [_LayerStep(layer, cores[index % len(cores)]) for index, layer in enumerate(layers)]
        self.start_mix = torch.stack([layer.residual_mix[1] for layer in layers])[:, None]
        self.smear = None if network.smear is None else torch.sigmoid(network.smear.gate)
        self.skip_gates: list[Tensor] | None = None
        self.skip_weights: list[Tensor] = []
        if network.skips is not None:
            weights: Tensor = network.skips.weight
            if network.skips.gate is not None:
                gate = torch.sigmoid(network.skips.gate)
                self.skip_gates, weights = list(gate.unbind()), (1 - gate) * weights
            self.skip_weights = list(weights.unbind())
        # A row times (identity * cosines + swap * signed sines) is the rotated row.
        width, half = model.head_width, (model.rope_dims or model.head_width) // 2
        self.identity = torch.eye(width)
        order = [*range(half, 2 * half), *range(half), *range(2 * half, width)]
        self.swap = self.identity[:, order]

    def __call__(self, tokens: Tensor, cache: KvCache) -> Tensor:
        """Read one token per sequence, (B, 1) int64; returns the final hidden states (B, 1, D)."""
        network = self.network
        cosines, sines = cache.rotary(1)
        rotation = self._rotation(cosines[0], sines[0])
        embedded = network.token_embedding(tokens)
        if network.bigram is not None:
            embedded = embedded + network.bigram(tokens, cache.last_token)
        embedded = x = _norm(embedded[:, 0])
        if self.smear is not None:
            before = torch.zeros_like(x) if cache.last_embedded is None else cache.last_embedded[:, 0]
            x = torch.lerp(x, before, self.smear)
        starts = (self.start_mix * x).unbind()
        extra = self._extra_values(tokens)
        first: Tensor | None = None
        early: list[Tensor] = []
        half = len(self.layers) // 2
        for index, layer in enumerate(self.layers):
            if index >= half and early and self.skip_weights:
                slot = index - half
                kept = x if self.skip_gates is None else x * self.skip_gates[slot]
                x = torch.addcmul(kept, early.pop(), self.skip_weights[slot])
            x, value = layer(
                torch.addcmul(starts[index], x, layer.mix), rotation, extra[index], first, cache, index
            )
            if index == 0 and self.model.value_residual:
                first = value
            if index < half:
                early.append(x)
        cache.advance(tokens, embedded[:, None])
        x = _norm(x)[:, None]
        return x if network.refiner is None else network.refiner(x)

    def _rotation(self, cosines: Tensor, sines: Tensor) -> Tensor:
        """The matrix (W, W) that rotates a row of one head to a position."""
        rest = self.identity.size(0) - 2 * cosines.size(0)
        scale = torch.cat((cosines, cosines, cosines.new_ones(rest)))
        return torch.addcmul(
            self.identity * scale, self.swap, torch.cat((sines, -sines, sines.new_zeros(rest)))
        )

    def _extra_values(self, tokens: Tensor) -> list[Tensor | None]:
        """What value embeddings add to each layer's values, (B, K * W)."""
        embedding = self.network.value_embedding
        if embedding is None:
            return [None] * len(self.layers)
        shared = embedding(tokens)[:, 0]
        return [embedding.for_layer(shared, index) for index in range(len(self.layers))]


class _LayerStep:
    """One layer with its core."""

    def __init__(self, layer: Layer, core: Core) -> None:
        attention, mlp, norm_scale = core.attention, core.mlp, layer.norm_scale
        self.heads, self.kv_heads, self.width = attention.heads, attention.kv_heads, attention.head_width
        self.exclusive, self.gated = attention.exclusive, attention.gate is not None
        self.mix = layer.residual_mix[0]
        matrices = [attention.query.weight, attention.key.weight, attention.value.weight]
        self.bias: Tensor | None = None
        if attention.gate is not None:
            matrices.append(attention.gate.weight)
            self.bias = F.pad(attention.gate.bias, (sum(map(len, matrices[:3])), 0))
        self.sizes = [sum(map(len, matrices[:2])), *map(len, matrices[2:])]
        self.read = (torch.cat(matrices) * norm_scale).t()
        self.write = (attention.output.weight * layer.attention_scale[:, None]).t()
        self.gains = _gains(attention)
        self.value_mix: tuple[float, float] | None = None
        if attention.value_mix is not None:
            own, mixed = attention.value_mix.tolist()
            self.value_mix = own, mixed
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
        rotation: Tensor,
        extra_value: Tensor | None,
        first_value: Tensor | None,
        cache: KvCache,
        index: int,
    ) -> tuple[Tensor, Tensor]:
        """From the mixed stream (B, D) to the stream after the layer and the layer's own values (B, K * W)."""
        batch, heads, kv_heads, width = x.size(0), self.heads, self.kv_heads, self.width
        group, rows = heads // kv_heads, heads + kv_heads
        normed = _norm(x)
        read = normed.mm(self.read) if self.bias is None else torch.addmm(self.bias, normed, self.read)
        parts = read.split_with_sizes(self.sizes, 1)
        qk = parts[0].reshape(batch * rows, width)
        scale = _inverse_rms(qk).mul_(self.gains if batch == 1 else self.gains.repeat(batch, 1))
        query, key = (qk * scale).mm(rotation).view(batch, rows, width).split_with_sizes((heads, kv_heads), 1)
        value = own_value = parts[1]
        if extra_value is not None:
            value = own_value = value + extra_value
        if self.value_mix is not None and first_value is not None:
            value = torch.add(first_value * self.value_mix[0], value, alpha=self.value_mix[1])
        value = value.reshape(batch * kv_heads, 1, width)
        keys, values = cache.layers[index].append(key, value.view(batch, kv_heads, width), cache.used)
        query = query.reshape(batch * kv_heads, group, width)
        y = torch.softmax(torch.bmm(query, keys.transpose(1, 2)), dim=-1).bmm(values)
        if self.exclusive:
            norm = torch.linalg.vector_norm(value, dim=-1, keepdim=True).clamp_min_(_SMALLEST_NORM)
            direction = value / norm
            y = torch.baddbmm(y, y.bmm(direction.transpose(1, 2)), direction, alpha=-1)
        if self.gated:
            y = y * torch.sigmoid(parts[2]).view(batch * kv_heads, group, 1)
        x = torch.addmm(x, y.view(batch, heads * width), self.write)
        hidden = F.leaky_relu(_norm(x).mm(self.up), self.slope).square_()
        if self.activation is not None:
            hidden = torch.addcmul(self.activation[1], hidden, self.activation[0])
        return torch.addmm(x, hidden, self.down), own_value


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
