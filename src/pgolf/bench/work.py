"""The work that benchmarks measure: a training step, an evaluation, test-time training, packing.

Tokens are random but fixed, and weights start from the recipe's seed, so both ways of each benchmark must
compute the same figure.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pgolf.bench import plain
from pgolf.compress.container import read_artifact
from pgolf.compress.pack import pack
from pgolf.data.shards import Tokens
from pgolf.evaluate.evaluate import evaluate
from pgolf.evaluate.windows import sliding_windows
from pgolf.model.gpt import GPT, build_model
from pgolf.optim.averaging import Averager
from pgolf.optim.build import build_optimizers, set_schedule
from pgolf.optim.place import place
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.device import autocast, compiled

# More than this would take a CPU minutes; the result says what was measured.
_CPU_STEP_TOKENS = 8192
_CPU_STREAM_TARGETS = 4096
_CPU_STREAM_INPUTS = 16384


@dataclass(frozen=True)
class Measured:
    """Two ways to do the same work, and how much work that is."""

    ours: Callable[[], float]
    """Does the work once; returns a figure (a loss, an error) that both ways must agree on."""
    plain: Callable[[], float]
    """The same by the plainest PyTorch code."""
    tokens: int
    """Targets of one execution; 0 where they are no measure."""
    scope: str
    trains: bool = False
    """Whether it is training, so that its operations can be counted."""
    agreement: float = 1e-4
    """Largest relative difference of the two figures."""


def train_work(recipe: Recipe, device: torch.device) -> Measured:
    """One optimizer step: gradients of all micro-batches, clipping, Muon and AdamW, averaging."""
    length, total = recipe.train.sequence_length, recipe.train.batch_tokens
    if device.type == "cpu":
        total = min(total, max(_CPU_STEP_TOKENS // length, 1) * length)
    parts = math.gcd(recipe.train.micro_batches, total // length)
    batch = torch.from_numpy(_tokens(recipe, total + 1).astype(np.int64)).to(device)
    inputs, targets = (part.view(parts, -1, length) for part in (batch[:-1], batch[1:]))
    network = place(build_model(recipe.model, recipe.train.seed), recipe, device)
    forward = compiled(network, device, recipe.train.compile)
    optimizers, averager = build_optimizers(network, recipe), Averager(recipe.average, network.state_dict())
    other = plain.PlainTrainer(place(build_model(recipe.model, recipe.train.seed), recipe, device), recipe)

    def ours() -> float:
        network.train()
        loss = torch.zeros((), device=device)
        for x, y in zip(inputs, targets, strict=True):
            with autocast(device):
                part = forward(x, y).mean() / parts
            part.backward()
            loss += part.detach()
        if recipe.train.grad_clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.train.grad_clip)
        set_schedule(optimizers, 1.0, recipe.optim.muon_momentum)
        for optimizer in optimizers:
            optimizer.step()
        network.zero_grad(set_to_none=True)
        averager.update(network.state_dict(), 1, 1.0)
        return float(loss)

    scope = f"a step of {total:,} targets in {parts} micro-batches"
    if total != recipe.train.batch_tokens:
        scope += f" (the recipe's has {recipe.train.batch_tokens:,})"
    return Measured(ours, lambda: other.step(inputs, targets), total, scope, trains=True, agreement=5e-3)


def pack_work(recipe: Recipe, device: torch.device) -> Measured:
    """Quantizing by fixed widths, coding, verifying; the figure is the mean squared error of the weights."""
    # The plain way knows no other scheme, so both follow this one.
    fixed = ["compress.scheme=rowwise", "compress.rounding=nearest", "compress.calibration=none"]
    recipe = recipe.with_overrides(fixed)
    state = _spread(build_model(recipe.model, 0)).state_dict()

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model.pgolf"
            pack(state, recipe, "", out, cap=1 << 30)
            return _error(state, read_artifact(out).state)

    def plainly() -> float:
        return _error(state, plain.pack_plainly(state, recipe))

    return Measured(ours, plainly, 0, f"{len(state)} tensors")


def stream_work(mode: str, recipe: Recipe, device: torch.device) -> Measured:
    """Evaluation of a short stream; "ttt" takes four chunks, or fewer where a window is longer than that."""
    length = recipe.evaluation_length
    # The plain loop knows no other method.
    recipe = recipe.with_overrides(["ttt.method=full", "evaluate.batch=0"])
    targets = max(_CPU_STREAM_TARGETS, 2 * length) if device.type == "cpu" else 65536
    stride = _affordable_stride(recipe, targets) if device.type == "cpu" else recipe.evaluate.stride
    scope = f"{mode} evaluation of {targets:,} targets, windows of {length:,}, stride {stride:,}"
    if stride != recipe.evaluate.stride:
        scope += f" (the recipe's is {recipe.evaluate.stride:,})"
        recipe = recipe.with_overrides([f"evaluate.stride={stride}"])
    if mode == "ttt":
        chunk, epochs = max(targets // 4, length), min(recipe.ttt.epochs, 2)
        scope += f", chunks of {chunk:,}, epochs {epochs}"
        recipe = recipe.with_overrides([f"ttt.chunk_tokens={chunk}", f"ttt.epochs={epochs}"])
    network = place(_spread(build_model(recipe.model, 0)), recipe, device)
    # No text is behind the tokens.
    tokens, byte_counts = _tokens(recipe, targets + 1), np.ones(targets, dtype=np.uint16)

    def ours() -> float:
        return evaluate(network, recipe, tokens, byte_counts, mode).val_loss

    return Measured(ours, lambda: plain.evaluate_plainly(network, recipe, tokens, mode), targets, scope)


def _affordable_stride(recipe: Recipe, targets: int) -> int:
    """The recipe's stride, doubled until the windows hold few enough inputs or do not overlap any more."""
    length, stride = recipe.evaluation_length, recipe.evaluate.stride
    most = _CPU_STREAM_INPUTS // length
    while 2 * stride <= length and len(sliding_windows(targets, length, stride)) > most:
        stride *= 2
    return stride


def _tokens(recipe: Recipe, count: int) -> Tokens:
    return np.random.RandomState(0).randint(recipe.model.vocab_size, size=count).astype(np.uint16)


def _spread(network: GPT) -> GPT:
    """Weights as after some training: nothing is exactly zero any more."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network


def _error(state: dict[str, torch.Tensor], stored: dict[str, torch.Tensor]) -> float:
    squares = sum(float((state[name] - stored[name]).double().square().sum()) for name in state)
    return squares / sum(tensor.numel() for tensor in state.values())


WORK: dict[str, Callable[[Recipe, torch.device], Measured]] = {
    "train": train_work,
    "eval": partial(stream_work, "sliding"),
    "ttt": partial(stream_work, "ttt"),
    "pack": pack_work,
}
