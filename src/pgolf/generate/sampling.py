"""Which token comes next: reading with the cache, in sliding windows, and drawing from the distribution."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.codec.payload import fixed_threads
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.model.step import extend

if TYPE_CHECKING:
    from pgolf.memory.memory import Memory


_NOTHING = np.zeros(0, np.uint16)


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the model's distribution; a ``PgolfError`` if a value is out of range."""

    temperature: float = 0.8
    """Logits are divided by it; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only so many of the likeliest tokens can be drawn; None: all."""
    top_p: float = 1.0
    """Only the likeliest tokens whose probabilities add up to this can be drawn (Holtzman et al. 2020)."""
    seed: int = 0
    """Of the random numbers; the same seed gives the same text on the same machine."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            allowed = "must be 0 (always the likeliest token) or more"
            raise PgolfError(f"temperature {self.temperature}: {allowed}")
        if self.top_k is not None and self.top_k < 1:
            raise PgolfError(f"top_k {self.top_k}: must be 1 or more; leave it out to draw from all tokens")
        if not 0 < self.top_p <= 1:
            raise PgolfError(f"top_p {self.top_p}: must be above 0 and at most 1 (all tokens)")
        if not 0 <= self.seed < 1 << 63:
            raise PgolfError(f"seed {self.seed}: must be 0 or more, and below 2^63")

    def draw(self, logits: Tensor, generator: torch.Generator) -> int:
        """One token by logits (V,), after temperature, top_k, top_p; a ``PgolfError`` if one is NaN."""
        if bool(logits.isnan().any()):
            failed = "its weights are of a training that failed"
            raise PgolfError(f"the model's predictions are no numbers; {failed}")
        if not self.temperature:
            return int(logits.argmax())
        # Less their maximum, so that a small temperature does not make infinities of them.
        scaled = (logits.double() - logits.max()) / self.temperature
        if self.top_k is None and self.top_p == 1:
            return int(torch.multinomial(scaled.softmax(0), 1, generator=generator))
        size = len(scaled)
        scaled, order = scaled.topk(min(self.top_k or size, size))
        probabilities = scaled.softmax(0)
        # A token stays if those before it do not reach top_p without it.
        kept = int((probabilities.cumsum(0) - probabilities < self.top_p).sum())
        return int(order[torch.multinomial(probabilities[:kept], 1, generator=generator)])


def drawn_seed() -> int:
    """A seed by chance, short enough to be typed."""
    return secrets.randbelow(1_000_000)


def window_start(count: int, length: int) -> int:
    """The first of ``count`` tokens that the next one is predicted from, with windows of ``length`` tokens.

    While they fit, it is 0. A full window gives way to one of its last ``length // 2`` tokens, the newest
    included, which fills up in turn; so the start depends on the count alone, not on how the tokens came.
    """
    step = length + 1 - max(length // 2, 1)
    return step * max(0, math.ceil((count - length) / step))


class Reader:
    """A model that reads a text token by token.

    The cache rotates positions as counted from the window's first token. So keys cannot move in it, and where
    a window begins anew, its tokens are read again: every token is read about twice in the long run.

    Args:
        network: in evaluation mode, on the CPU.
        length: tokens of a window.
    """

    def __init__(self, network: GPT, length: int) -> None:
        self._network, self._length = network, length
        self._cache = network.cache(1, length)
        self._tokens: list[int] = []
        self._start = 0

    @torch.inference_mode()
    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """Read on by at least one token; returns the logits (V,) float32 of what comes after the last one."""
        self._tokens += tokens
        start = window_start(len(self._tokens), self._length)
        if start != self._start:
            self._cache.reset()
            self._start = start
        unread = self._tokens[start + self._cache.used :]
        # A single token is too little work to share: threads would wait more than they compute.
        with fixed_threads(1 if len(unread) == 1 else torch.get_num_threads()):
            hidden = extend(self._network, torch.tensor([unread]), self._cache)
            return self._network.project(hidden[0, -1])


class MemoryReader:
    """A reader with a memory beside it, which learns from every token that is read.

    Args:
        reader: has read nothing yet.
        memory: has room for all that will be read.
    """

    def __init__(self, reader: Reader, memory: Memory) -> None:
        self._reader, self._memory = reader, memory
        self._predicted: NDArray[np.float32] | None = None

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """As ``Reader.next_logits``: logarithms of the mixed probabilities."""
        for token in tokens:
            self._memory.receive(np.array([token], np.uint16), self._predicted)
            # Token by token: how far model and memory are trusted follows from what each has predicted.
            self._predicted = self._reader.next_logits([token]).softmax(0)[None].numpy()
        return torch.from_numpy(self._memory.distributions(_NOTHING, self._predicted)[0])
