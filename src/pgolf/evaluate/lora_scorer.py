"""Scorers whose model learns through low-rank adapters: over the whole stream, per document, in phases.

All of them learn on a fixed grid, after every ``ttt.lora.chunk_tokens`` targets of the stream. Blocks end
there, so it does not matter in how many requests the targets between two grid points are scored. Nor by whom:
the ranks of a team share these requests, and the sequences of every training batch.

*lora*           The adapters last.

*lora_document*  The adapters belong to a document, and go with it. Target t, predicted from the tokens 0 to
                 t, lies in a new document as soon as one of these is its first token (BOS); BOS itself is a
                 target of the document before. So targets after a BOS inside a block are scored by the base
                 model, those up to it by the adapted one: which one depends on the tokens before the target
                 alone. At a grid point the adapters learn from the part of the chunk that lies in the
                 document in progress; from a document without a grid point inside nothing is learned. What
                 stands before the first BOS counts as a document.

*phased*         As lora_document; and at the end of each phase of the announced stream the base weights
                 learn, as in method "full", from text that is recorded by then. The adapters in use go on
                 from the new base.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pgolf.data.shards import Tokens
from pgolf.evaluate.lora import Adapters
from pgolf.evaluate.protocol import Recorded
from pgolf.evaluate.scorer import LearningScorer, WindowScorer
from pgolf.evaluate.ttt import Adapter, ScoredChunk, Transcript, lr_factor
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.team import SOLO, Team


class LoraScorer(LearningScorer):
    """Adapters that learn from each chunk of the stream, and last.

    Args:
        network, recipe, team: see ``LearningScorer``.
        document_start: the token that begins a document; None takes the stream's first.
    """

    learners: tuple[str, ...] = ("adapters",)

    def __init__(
        self, network: GPT, recipe: Recipe, document_start: int | None = None, team: Team = SOLO
    ) -> None:
        super().__init__(network, recipe, team)
        self.base, self.document_start = network, document_start

    def begin(self, first: int, targets: int) -> None:
        """Forget the text and everything that was learned."""
        super().begin(first, targets)
        self.adapters = Adapters(self.base, self.recipe.ttt, self.length, self.team)
        self.network = self.adapters.student
        self.transcript = Transcript(first, self._reach())

    def steady(self) -> int:
        """Up to where something is learned."""
        return min(self._stops()) - self.position

    def receive(self, recorded: Recorded) -> None:
        """Take the text; learn from it at the end of a chunk, unless nothing is left to score."""
        stops = self._stops()
        super().receive(recorded)
        assert self.position <= min(stops), "a block must end where something is learned"
        self.transcript.add(recorded)
        if self.position == stops[0] < self.targets:
            self._adapt()

    def _stops(self) -> list[int]:
        """Targets after the position at which something is learned; the next chunk's end comes first."""
        size = self.recipe.ttt.lora.chunk_tokens
        return [(self.position // size + 1) * size]

    def _reach(self) -> int | None:
        """How many of the last targets lessons are made of; None for all."""
        return self.recipe.ttt.lora.chunk_tokens + self.length

    def _document(self) -> int:
        """The first target that the adapters may learn from."""
        return 0

    def _adapt(self) -> None:
        size = self.recipe.ttt.lora.chunk_tokens
        known = self.position - self._document()
        if known == 0:
            return
        targets = min(size, known)
        lesson = self.transcript.lesson(targets, min(self.length, known - targets))
        self.adapters.adapt(lesson, self._rate(self.position // size - 1, -(-self.targets // size)))
        self._forget_weights()

    def _rate(self, chunk: int, chunks: int) -> float:
        return lr_factor(self.recipe.ttt, chunk, chunks)


class DocumentScorer(LoraScorer):
    """Adapters that learn from the document in progress, and are reset at the next."""

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.bos = first if self.document_start is None else self.document_start
        self.document = 0

    def receive(self, recorded: Recorded) -> None:
        """Take the text; forget the old document where a new one begins, then learn."""
        starts = np.flatnonzero(recorded.tokens == self.bos)
        if len(starts):
            # The target after the last BOS.
            self.document = recorded.first + int(starts[-1]) + 1
            if self.adapters.learned:
                self.adapters.reset()
                self._forget_weights()
        super().receive(recorded)

    def ahead(self, text: Tokens) -> Self:
        """See ``Scorer``; beyond a document's start the base scores: what a reset makes of the student."""
        other = super().ahead(text)
        if other.network is not self.base and self.adapters.learned and self.bos in text:
            other.network, other._digest = self.base, None
        return other

    def _score(self, block: Tokens, score: Callable[..., Tensor]) -> Tensor:
        rows = super()._score(block, score)
        # The block's last token is only a target, and may be a placeholder.
        starts = np.flatnonzero(block[:-1] == self.bos)
        if not len(starts) or not self.adapters.learned or self.network is self.base:
            return rows
        new = int(starts[0]) + 1
        # The whole block goes through both: how windows share passes, and so rounding, depends on no token.
        fresh = copy.copy(self)
        fresh.network = self.base
        return torch.cat([rows[:new], WindowScorer._score(fresh, block, score)[new:]])

    def _document(self) -> int:
        return self.document

    def _rate(self, chunk: int, chunks: int) -> float:
        return 1.0


class PhasedScorer(DocumentScorer):
    """Adapters per document on base weights that learn at the end of each phase."""

    learners = ("base_adapter", "adapters")  # The adapters are merged into the base.

    def begin(self, first: int, targets: int) -> None:
        # A copy learns; the caller's weights stay, whatever interrupts this.
        self.base = self._source.clone().eval()
        super().begin(first, targets)
        phased = self.recipe.ttt.phased
        ends = [int(targets * phased.share * phase / phased.phases) for phase in range(1, phased.phases + 1)]
        self.phase_ends = sorted({end for end in ends if 0 < end < targets})
        # The schedule of learning rates ends after the last phase.
        parts = len(self.phase_ends) + 1
        self.base_adapter = Adapter(self.base, self.recipe.ttt, self.length, parts, self.team)

    def receive(self, recorded: Recorded) -> None:
        """As for a document; then let the base learn, at the end of a phase."""
        super().receive(recorded)
        if self.position in self.phase_ends:
            self._adapt_base(self.phase_ends.index(self.position))

    def _stops(self) -> list[int]:
        return [*super()._stops(), *(end for end in self.phase_ends if end > self.position)]

    def _reach(self) -> int | None:
        return None

    def _adapt_base(self, phase: int) -> None:
        of_phase = self.recipe.ttt.phased.text == "phase" and phase
        begin = self.phase_ends[phase - 1] if of_phase else 0
        self.base_adapter.adapt(ScoredChunk(phase, self.transcript.last(self.position - begin)))
        self.base.eval()
        self.adapters.merge()
        self._forget_weights()


LORA_SCORERS: Mapping[str, type[LoraScorer]] = {
    "lora": LoraScorer,
    "lora_document": DocumentScorer,
    "phased": PhasedScorer,
}
"""The scorer of each ``ttt.method`` but "full"."""
