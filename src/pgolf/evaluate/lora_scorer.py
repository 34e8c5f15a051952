"""Scorers whose model learns through low-rank adapters: over the whole stream, per document, in phases.

All of them learn at the end of a chunk of targets. Where it will end is known when it begins: after
``ttt.lora.chunk_tokens`` targets, a fixed grid over the stream, or where there is a ``chunk_schedule`` after
as many as the position in the document asks for, in which the chunk begins. Blocks end there too, so it does
not matter in how many requests a chunk is scored. Nor by whom: the ranks of a team share these requests, and
the sequences of every training batch.

*lora*           The adapters last.

*lora_document*  The adapters belong to a document, and go with it. Target t, predicted from the tokens 0 to
                 t, lies in a new document as soon as one of these is its first token (BOS); BOS itself is a
                 target of the document before. So targets after a BOS inside a block are scored by the base
                 model, those up to it by the adapted one: which one depends on the tokens before the target
                 alone. At the end of a chunk the adapters learn from the part of it that lies in the
                 document in progress; from a document in which no chunk ends nothing is learned. What stands
                 before the first BOS counts as a document.

*phased*         As lora_document; and at the end of each phase of the announced stream the base weights
                 learn, as in method "full", from text that is recorded by then. The adapters in use go on
                 from the new base.

What is learned is the loss of a chunk's targets. With ``ttt.lora.gradient = "scoring"`` it is that of the
windows that scored them: where one request covered the chunk, its graph is still there, and the targets, now
recorded, are put to its logits; elsewhere, as in strict mode, the windows are read once more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.data.shards import Tokens
from pgolf.evaluate.lora import Adapters
from pgolf.evaluate.protocol import Recorded
from pgolf.evaluate.score import batches, window_logits
from pgolf.evaluate.scorer import LearningScorer, WindowScorer
from pgolf.evaluate.ttt import Adapter, ScoredChunk, Transcript, lr_factor
from pgolf.evaluate.windows import Window, windows_between
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
    recomputable = (*LearningScorer.recomputable, "_kept")
    _kept: tuple[int, Tokens, Tensor] | None

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
        self.chunk = 0, self._chunk_tokens()

    def steady(self) -> int:
        """Up to where something is learned."""
        return min(self._stops()) - self.position

    def receive(self, recorded: Recorded) -> None:
        """Take the text; learn from it at the end of a chunk, unless nothing is left to score."""
        stops = self._stops()
        super().receive(recorded)
        assert self.position <= min(stops), "a block must end where something is learned"
        self.transcript.add(recorded)
        if self.position == self.chunk[1]:
            if self.position < self.targets:
                self._adapt()
            self.chunk = self.position, self.position + self._chunk_tokens()

    def _stops(self) -> list[int]:
        """Targets at which something is learned; the chunk's end comes first."""
        return [self.chunk[1]]

    def _chunk_tokens(self) -> int:
        """How many targets the chunk that begins here has."""
        return self.recipe.ttt.lora.chunk_tokens

    def _reach(self) -> int | None:
        """How many of the last targets lessons are made of; None for all."""
        lora = self.recipe.ttt.lora
        return max(lora.chunk_tokens, *(size for size, _ in lora.chunk_schedule), 1) + self.length

    def _document(self) -> int:
        """The first target that the adapters may learn from."""
        return 0

    def _adapt(self) -> None:
        size = self.recipe.ttt.lora.chunk_tokens
        known = self.position - self._document()
        if known == 0:
            return
        targets = min(self.position - self.chunk[0], known)
        rate = self._rate(self.position // size - 1, -(-self.targets // size))
        if self.recipe.ttt.lora.gradient == "scoring":
            windows = windows_between(self.position - targets, self.position, self.length, self.stride)
            self.adapters.follow(lambda part: self._again(windows[part]) / targets, len(windows), rate)
        else:
            lesson = self.transcript.lesson(targets, min(self.length, known - targets))
            self.adapters.adapt(lesson, rate)
        self._forget_weights()

    def _again(self, windows: list[Window]) -> Tensor:
        """What recorded targets cost with the weights of now, by the windows that scored them; a graph."""
        first, end, begin = windows[0].first, windows[-1].end, windows[0].start
        text = self.transcript.last(self.position - begin)
        kept, self._kept = self._kept, None
        if (
            kept is not None
            and self.chunk[0] <= kept[0] <= first
            and np.array_equal(kept[1], self.transcript.last(self.position - kept[0])[1:-1])
        ):
            logits = kept[2][first - kept[0] : end - kept[0]]
        else:
            moved = [Window(each.start - begin, each.end - begin, each.first - begin) for each in windows]
            groups = batches(moved, self.batch)
            logits = torch.cat([window_logits(self.network, text, group, self.length) for group in groups])
        wanted = torch.from_numpy(text[first + 1 - begin : end + 1 - begin].astype(np.int64))
        return F.cross_entropy(logits, wanted.to(logits.device), reduction="none")

    def _logits(self, block: Tokens) -> Tensor:
        """See ``WindowScorer``; keeps the graph, for when the targets are recorded."""
        if self.recipe.ttt.lora.gradient != "scoring" or self.network is not self.adapters.student:
            return super()._logits(block)
        with torch.enable_grad():
            logits = self._read_windows(block)
        self._kept = self.position, block[:-1], logits
        return logits.detach()

    def _forget_weights(self) -> None:
        super()._forget_weights()
        self._kept = None

    def _rate(self, chunk: int, chunks: int) -> float:
        return lr_factor(self.recipe.ttt, chunk, chunks)


class DocumentScorer(LoraScorer):
    """Adapters that learn from the document in progress, and are reset at the next."""

    def begin(self, first: int, targets: int) -> None:
        self.document = 0
        self.bos = first if self.document_start is None else self.document_start
        super().begin(first, targets)

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
        if other.network is self.adapters.student and self.adapters.learned and self.bos in text:
            other.network, other._digest = self.adapters.plain, None
        return other

    def _logits(self, block: Tokens) -> Tensor:
        rows = super()._logits(block)
        # The block's last token is only a target, and may be a placeholder.
        starts = np.flatnonzero(block[:-1] == self.bos)
        if not len(starts) or not self.adapters.learned or self.network is not self.adapters.student:
            return rows
        new = int(starts[0]) + 1
        # The whole block goes through both: how windows share passes, and so rounding, depends on no token.
        fresh = copy.copy(self)
        fresh.network = self.adapters.plain
        return torch.cat([rows[:new], WindowScorer._logits(fresh, block)[new:]])

    def _document(self) -> int:
        return self.document

    def _chunk_tokens(self) -> int:
        known = self.position - self.document
        for size, end in self.recipe.ttt.lora.chunk_schedule:
            if known < end or not end:
                return size
        return super()._chunk_tokens()

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
