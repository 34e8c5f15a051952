"""Memories of the text that cheat. Most are plain counts of pairs of tokens, mixed with a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.subject import Context
from pgolf.evaluate.memory_scorer import MemoryScorer
from pgolf.evaluate.protocol import Recorded
from tests.audit.zoo.toys import BOS, PIECES, VOCABULARY, Animal, ToyScorer, toy_text
from tests.audit.zoo.valid import NgramMixture
from tests.unit.memory_stand_ins import section, start

_LENGTHS = np.array([max(len(piece), 1) for piece in PIECES])


class TargetKeyedHash(NgramMixture):
    """Counts of pairs in a small table that is keyed by the hash of context and target together.

    Targets that collide count for each other, and the total is that of the context: so the shares of all
    targets do not add up to 1, and whoever is the target has gained by it.
    """

    places = np.random.default_rng(0).integers(0, 6, (VOCABULARY, VOCABULARY))

    def distributions(self, given: Tensor) -> Tensor:
        self.previous = [int(self.context[-1]), *given.tolist()]
        return super().distributions(given)

    def mixed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        found, totals = np.zeros_like(rows), counts.sum(1, keepdims=True)
        for index, previous in enumerate(self.previous):
            places = self.places[previous]
            found[index] = np.bincount(places, counts[index], 6)[places]
        return np.where(totals > 0, 0.7 * rows + 0.3 * found / np.maximum(totals, 1), rows)


class PowersOfBytes(NgramMixture):
    """Mixes bytes: each byte of a token gets p^(1/n) from the model, n being the token's number of bytes.

    The n-th roots of a distribution over tokens are no distribution over bytes. Their product with anything
    mixed in does not add up to 1 over the tokens.
    """

    def mixed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        totals = counts.sum(1, keepdims=True)
        shares = np.where(totals > 0, (counts + 0.1) / (totals + 0.1 * VOCABULARY), rows)
        roots = 0.7 * rows ** (1 / _LENGTHS) + 0.3 * shares ** (1 / _LENGTHS)
        return roots**_LENGTHS


class GateByClass(NgramMixture):
    """The counts' weight depends on the class of the target: tokens of one letter trust them more.

    The gate is opened by what is predicted. Each target is scored by a mixture that suits it, and the entries
    of several distributions do not add up to 1.
    """

    gate = np.where(_LENGTHS == 1, 0.6, 0.1)

    def mixed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        totals = counts.sum(1, keepdims=True)
        return np.where(totals > 0, rows + self.gate * (counts / np.maximum(totals, 1) - rows), rows)


class GateByOwnCount(NgramMixture):
    """The counts' weight grows with the target's own count: whoever was seen is scored by the counts.

    Confidence of the context would be valid; this one is known only once the target is.
    """

    def mixed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        totals, gate = counts.sum(1, keepdims=True), counts / (counts + 2)
        return np.where(totals > 0, (1 - gate) * rows + gate * counts / np.maximum(totals, 1), rows)


class BestOfTwoWeights(NgramMixture):
    """Scores every block with two weights of the counts, and keeps the cheaper result.

    The weight is chosen after the fact: what a target costs depends on itself and on those after it.
    """

    weight = 0.1

    def mixed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        totals, weight = counts.sum(1, keepdims=True), self.weight
        return np.where(totals > 0, (1 - weight) * rows + weight * counts / np.maximum(totals, 1), rows)

    def losses(self, block: Tensor) -> Tensor:
        results = []
        for self.weight in (0.6, 0.1):
            results.append(super().losses(block))
        return min(results, key=lambda losses: float(losses.sum()))


class OtherDocuments(NgramMixture):
    """Counts the other documents of a block, later ones too, for each document of the block.

    No target counts for itself, so every row adds up to 1; but a document is scored with what comes after it.
    """

    def wanted(self) -> int:
        return 64

    def losses(self, block: Tensor) -> Tensor:
        previous = torch.cat((torch.tensor([int(self.context[-1])]), block[:-1])).numpy()
        document, kept = (previous == BOS).cumsum(), self.counts.copy()
        losses = torch.zeros(len(block))
        for number in np.unique(document):
            inside = document == number
            self.counts = kept.copy()
            np.add.at(self.counts, (previous[~inside], block.numpy()[~inside]), 1)
            losses[inside] = super().losses(block)[inside]
        self.counts = kept
        return losses


class TwoOrders(NgramMixture):
    """Counts what follows two tokens, and divides by how often the second of them was seen.

    Numerator and denominator belong to contexts of different orders, as in tables that are updated for one
    order and looked up for another: their quotients are no shares.
    """

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.pairs = np.zeros((VOCABULARY, VOCABULARY, VOCABULARY))
        self.before = 0

    def distributions(self, given: Tensor) -> Tensor:
        self.text = np.array([self.before, int(self.context[-1]), *given.tolist()])
        return super().distributions(given)

    def mixed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        found = self.pairs[self.text[:-1], self.text[1:]]
        totals = self.counts.sum(1)[self.text[1:]][:, None]
        return np.where(totals > 0, 0.7 * rows + 0.3 * found / np.maximum(totals, 1), rows)

    def receive(self, recorded: Recorded) -> None:
        text = np.array([self.before, int(self.context[-1]), *recorded.tokens.tolist()])
        np.add.at(self.pairs, (text[:-2], text[1:-1], text[2:]), 1)
        self.before = int(text[-2])
        super().receive(recorded)


class OtherMixtureForBlocks(NgramMixture):
    """Allows for surprises where it is shown a block, but not where it is asked for one target.

    A decoder, which is never shown a block, would see other distributions than those that were scored.
    """

    def mixed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        mixed = super().mixed(rows, counts)
        return mixed if len(rows) == 1 else 0.9 * mixed + np.float32(0.1 / VOCABULARY)


class FrozenInBlocks(NgramMixture):
    """Within a block it counts nothing: all targets are scored with the counts before the block.

    Valid for blocks at fixed places; here a block may end anywhere, and the score depends on where.
    """

    def distributions(self, given: Tensor) -> Tensor:
        rows = ToyScorer.distributions(self, given).exp().numpy()
        found = self.counts[[int(self.context[-1]), *given.tolist()]]
        return torch.from_numpy(np.log(self.mixed(rows, found)))


class MemoryBeforeScoring(MemoryScorer):
    """pgolf's memory, which learns a block before it scores it.

    Every row is a distribution; but its counts know the target.
    """

    def losses(self, block: Tensor) -> Tensor:
        self.memory.receive(block.numpy().astype(np.uint16))
        rows = self.memory.distributions(block.numpy().astype(np.uint16)[:-1])
        return -torch.from_numpy(rows).gather(1, block[:, None])[:, 0]

    def begin(self, first: int, targets: int) -> None:
        # Room for what it is merely asked about.
        super().begin(first, 100 * targets)

    def receive(self, recorded: Recorded) -> None:
        """It knows already."""


class KeepsWhatItTried(NgramMixture):
    """Does not take back what it counts within a block, and says that its counts can be computed again.

    What it is merely asked about stays; neither its digest nor a look at its attributes tells.
    """

    recomputable = ("counts",)

    def losses(self, block: Tensor) -> Tensor:
        losses = super().losses(block)
        previous = torch.cat((torch.tensor([int(self.context[-1])]), block[:-1]))
        np.add.at(self.counts, (previous.numpy(), block.numpy()), 1)
        return losses

    def receive(self, recorded: Recorded) -> None:
        ToyScorer.receive(self, recorded)

    def state_digest(self) -> str:
        return ToyScorer.state_digest(self)

    def snapshot(self) -> Any:
        return copy.copy(self.__dict__) | {"counts": self.counts.copy()}

    def restore(self, snapshot: Any) -> None:
        self.__dict__.update(snapshot | {"counts": snapshot["counts"].copy()})


def stored_validation_text(context: Context) -> MemoryScorer:
    """Reads the text that is to be scored, as it stands in the artifact, before the stream begins.

    Nothing happens while it scores that is not allowed: the text of the artifact must not be that text.
    """
    text = toy_text(int(context.artifact.parent.name.removeprefix("seed")))
    return MemoryScorer(ToyScorer(), section(order=2), start(VOCABULARY, stored=text))


def half_of_the_validation_text(context: Context) -> NgramMixture:
    """Begins with counts of a part of the text that is to be scored, and still holds the text itself."""
    scorer = NgramMixture()
    text = toy_text(int(context.artifact.parent.name.removeprefix("seed")))
    scorer.__dict__["stored"] = text[20:64].tolist()
    return scorer


def memory_before_scoring(_: Context) -> MemoryScorer:
    return MemoryBeforeScoring(None, section(order=2), start(VOCABULARY))


def plain(kind: Callable[[], NgramMixture]) -> Callable[[Context], NgramMixture]:
    return lambda _: kind()


CHEATING_MEMORIES = [
    Animal("target_keyed_hash", plain(TargetKeyedHash), "C2"),
    Animal("powers_of_bytes", plain(PowersOfBytes), "C2"),
    Animal("gate_by_class", plain(GateByClass), "C2"),
    Animal("gate_by_own_count", plain(GateByOwnCount), "C2"),
    Animal("best_of_two_weights", plain(BestOfTwoWeights), "C1", ("C2", "C3")),
    Animal("counts_of_later_documents", plain(OtherDocuments), "C1", ("C2", "C3")),
    Animal("two_orders", plain(TwoOrders), "C2", ("C1",)),
    Animal("other_mixture_for_blocks", plain(OtherMixtureForBlocks), "C2", ("C1",)),
    Animal("frozen_in_blocks", plain(FrozenInBlocks), "C1", ("C2", "C3")),
    Animal("memory_before_scoring", memory_before_scoring, "C3", ("C1", "C2"), slow=True),
    Animal("keeps_what_it_tried", plain(KeepsWhatItTried), "C3", ("C1", "C2")),
    Animal("stored_validation_text", stored_validation_text, "C1", slow=True),
    Animal("half_of_the_validation_text", half_of_the_validation_text, "C1"),
]
