"""The model: tokens in, logits or losses out.

    tokens (B, T)
      │  token_embedding + bigram, RMS norm, smear
      x ──────────────────────────────► x0, mixed into every layer
      │
      layers 0 .. n/2-1     each output is kept on a stack ─┐
      layers n/2 .. n-1  ◄── each first takes one back ◄────┘   (U-Net skips)
      │
      RMS norm, refiner
      │
      softcap * tanh(token_embedding^T x / softcap)             (tied output layer)
      │
    logits (B, T, V)

    layer i:  x = a*x + b*x0
              x = x + attention_scale * attention(norm(x) * s_i)
              x = x + mlp_scale * mlp(norm(x) * s_i)

A layer owns its vectors; attention and MLP weights live in a *core*. Usually core i belongs to layer
i; with ``model.unique_layers`` fewer cores are reused cyclically (depth recurrence).
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.attend import BOS, DocumentMask, document_ids
from pgolf.model.attention import Attention
from pgolf.model.embeddings import BigramEmbedding, Smear, ValueEmbedding
from pgolf.model.fast import rms_norm, scaled_sum
from pgolf.model.init import initialise
from pgolf.model.linear import FakeQuant
from pgolf.model.loss import capped, target_losses
from pgolf.model.mlp import Mlp
from pgolf.model.refiner import FlowRefiner
from pgolf.model.rope import rotary_tables
from pgolf.recipe.sections import ModelSection

if TYPE_CHECKING:
    from pgolf.model.cache import KvCache, LayerCache


class Core(nn.Module):
    """The matrices of a layer, possibly shared by several layers."""

    def __init__(self, model: ModelSection, fake_quant: FakeQuant, exclusive: bool) -> None:
        super().__init__()
        self.attention = Attention(model, fake_quant, exclusive)
        self.mlp = Mlp(model, fake_quant)


class Layer(nn.Module):
    """The vectors of a layer, and how it uses a core."""

    def __init__(self, model: ModelSection, index: int) -> None:
        super().__init__()
        self.norm_scale = 1 / math.sqrt(index + 1) if model.norm_scale == "inverse_sqrt_depth" else 1.0
        self.residual_mix = nn.Parameter(torch.tensor([[1.0], [0.0]]).expand(2, model.width).contiguous())
        self.attention_scale = nn.Parameter(torch.ones(model.width))
        self.mlp_scale = nn.Parameter(torch.ones(model.width))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        core: Core,
        rotary: tuple[Tensor, Tensor],
        extra_value: Tensor | None,
        first_value: Tensor | None,
        past: tuple[LayerCache, int] | None = None,
        mask: DocumentMask | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the new stream (B, T, D), or its ``last`` positions, and the attention's own values (B, T,
        K, W).
        """
        x = scaled_sum(x, self.residual_mix[0], x0, self.residual_mix[1])
        attended, value = core.attention(
            rms_norm(x, self.norm_scale), rotary, extra_value, first_value, past, mask, last
        )
        if last is not None:
            x = x[:, -last:]
        x = scaled_sum(x, None, attended, self.attention_scale)
        x = scaled_sum(x, None, core.mlp(rms_norm(x, self.norm_scale)), self.mlp_scale)
        return x, value


class Skips(nn.Module):
    """U-Net skips (Ronneberger et al. 2015): late layers take back the outputs of early ones."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        count = model.layers // 2
        self.weight = nn.Parameter(torch.ones(count, model.width))
        self.gate = nn.Parameter(torch.zeros(count, model.width)) if model.skip == "gated" else None

    def forward(self, x: Tensor, skipped: Tensor, index: int) -> Tensor:
        """Merge an early output into the stream, both (B, T, D)."""
        weight = self.weight[index].to(x.dtype)
        if self.gate is None:
            return scaled_sum(x, None, skipped, weight)
        gate = torch.sigmoid(self.gate[index].to(x.dtype))
        return scaled_sum(x, gate, skipped, (1 - gate) * weight)


class GPT(nn.Module):
    """A decoder-only transformer, assembled from the parts its recipe names."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.config = model
        self.fake_quant = FakeQuant()
        self.token_embedding = nn.Embedding(model.vocab_size, model.width)
        self.bigram = BigramEmbedding(model, self.fake_quant) if model.bigram.buckets else None
        self.smear = Smear(model.width) if model.smear else None
        has_values = bool(model.value_embedding.layers)
        self.value_embedding = ValueEmbedding(model, self.fake_quant) if has_values else None
        exclusive_from = model.cores - model.xsa_last
        self.cores = nn.ModuleList(
            Core(model, self.fake_quant, exclusive=index >= exclusive_from) for index in range(model.cores)
        )
        self.layers = nn.ModuleList(Layer(model, index) for index in range(model.layers))
        self.skips = Skips(model) if model.skip != "none" and model.layers > 1 else None
        self.refiner = FlowRefiner(model) if model.refiner == "flow" else None
        initialise(self, model)
        self.scale_shared_gradients()

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits of every next token, or the loss of each target.

        Args:
            tokens: inputs (B, T) int64.
            targets: the tokens that follow them (B, T) int64, or None.

        Returns:
            Without targets the logits (B, T, V) float32; with them the losses (B, T) float32 in nats.
        """
        hidden = self.hidden(tokens)
        if targets is None:
            return self.project(hidden)
        return target_losses(hidden, self.token_embedding.weight, targets, self.config.softcap)

    def hidden(self, tokens: Tensor, length: int | None = None, last: int | None = None) -> Tensor:
        """Final hidden states (B, T, D) of tokens (B, T) int64; position t sees tokens 0 to t.

        With ``length`` positions rotate as in a window of so many tokens, of which these are the beginning.
        With ``last`` only those of so many last positions, (B, last, D): the last layer then computes keys
        and values everywhere and the rest of it there alone.
        """
        return self._run(tokens, None, length, last)

    def cache(self, batch: int, length: int) -> KvCache:
        """An empty cache on the model's device, for ``extend`` over ``batch`` windows of ``length`` tokens."""
        from pgolf.model.cache import KvCache

        return KvCache(self.config, batch, length, self.token_embedding.weight.device)

    @torch.inference_mode()
    def extend(self, tokens: Tensor, cache: KvCache) -> Tensor:
        """Read the next tokens of windows that ``cache`` holds the beginning of, without gradients.

        Args:
            tokens: (B, n) int64, n >= 1; with what the cache holds at most its length.
            cache: the positions read so far, by this model with the weights of now; n positions are added.

        Returns:
            Final hidden states (B, n, D): up to rounding those that ``hidden`` gives these positions of a
            full window.
        """
        from pgolf.model.step import Step, steps_singly

        if tokens.size(1) > 1 or not steps_singly(self):
            return self._run(tokens, cache)
        if cache.step is None:
            cache.step = Step(self)
        return cache.step(tokens, cache)

    def _run(
        self, tokens: Tensor, cache: KvCache | None, length: int | None = None, last: int | None = None
    ) -> Tensor:
        starts = mask = None
        if self.config.document_mask:
            starts = tokens == BOS
            mask = DocumentMask(document_ids(tokens) if cache is None else cache.document_ids(tokens))
        x = self.token_embedding(tokens)
        if self.bigram is not None:
            x = x + self.bigram(tokens, None if cache is None else cache.last_token, starts)
        embedded = x = rms_norm(x)
        if self.smear is not None:
            x = self.smear(x, None if cache is None else cache.last_embedded, starts)
        x0, first_value = x, None
        count = tokens.size(1)
        rotary = (
            rotary_tables(self.config, count, tokens.device, length) if cache is None else cache.rotary(count)
        )
        shared_value = None if self.value_embedding is None else self.value_embedding(tokens)
        early: list[Tensor] = []
        half = len(self.layers) // 2
        for index, layer in enumerate(self.layers):
            if index >= half and early and self.skips is not None:
                x = self.skips(x, early.pop(), index - half)
            extra_value = None
            if self.value_embedding is not None and shared_value is not None:
                extra_value = self.value_embedding.for_layer(shared_value, index)
            core = self.cores[index % len(self.cores)]
            past = None if cache is None else (cache.layers[index], cache.used)
            needed = last if index == len(self.layers) - 1 else None
            x, value = layer(x, x0, core, rotary, extra_value, first_value, past, mask, needed)
            if index == 0 and self.config.value_residual:
                first_value = value
            if index < half:
                early.append(x)
        if cache is not None:
            cache.advance(tokens, embedded)
        x = rms_norm(x)
        return x if self.refiner is None else self.refiner(x)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) float32 of hidden states (..., D), by the tied token embedding."""
        return capped(F.linear(hidden, self.token_embedding.weight), self.config.softcap)

    def clone(self) -> GPT:
        """An independent copy with equal weights, all of them trainable, on the same device and in the same
        mode.
        """
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> GPT:
        memo[id(self.config)] = self.config
        other = GPT.__new__(GPT)
        memo[id(self)] = other
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        other.requires_grad_(True)
        other.scale_shared_gradients()  # Copied parameters have no hooks.
        return other

    def scale_shared_gradients(self) -> None:
        """Hang hooks on the parameters of shared cores; those that replace others have none."""
        # A core used n times receives the sum of n gradients; their mean keeps its step size.
        uses = [0] * len(self.cores)
        for index in range(len(self.layers)):
            uses[index % len(self.cores)] += 1
        for core, count in zip(self.cores, uses, strict=True):
            if count > 1:
                for parameter in core.parameters():
                    parameter.register_hook(lambda gradient, count=count: gradient / count)


def build_model(model: ModelSection, seed: int) -> GPT:
    """A freshly initialised model; the same seed gives the same weights. The global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(model)


def parameter_count(network: nn.Module) -> int:
    """Number of scalars in all parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
