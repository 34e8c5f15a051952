"""Any scorer with a memory beside it: counts of the text so far, mixed with the scorer's distributions."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.evaluate.protocol import Recorded, Scorer
from pgolf.memory.memory import Memory, Start
from pgolf.recipe.sections import MemorySection


class MemoryScorer(Scorer):
    """Mixes ``base`` with what a memory says; both learn in ``receive`` alone.

    Within a block each target is predicted with the counts of all targets before it, those of the block too;
    what the block's targets add is taken back after the request. So scores do not depend on the blocks.

    Args:
        base: predicts on its own; None is a memory alone.
        section: sizes and experts.
        start: what the memory knows before the stream.
    """

    recomputable: tuple[str, ...] = ("memory", "_rows", "_fresh")

    def __init__(self, base: Scorer | None, section: MemorySection, start: Start) -> None:
        self.base, self.section, self.start = base, section, start
        self.vocab_size = start.vocab_size
        if base is not None:
            self.recomputable += tuple(f"base.{name}" for name in base.recomputable)
        # Targets of the stream before, and from the second stream of one length on what each begins with.
        self._fresh: tuple[int, Any] = 0, None

    def begin(self, first: int, targets: int) -> None:
        """Forget the stream before."""
        if self.base is not None:
            self.base.begin(first, targets)
        known, fresh = self._fresh
        if known != targets or fresh is None:
            self.memory = Memory(self.section, self.start, targets + 1)
            # Reading stored text takes a while, but to keep what it made takes as much main memory again: an
            # audit has many streams, an evaluation one.
            self._fresh = targets, self.memory.snapshot() if known == targets else None
        else:
            self.memory.restore(fresh)
        self.memory.receive(np.array([first], np.uint16))
        self._rows: tuple[bytes, Any] | None = None

    def wanted(self) -> int:
        """What the base wants; some thousand targets for a memory alone."""
        return 4096 if self.base is None else self.base.wanted()

    def distributions(self, given: Tensor) -> Tensor:
        tokens = given.cpu().numpy().astype(np.uint16)
        return torch.from_numpy(self.memory.distributions(tokens, self._model(tokens)))

    def losses(self, block: Tensor) -> Tensor:
        tokens = block.cpu().numpy().astype(np.uint16)
        return torch.from_numpy(self.memory.losses(tokens, self._model(tokens[:-1])))

    def receive(self, recorded: Recorded) -> None:
        """Learn the text; what the base had said of it is asked for again if another rank was asked."""
        self.memory.receive(recorded.tokens, self._model(recorded.tokens[:-1]))
        self._rows = None
        if self.base is not None:
            self.base.receive(recorded)

    def state_digest(self) -> str:
        """A fingerprint of the base, and of all text that the memory has read."""
        base = "" if self.base is None else self.base.state_digest()
        return hashlib.sha256((base + self.memory.digest()).encode()).hexdigest()

    def snapshot(self) -> Any:
        return None if self.base is None else self.base.snapshot(), self.memory.snapshot()

    def restore(self, snapshot: Any) -> None:
        base, memory = snapshot
        if self.base is not None:
            self.base.restore(base)
        self.memory.restore(memory)
        self._rows = None

    def _model(self, given: np.ndarray) -> np.ndarray | None:
        """The base's probabilities (n, V) of the targets after the first n - 1, computed once."""
        if self.base is None:
            return None
        if self._rows is None or self._rows[0] != given.tobytes():
            logs = self.base.distributions(torch.from_numpy(given.astype(np.int64)))
            self._rows = given.tobytes(), logs.detach().float().exp().cpu().numpy()
        return self._rows[1]
