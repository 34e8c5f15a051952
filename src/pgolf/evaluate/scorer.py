"""The scorers: what a model predicts in standard or sliding windows, with or without test-time training."""

from __future__ import annotations

import copy
import hashlib
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.data.shards import Tokens
from pgolf.evaluate.passes import Reading, compiled_reading
from pgolf.evaluate.protocol import Recorded, Scorer
from pgolf.evaluate.score import batches, window_logits
from pgolf.evaluate.ttt import Adapter, Transcript
from pgolf.evaluate.windows import Window, window_at, window_index, windows_between
from pgolf.model.cache import KvCache
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.device import autocast
from pgolf.runtime.team import SOLO, Team


class WindowScorer(Scorer):
    """A model over windows of ``length`` inputs that advance by ``stride``.

    Args:
        network: the model on its device.
        length: inputs per window.
        stride: targets per window but the first, which scores all of its own.
        batch: windows per forward pass.
        compile: whether the pass may be compiled, on CUDA for long streams; or the name of a mode of torch's
            compiler.
    """

    recomputable: tuple[str, ...] = ("_digest", "_cache", "_cached_from", "_row", "_read")
    unchanging: tuple[str, ...] = ("network", "team")
    """Attributes that are no part of a snapshot."""
    _read: Reading | None = None
    _digest: str | None
    _cache: KvCache | None
    _cached_from: int
    _row: tuple[int, Tensor] | None

    def __init__(
        self, network: GPT, length: int, stride: int, batch: int, compile: bool | str = False
    ) -> None:
        assert 1 <= stride <= length, f"stride {stride} must be between 1 and the window's {length}"
        self.network = network.eval()
        self.length, self.stride, self.batch, self.compile = length, stride, batch, compile
        self.vocab_size = network.config.vocab_size
        self._forget_weights()

    def begin(self, first: int, targets: int) -> None:
        """Forget the text of the stream before."""
        self.targets = targets
        self.position = 0
        self._forget_weights()
        if self.compile:
            device, inputs = next(self.network.parameters()).device, self.length * -(-targets // self.stride)
            sizes = self.batch, self.length, self.stride
            self._read = compiled_reading(*sizes, device, inputs, self.compile)
        self.context: Tokens = np.array([first], dtype=np.uint16)

    def wanted(self) -> int:
        """The rest of this window and those that share its forward pass."""
        index = window_index(self.position, self.length, self.stride)
        return window_at(index + self.batch - 1, self.length, self.stride).end - self.position

    def distributions(self, given: Tensor) -> Tensor:
        if not len(given):
            return self._next()
        # The last target's place is filled with a token that nothing reads.
        block = np.append(given.cpu().numpy(), 0).astype(np.uint16)
        return F.log_softmax(self._logits(block), dim=-1)

    def losses(self, block: Tensor) -> Tensor:
        logits = self._logits(block.cpu().numpy().astype(np.uint16))
        return F.cross_entropy(logits, block.to(logits.device), reduction="none")

    def receive(self, recorded: Recorded) -> None:
        """Keep as much of the text as later windows can reach."""
        assert recorded.first == self.position
        self.position += len(recorded.tokens)
        self.context = np.concatenate([self.context, recorded.tokens])[-self.length - 1 :]

    def ahead(self, text: Tokens) -> Self:
        """See ``Scorer``; shares the network."""
        self.state_digest()  # Computed once, for all copies.
        other = copy.copy(self)
        other.position += len(text)
        other.context = np.concatenate([self.context, text])[-self.length - 1 :]
        other._cache = other._row = None
        return other

    def state_digest(self) -> str:
        """A fingerprint of the weights."""
        if self._digest is None:
            self._digest = weights_digest(self.network)
        return self._digest

    def snapshot(self) -> Any:
        left_out = (*self.unchanging, *self.recomputable)
        return {key: value for key, value in self.__dict__.items() if key not in left_out}

    def restore(self, snapshot: Any) -> None:
        self.__dict__.update(snapshot)
        self._forget_weights()

    def _forget_weights(self) -> None:
        """Drop what was computed from weights that are about to be others."""
        self._digest = self._cache = self._row = None

    def _window(self) -> Window:
        """The window that scores the next target."""
        return window_at(window_index(self.position, self.length, self.stride), self.length, self.stride)

    def _next(self) -> Tensor:
        """The distribution (1, V) of the next target alone; within a window only new tokens are read."""
        from pgolf.model.step import extend  # Ordinary scoring does without.

        if self._row is None or self._row[0] != self.position:
            start, device = self._window().start, next(self.network.parameters()).device
            with torch.inference_mode(), autocast(device):
                if self._cache is None or self._cached_from != start:
                    self._cache, self._cached_from = self.network.cache(1, self.length), start
                begin = self.position + 1 - len(self.context)
                new = self.context[self._cached_from + self._cache.used - begin :].astype(np.int64)
                hidden = extend(self.network, torch.from_numpy(new)[None].to(device), self._cache)
                row = F.log_softmax(self.network.project(hidden[:, -1]), dim=-1)
            self._row = self.position, row
        return self._row[1].clone()

    def _logits(self, block: Tokens) -> Tensor:
        """Logits (n, V) of the next n targets, of which the last is not looked at."""
        with torch.inference_mode():
            return self._read_windows(block)

    def _read_windows(self, block: Tokens) -> Tensor:
        text = np.concatenate([self.context, block])
        begin = self.position + 1 - len(self.context)  # place of the text in the stream
        windows = [
            Window(window.start - begin, window.end - begin, window.first - begin)
            for window in windows_between(self.position, self.position + len(block), self.length, self.stride)
        ]
        options = {} if self._read is None else {"read": self._read}
        groups = batches(windows, self.batch)
        return torch.cat(
            [window_logits(self.network, text, group, self.length, **options) for group in groups]
        )


class FrozenScorer(WindowScorer):
    """A model that never learns."""

    def steady(self) -> int:
        """All that is left."""
        return self.targets - self.position


class LearningScorer(WindowScorer):
    """A scorer that learns from text once it is recorded, from time to time (``steady``).

    Args:
        network: the model on its device; it stays as it is.
        recipe: windows and test-time training.
        team: ranks that learn together.
        compile: see ``WindowScorer``.
    """

    learners: tuple[str, ...]
    """Attributes with a state of their own that learn, in the order in which they are restored."""
    unchanging: tuple[str, ...] = ("network", "team", "base", "_source")
    transcript: Transcript

    def __init__(self, network: GPT, recipe: Recipe, team: Team, compile: bool | str = False) -> None:
        evaluate = recipe.evaluate
        super().__init__(network, recipe.evaluation_length, evaluate.stride, evaluate.batch, compile)
        self.recipe, self.team, self._source = recipe, team, network

    def wanted(self) -> int:
        """Up to where something is learned: the next windows are scored with other weights."""
        return min(super().wanted(), self.steady())

    def snapshot(self) -> Any:
        """See ``Scorer``; copies what was learned."""
        plain = {key: value for key, value in super().snapshot().items() if key not in self.learners}
        learned = [getattr(self, name).snapshot() for name in self.learners]
        return plain | {"transcript": self.transcript.copy()}, learned

    def restore(self, snapshot: Any) -> None:
        plain, learned = snapshot
        super().restore(plain | {"transcript": plain["transcript"].copy()})
        for name, state in zip(self.learners, learned, strict=True):
            getattr(self, name).restore(state)


class TttScorer(LearningScorer):
    """Sliding windows by a model that trains on each chunk of text once all of it is scored.

    A window belongs to the chunk in which the first target that it scores lies. So when the windows of a
    chunk are scored, its text is recorded, and the model trains on it before the next window. The ranks of a
    team train together.
    """

    learners = ("adapter",)

    def __init__(self, network: GPT, recipe: Recipe, team: Team = SOLO) -> None:
        super().__init__(network, recipe, team, recipe.evaluate.compile)

    def begin(self, first: int, targets: int) -> None:
        """Forget the text and everything that was learned."""
        super().begin(first, targets)
        # A copy learns; the caller's weights stay, whatever interrupts this.
        self.network = self._source.clone().eval()
        self.chunk, size = 0, self.recipe.ttt.chunk_tokens
        # A chunk's last window reaches at most its length beyond the chunk.
        self.transcript = Transcript(first, size + self.length)
        self.adapter = Adapter(
            self.network, self.recipe.ttt, self.length, -(-targets // size), self.team, compile=self.compile
        )

    def steady(self) -> int:
        """What the windows of this chunk score."""
        size = self.recipe.ttt.chunk_tokens
        # The last window whose first target lies in the chunk.
        last = window_index((self.chunk + 1) * size - 1, self.length, self.stride)
        if window_at(last, self.length, self.stride).first // size > self.chunk:
            last -= 1
        return window_at(last, self.length, self.stride).end - self.position

    def receive(self, recorded: Recorded) -> None:
        """Take the text; train once a window ends that is the last of its chunk."""
        super().receive(recorded)
        self.transcript.add(recorded)
        first = self._window().first
        following = first // self.recipe.ttt.chunk_tokens
        if first == self.position < self.targets and following > self.chunk:
            self._adapt(following)

    def _adapt(self, following: int) -> None:
        self.adapter.adapt(self.transcript.chunk(self.chunk, self.recipe.ttt.chunk_tokens))
        self.network.eval()
        self._forget_weights()
        self.chunk = following


def weights_digest(network: GPT) -> str:
    """A fingerprint of all weights: 64 hexadecimal digits.

    The SHA-256 of names and values. On CUDA nothing is copied: in place of the values stand sums of their
    bits times odd numbers that depend on the place, modulo 2^64. That notices every change of a single
    weight; it is no protection against someone who looks for a collision.
    """
    digest = hashlib.sha256()
    weights = {name: each.detach().contiguous().flatten() for name, each in network.named_parameters()}
    on_cuda = next(network.parameters()).device.type == "cuda"
    # All sums are fetched at once: every fetch waits for what runs there.
    sums = torch.stack([_fingerprint(values) for values in weights.values()]).tolist() if on_cuda else []
    for index, (name, values) in enumerate(weights.items()):
        digest.update(name.encode())
        digest.update(str(sums[index]).encode() if on_cuda else values.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fingerprint(values: Tensor) -> Tensor:
    whole = values.view(torch.int32 if values.element_size() == 4 else torch.int16).to(torch.int64)
    places = torch.arange(len(whole), device=whole.device) * 0x5851F42D4C957F2D + 0x14057B7EF767814F
    return (whole * (places | 1)).sum()
