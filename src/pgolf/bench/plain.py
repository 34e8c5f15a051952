"""The plainest PyTorch code for the same work: one tensor after the other, windows as the references do.

It shares the model, which here runs by its textbook formulas, and nothing else, so a ratio says what pgolf's
loops and gradients by hand are worth.
"""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
import zstandard
from torch import Tensor

from pgolf.compress.scheme import quantize_state
from pgolf.compress.stored import Quantized, code_range
from pgolf.data.shards import Tokens
from pgolf.evaluate.ttt import frozen_parameters, lr_factor
from pgolf.model.gpt import GPT
from pgolf.optim.averaging import ema_decay
from pgolf.optim.routing import route
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.device import autocast

# Windows per pass.
_REFERENCE_BATCH = 32


class PlainTrainer:
    """A textbook training step: one matrix, one vector, one average after the other."""

    def __init__(self, network: GPT, recipe: Recipe) -> None:
        self.network, self.recipe = network, recipe
        self.routes = route(network, recipe)
        zeros = torch.zeros_like
        self.moments = {route.name: (zeros(route.parameter), zeros(route.parameter)) for route in self.routes}
        averaged = network.state_dict() if recipe.average.kind in ("ema", "swa_of_ema") else {}
        self.average = {name: value.clone() for name, value in averaged.items()}
        self.steps = 0

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """One step on micro-batches (parts, sequences, length); returns the loss before it."""
        self.network.train()
        total = 0.0
        for x, y in zip(inputs, targets, strict=True):
            with autocast(x.device):
                logits = self.network(x)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten()) / len(inputs)
            loss.backward()
            total += loss.item()
        if limit := self.recipe.train.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit, foreach=False)
        self.steps += 1
        with torch.no_grad():
            for entry in self.routes:
                if entry.parameter.grad is not None and entry.optimizer != "none":
                    entry.parameter.mul_(1 - entry.lr * entry.weight_decay)
                    update = self._muon if entry.optimizer == "muon" else self._adam
                    entry.parameter.sub_(entry.lr * update(entry.name, entry.parameter.grad))
                entry.parameter.grad = None
            weights = self.network.state_dict()
            decay = ema_decay(self.recipe.average, self.recipe.train.steps)
            for name in self.average:
                self.average[name] = decay * self.average[name] + (1 - decay) * weights[name]
        return total

    def _muon(self, name: str, gradient: Tensor) -> Tensor:
        momentum, total = self.recipe.optim.muon_momentum, self.moments[name][0]
        total.mul_(momentum).add_(gradient)
        x = (gradient + momentum * total).to(torch.bfloat16 if gradient.is_cuda else torch.float32)
        rows, columns = x.shape
        x = x / (x.norm() + 1e-7)
        x = x.T if rows > columns else x
        for _ in range(self.recipe.optim.newton_schulz_steps):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        x = x.T if rows > columns else x
        return x.to(gradient.dtype) * math.sqrt(max(1, rows / columns))

    def _adam(self, name: str, gradient: Tensor) -> Tensor:
        optim, (first, second) = self.recipe.optim, self.moments[name]
        first.lerp_(gradient, 1 - optim.adam_beta1)
        second.mul_(optim.adam_beta2).add_((1 - optim.adam_beta2) * gradient.square())
        unbiased = second / (1 - optim.adam_beta2**self.steps)
        return first / (1 - optim.adam_beta1**self.steps) / (unbiased.sqrt() + optim.adam_eps)


def evaluate_plainly(network: GPT, recipe: Recipe, tokens: Tokens, mode: str) -> float:
    """Nats per target of a sliding or TTT evaluation as the references do it: 32 windows a pass."""
    device = next(network.parameters()).device
    length, stride = recipe.evaluation_length, recipe.evaluate.stride
    stream = torch.from_numpy(tokens.astype(np.int64)).to(device)
    targets, size = len(tokens) - 1, recipe.ttt.chunk_tokens
    network = network.clone()
    frozen = frozen_parameters(network, recipe.ttt.frozen_blocks)
    parameters = [p.requires_grad_(n not in frozen) for n, p in network.named_parameters() if n not in frozen]
    optimizer: torch.optim.Optimizer
    if recipe.ttt.optimizer == "adamw":
        decay = recipe.ttt.weight_decay
        optimizer = torch.optim.AdamW(parameters, foreach=False, fused=False, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(parameters, momentum=recipe.ttt.momentum, foreach=False)
    windows, scored = [], 0
    for start in range(0, targets, stride):
        end = min(start + length, targets)
        if end > scored:
            windows.append((start, end, scored))
            scored = end
    chunks, chunk, total = -(-targets // size), 0, 0.0
    for (where, width), found in itertools.groupby(windows, lambda w: (w[2] // size, w[1] - w[0])):
        while mode == "ttt" and where > chunk:
            optimizer.param_groups[0]["lr"] = recipe.ttt.lr * lr_factor(recipe.ttt, chunk, chunks)
            _adapt_plainly(network, optimizer, recipe, stream[chunk * size : (chunk + 1) * size + 1])
            chunk += 1
        every = list(found)
        for group in (every[at : at + _REFERENCE_BATCH] for at in range(0, len(every), _REFERENCE_BATCH)):
            inputs = torch.stack([stream[start:end] for start, end, _ in group])
            answers = torch.stack([stream[start + 1 : end + 1] for start, end, _ in group])
            with torch.no_grad(), autocast(device):
                logits = network(inputs)
            losses = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none")
            for row, (start, _, first) in zip(losses.view(-1, width), group, strict=True):
                total += float(row[first - start :].cpu().double().sum())
    return total / targets


def _adapt_plainly(network: GPT, optimizer: torch.optim.Optimizer, recipe: Recipe, text: Tensor) -> None:
    length, batch = recipe.evaluation_length, recipe.ttt.batch_sequences
    sequences = (len(text) - 1) // length
    for _ in range(recipe.ttt.epochs):
        for first in range(0, sequences, batch):
            last = min(first + batch, sequences)
            span = text[first * length : last * length + 1]
            optimizer.zero_grad()
            with autocast(text.device):
                logits = network(span[:-1].view(-1, length))
            F.cross_entropy(logits.flatten(0, 1), span[1:]).backward()
            if recipe.ttt.grad_clip:
                parameters = optimizer.param_groups[0]["params"]
                torch.nn.utils.clip_grad_norm_(parameters, recipe.ttt.grad_clip, foreach=False)
            optimizer.step()


def pack_plainly(state: dict[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """Quantize row by row, save with torch and compress with zstd, then read everything back."""
    stored: dict[str, object] = {}
    for name, value in quantize_state(state, recipe.compress).items():
        if isinstance(value, Quantized) and recipe.compress.clip == "absmax" and value.bits < 8:
            low, high = code_range(value.bits)
            rows = []
            for row in state[name]:
                step = max(row.abs().max().item() / high, recipe.compress.scale_floor / high, 1e-12)
                divisor = float(torch.tensor(step).half())
                rows.append((row / divisor).round().clamp(low, high).to(torch.int8))
            stored[name] = (torch.stack(rows), value.scale)
        else:
            stored[name] = (value.codes, value.scale) if isinstance(value, Quantized) else value
    buffer = io.BytesIO()
    torch.save(stored, buffer)
    packed = zstandard.ZstdCompressor(level=22).compress(buffer.getvalue())
    loaded = torch.load(io.BytesIO(zstandard.ZstdDecompressor().decompress(packed)), weights_only=True)
    return {
        name: value[0].float() * value[1].float()[:, None] if isinstance(value, tuple) else value.float()
        for name, value in loaded.items()
    }
