"""Test-time training on text that has already been scored.

An ``Adapter`` takes a ``ScoredChunk`` and nothing else, which a ``Transcript`` cuts out of ``Recorded`` text
alone (``protocol.py``): text without a recorded score cannot reach it, and it has no means to score.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgolf.data.shards import Tokens
from pgolf.evaluate.optimizers import AdamW, Optimizer, Sgd
from pgolf.evaluate.protocol import Recorded
from pgolf.model.gpt import GPT
from pgolf.recipe.sections import TttSection
from pgolf.runtime.device import autocast, compiled, pays_to_compile
from pgolf.runtime.team import SOLO, Team


@dataclass(frozen=True)
class ScoredChunk:
    """A stretch of text whose score is recorded."""

    index: int
    """0-based place among the chunks of the stream."""
    text: Tokens
    """The chunk's targets with the one token before them."""


@dataclass(frozen=True)
class Lesson:
    """Recorded text to learn from."""

    text: Tokens
    """The targets to learn, after the tokens that serve as context; at least one token of it."""
    targets: int
    """How many of the last tokens are targets to learn, at least 1."""


class Transcript:
    """The recorded text of a stream so far.

    Args:
        first: the stream's first token.
        reach: how many of the last targets can be asked for; None keeps them all.
    """

    def __init__(self, first: int, reach: int | None) -> None:
        self.reach = reach
        self.targets = 0
        self._parts: list[Tokens] = [np.array([first], dtype=np.uint16)]
        self._kept = 1

    def add(self, recorded: Recorded) -> None:
        """Append what follows."""
        assert recorded.first == self.targets, "recorded text must be without gaps"
        self.targets += len(recorded.tokens)
        self._parts.append(recorded.tokens)
        self._kept += len(recorded.tokens)
        while self.reach is not None and self._kept - len(self._parts[0]) > self.reach:
            self._kept -= len(self._parts.pop(0))

    def last(self, targets: int) -> Tokens:
        """The last targets with the one token before them, (targets + 1,) uint16."""
        assert 0 <= targets < self._kept, f"{targets} targets are asked for, {self._kept - 1} are kept"
        parts: list[Tokens] = []
        missing = targets + 1
        for part in reversed(self._parts):
            parts.append(part[-missing:])
            missing -= len(parts[-1])
            if not missing:
                break
        return np.concatenate(parts[::-1])

    def chunk(self, index: int, size: int) -> ScoredChunk:
        """The targets [index * size, (index + 1) * size), all of them recorded."""
        return ScoredChunk(index, self.last(self.targets - index * size)[: size + 1])

    def lesson(self, targets: int, context: int) -> Lesson:
        """The last ``targets`` targets, with ``context`` more tokens before them than the one needed."""
        return Lesson(self.last(targets + context), targets)

    def copy(self) -> Transcript:
        """An independent copy; the text itself, which nobody changes, is shared."""
        other = copy.copy(self)
        other._parts = list(self._parts)
        return other


class Adapter:
    """Trains a model on one chunk after the other; the optimizer's state lives through all of them.

    Args:
        network: the model; its weights are changed in place.
        ttt: how to train.
        length: targets per training sequence.
        chunks: number of chunks of the whole stream, which the schedule spreads over.
        team: ranks with equal models, which share the sequences of each training batch.
        compile: whether the training pass may be compiled, on CUDA where that pays; or how (torch's mode).
    """

    def __init__(
        self,
        network: GPT,
        ttt: TttSection,
        length: int,
        chunks: int,
        team: Team = SOLO,
        *,
        compile: bool | str = False,
    ) -> None:
        self.network, self.ttt, self.length, self.chunks, self.team = network, ttt, length, chunks, team
        frozen = frozen_parameters(network, ttt.frozen_blocks)
        if ttt.only == "vectors":
            frozen |= {name for name, _ in network.named_parameters()} - vectors(network)
        learning: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in frozen)
            if name not in frozen:
                learning.append(parameter)
        self.optimizer: Optimizer = Sgd(learning, ttt.momentum)
        if ttt.optimizer == "adamw":
            self.optimizer = AdamW(learning, ttt.weight_decay)
        self.device = device = learning[0].device
        # Forward and backward cost about three times a forward pass.
        pays = pays_to_compile(device, 3 * (chunks - 1) * ttt.chunk_tokens * ttt.epochs)
        self.forward = compiled(network, device, compile if pays else False)
        self._shared = SharedUpdates(team)

    def adapt(self, chunk: ScoredChunk) -> None:
        """Train on a chunk's text, unless it is the last chunk: nothing is left to score after it.

        Sequences of ``length`` lie side by side; what is left over at the end is not trained on.
        """
        sequences = (len(chunk.text) - 1) // self.length
        if chunk.index == self.chunks - 1 or not sequences:
            return
        lr = self.ttt.lr * lr_factor(self.ttt, chunk.index, self.chunks)
        self.network.train()
        text = torch.from_numpy(chunk.text[: sequences * self.length + 1].astype(np.int64)).to(self.device)
        inputs, targets = text[:-1].view(-1, self.length), text[1:].view(-1, self.length)
        size = self.ttt.batch_sequences
        batches = list(zip(inputs.split(size), targets.split(size), strict=True))
        for _ in range(self.ttt.epochs):
            for batch in batches:
                self._update(*batch, lr)

    def snapshot(self) -> Any:
        """The weights and the optimizer's state, for ``restore``."""
        weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        return weights, copy.deepcopy(self.optimizer.state)

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        weights, optimizer = snapshot
        self.network.load_state_dict(weights)
        self.optimizer.state = copy.deepcopy(optimizer)

    def _update(self, inputs: Tensor, targets: Tensor, lr: float) -> None:
        def gradients(part: slice) -> None:
            with autocast(inputs.device, learning=True):
                loss = self.forward(inputs[part], targets[part]).mean() * (len(inputs[part]) / len(inputs))
            loss.backward()

        self._shared.update(self.optimizer, lr, self.ttt.grad_clip, len(inputs), gradients)


class SharedUpdates:
    """Steps of an optimizer on training batches whose sequences the ranks of a team share."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self._sizes: set[int] = set()  # of batches that all ranks have been through

    def update(
        self,
        optimizer: Optimizer,
        lr: float,
        clip: float,
        size: int,
        gradients: Callable[[slice], None],
    ) -> None:
        """One step of the optimizer's parameters, which are equal on all ranks and stay so.

        Args:
            optimizer: its gradients are replaced.
            lr: learning rate.
            clip: largest global norm of the gradient; 0 does not clip.
            size: sequences of the whole batch.
            gradients: adds the gradients of this rank's part of the batch; not asked where that is empty.
        """
        own, parameters = self.team.share(size), optimizer.parameters
        for parameter in parameters:
            parameter.grad = None
        if own:
            gradients(slice(own.start, own.stop))
        if self.team.size > 1:
            self._add_up(parameters, size)
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step(lr)

    def _add_up(self, parameters: list[nn.Parameter], size: int) -> None:
        if size not in self._sizes:
            self.team.meet()  # Where it compiles, a batch of a new size takes minutes, and not on every rank.
            self._sizes.add(size)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.team.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])


def lr_factor(ttt: TttSection, chunk: int, chunks: int) -> float:
    """Factor on the learning rate at ``chunk`` (0-based) of ``chunks``.

    "cosine" falls from 1 at the first chunk to 0 at the last; "warmup_cosine" first rises linearly over
    a twentieth of the chunks (at least one).
    """
    if ttt.schedule == "constant":
        return 1.0
    warmup = max(chunks // 20, 1) if ttt.schedule == "warmup_cosine" else 0
    if chunk < warmup:
        return (chunk + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (chunk - warmup) / max(chunks - 1 - warmup, 1)))


def frozen_parameters(network: GPT, blocks: int) -> set[str]:
    """Names of the parameters of the first layers and of the cores that those layers use."""
    visits = [visit for visit in network.schedule if visit.layer < blocks]
    numbers = {"layers": {visit.layer for visit in visits}, "cores": {visit.core for visit in visits}}
    frozen = set()
    for name, _ in network.named_parameters():
        match = re.match(r"(layers|cores)\.(\d+)\.", name)
        if match and int(match[2]) in numbers[match[1]]:
            frozen.add(name)
    return frozen


def vectors(network: nn.Module) -> set[str]:
    """Names of the parameters outside of matrices and tables: scales, mixes, gains, skip weights."""
    owners = {
        path: module
        for path, module in network.named_modules()
        if not isinstance(module, (nn.Linear, nn.Embedding))
    }
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in owners.items()
        for name, _ in module.named_parameters(recurse=False)
    }
