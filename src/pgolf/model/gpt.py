"""The model: tokens in, logits or losses out.

    tokens (B, T)
      │  token_embedding + EmbeddingParts, RMS norm, StreamParts
      x ──────────────────────────────► x0, mixed into every layer
      │
      each visit of the schedule:                       (LayerParts stand before and after)
      │     x = a*x + b*x0
      │     x = x + attention_scale * attention(norm(x) * s)          (ValueSources, AttentionParts)
      │     x = x + mlp_scale * mlp(norm(x) * s)                      (LaneParts: both side by side)
      │
      RMS norm, HeadParts
      │
      softcap * tanh(token_embedding^T x / softcap)                   (tied output layer)
      │
    logits (B, T, V)

A layer owns its vectors; attention and MLP weights live in a *core*. Usually core i belongs to layer i; with
``model.unique_layers`` fewer cores are reused cyclically, and with ``model.loop`` some layers are passed
through several times (depth recurrence). ``shape.schedule`` is the order.

The parts are features, a file each in ``features/``. This file knows their slots (``slots.py``) only.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.attend import DocumentMask, document_ids
from pgolf.model.cache import KvCache
from pgolf.model.fast import rms_norm
from pgolf.model.init import initialise
from pgolf.model.layer import Core, Layer
from pgolf.model.linear import FakeQuant
from pgolf.model.loss import capped, target_losses
from pgolf.model.parts import build_parts
from pgolf.model.rope import rotary_tables
from pgolf.model.section import ModelSection
from pgolf.model.shape import schedule
from pgolf.model.slots import (
    CapPart,
    EmbeddingPart,
    HeadPart,
    LanePart,
    LayerPart,
    Reading,
    StreamPart,
    ValueSource,
    added_values,
)


class GPT(nn.Module):
    """A decoder-only transformer, assembled from the parts its recipe names."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.config, self.schedule = model, schedule(model)
        self.fake_quant = FakeQuant()
        self.token_embedding = nn.Embedding(model.vocab_size, model.width)
        # Logits by a matrix (V, D) of their own: for adapters, which must not reach the tokens' embedding.
        self.head: nn.Parameter | None = None
        self.embedding_parts = build_parts(EmbeddingPart, self, model, self.fake_quant)
        self.stream_parts = build_parts(StreamPart, self, model, self.fake_quant)
        self.value_sources = build_parts(ValueSource, self, model, self.fake_quant)
        self.cores = nn.ModuleList(Core(model, self.fake_quant, index) for index in range(model.cores))
        self.layers = nn.ModuleList(Layer(model, index) for index in range(model.layers))
        self.lane_parts = build_parts(LanePart, self, model, self.fake_quant)
        self.layer_parts = build_parts(LayerPart, self, model, self.fake_quant)
        self.head_parts = build_parts(HeadPart, self, model, self.fake_quant)
        self.cap_parts = build_parts(CapPart, self, model, self.fake_quant)
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
        return target_losses(hidden, self.output_matrix(), targets, self.softcap())

    def hidden(
        self, tokens: Tensor, length: int | None = None, last: int | None = None, cache: KvCache | None = None
    ) -> Tensor:
        """Final hidden states of tokens (B, T) int64; position t sees tokens 0 to t.

        Args:
            tokens: a window, or the beginning of one; with a cache the tokens after those that it holds.
            length: positions rotate as in a window of so many tokens; by default, of T.
            last: only so many last positions are wanted: the last layer then computes keys and values
                everywhere and the rest of it there alone. Not with a cache.
            cache: what the model has read so far, with the weights of now; T positions are added.

        Returns:
            (B, T, D), or (B, last, D).
        """
        starts = mask = None
        if self.config.document_mask:
            bos = self.config.bos
            starts = tokens == bos
            mask = DocumentMask(document_ids(tokens, bos) if cache is None else cache.document_ids(tokens))
        reading = Reading(tokens, cache, starts)
        x = self.token_embedding(tokens)
        for embed in self.embedding_parts:
            x = embed(x, reading)
        x = rms_norm(x)
        for stream in self.stream_parts:
            x = stream(x, reading)
        count, first_value, x0 = tokens.size(1), None, x
        rotary = (
            rotary_tables(self.config, count, tokens.device, length) if cache is None else cache.rotary(count)
        )
        shared = [source(tokens) for source in self.value_sources]
        kept: list[list[Tensor]] = [[] for _ in self.layer_parts]
        lane: Tensor | None = None
        for place, visit in enumerate(self.schedule):
            lanes = self.lanes_of(visit.layer)
            if lanes is not None:
                lane = lanes.enter(x, lane)
            for between, own in zip(self.layer_parts, kept, strict=True):
                x = between.before(x, own, self.schedule, place)
            extra_value = added_values(self.value_sources, shared, visit.layer)
            past = None if cache is None else (cache.layers[place], cache.used)
            needed = last if place == len(self.schedule) - 1 else None
            at = rotary, extra_value, first_value, past, mask, needed, lanes, lane
            x, lane, value = self.layers[visit.layer](x, x0, self.cores[visit.core], *at)
            if place == 0:
                first_value = value
            for between, own in zip(self.layer_parts, kept, strict=True):
                between.after(x, own, self.schedule, place)
        if cache is not None:
            cache.advance(count)
        x = rms_norm(self.merged(x, lane))
        for refine in self.head_parts:
            x = refine(x)
        return x

    def lanes_of(self, layer: int) -> LanePart | None:
        """What has attention and MLP of a layer write side by side; None where they do not."""
        return next((part for part in self.lane_parts if part.begins(layer)), None)

    def merged(self, x: Tensor, lane: Tensor | None) -> Tensor:
        """The stream behind the last layer, of both lanes if there are two."""
        for part in self.lane_parts:
            x = part.leave(x, lane)
        return x

    @contextlib.contextmanager
    def passing(self, passes: int) -> Iterator[None]:
        """Within it the stream passes through the loop only so many times: for training that begins so."""
        whole, self.schedule = self.schedule, schedule(self.config, passes)
        try:
            yield
        finally:
            self.schedule = whole

    def cache(self, batch: int, length: int) -> KvCache:
        """An empty cache on the model's device, for ``batch`` windows of ``length`` tokens."""
        return KvCache(self.config, batch, length, self.token_embedding.weight.device)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) float32 of hidden states (..., D), by the tied token embedding."""
        return capped(F.linear(hidden, self.output_matrix()), self.softcap())

    def output_matrix(self) -> Tensor:
        """The matrix (V, D) that makes logits of hidden states: the token embedding, or the head's own."""
        return self.token_embedding.weight if self.head is None else self.head

    def softcap(self) -> Tensor | float:
        """The cap of the logits; or where they are learned, those of positive and of negative ones (2,)."""
        return self.cap_parts[0]() if self.cap_parts else self.config.softcap

    def clone(self) -> GPT:
        """An independent copy with equal weights, all trainable, on the same device and in the same mode."""
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
        # Only layers that share a core count: passes through a loop add up, as in the runs that made loops.
        for index, count in Counter(visit.core for visit in schedule(self.config, passes=1)).items():
            if count > 1:
                for parameter in self.cores[index].parameters():
                    parameter.register_hook(lambda gradient, count=count: gradient / count)


def build_model(model: ModelSection, seed: int) -> GPT:
    """A freshly initialised model; equal seeds give equal weights. The global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(model)


def parameter_count(network: nn.Module) -> int:
    """Number of scalars in all parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
