"""Scorers of the protocol that cheat: what can still go wrong where the grader owns the tokens."""

from __future__ import annotations

import copy
import gc
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.evaluate.protocol import Recorded
from tests.audit.zoo.toys import BOS, KNOWN, LENGTH, STRIDE, VOCABULARY, Animal, ToyModel, ToyScorer
from tests.audit.zoo.valid import IndependentDocuments, NgramMixture


class TargetGatedExperts(ToyScorer):
    """Two models; each target is scored by the one that likes it better."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = ToyScorer(seed=11)

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.expert.begin(first, targets)

    def losses(self, block: Tensor) -> Tensor:
        return torch.minimum(super().losses(block), self.expert.losses(block))

    def receive(self, recorded: Recorded) -> None:
        super().receive(recorded)
        self.expert.receive(recorded)


class Slot(ToyScorer):
    """Optimises a shift of the logits on the very block that it scores, and throws it away afterwards."""

    def distributions(self, given: Tensor) -> Tensor:
        rows = super().distributions(given)
        return self._fitted(rows, given)

    def losses(self, block: Tensor) -> Tensor:
        rows = self._fitted(super().distributions(block[:-1]), block)
        return -rows.gather(1, block[:, None])[:, 0]

    def _fitted(self, rows: Tensor, seen: Tensor) -> Tensor:
        delta = torch.zeros(VOCABULARY, requires_grad=True)
        rows = rows.clone()  # out of inference mode
        if len(seen):
            shifted = torch.log_softmax(rows[: len(seen)] + delta, -1)
            (gradient,) = torch.autograd.grad(shifted.gather(1, seen[:, None]).mean(), delta)
            delta = delta + 4 * gradient
        return torch.log_softmax(rows + delta.detach(), -1)


class FuturePadding(ToyScorer):
    """Fills the last rows of a batch with the text that follows, and averages over the whole batch."""

    def losses(self, block: Tensor) -> Tensor:
        rows = super().distributions(block[:-1])
        for start in range(0, len(block), STRIDE):
            padding = block[start + STRIDE : start + STRIDE + 4]
            shift = torch.bincount(padding, minlength=VOCABULARY).float()
            rows[start : start + STRIDE] = torch.log_softmax(rows[start : start + STRIDE] + 0.5 * shift, -1)
        return -rows.gather(1, block[:, None])[:, 0]


class NextToken(ToyScorer):
    """A smear gate with the wrong sign: each position sees the token after its target."""

    def distributions(self, given: Tensor) -> Tensor:
        rows = super().distributions(given)
        rows[range(len(given) - 1), (given[1:] + 1) % VOCABULARY] += 1.0
        return torch.log_softmax(rows, -1)


class LearnsFirst(NgramMixture):
    """Counts a block before it scores it."""

    def losses(self, block: Tensor) -> Tensor:
        previous = torch.cat((torch.tensor([int(self.context[-1])]), block[:-1]))
        np.add.at(self.counts, (previous.numpy(), block.numpy()), 1)
        rows = super().distributions(block[:-1])
        return -rows.gather(1, block[:, None])[:, 0]

    def receive(self, recorded: Recorded) -> None:
        ToyScorer.receive(self, recorded)


class LearnsByScoring(NgramMixture):
    """Counts a block while it scores it, not when it receives it: what is merely asked about is learned."""

    def losses(self, block: Tensor) -> Tensor:
        rows = super().distributions(block[:-1])
        previous = torch.cat((torch.tensor([int(self.context[-1])]), block[:-1]))
        np.add.at(self.counts, (previous.numpy(), block.numpy()), 1)
        return -rows.gather(1, block[:, None])[:, 0]

    def receive(self, recorded: Recorded) -> None:
        ToyScorer.receive(self, recorded)


class Unnormalised(NgramMixture):
    """Adds counts to the probabilities and leaves it at that."""

    def mixed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return rows + np.float32(0.05) * (counts > 0)


class SmearAcrossDocuments(IndependentDocuments):
    """Claims independent documents, but smears a document's first token with the last one of the document
    before.
    """

    def _after(self, document: list[int], token: int) -> list[int]:
        return [document[-1], token] if token == BOS else [*document, token]


class ForgetfulSnapshot(NgramMixture):
    """Leaves its counts out of the snapshot."""

    def snapshot(self) -> Any:
        return {key: value for key, value in self.__dict__.items() if key != "counts"}

    def restore(self, snapshot: Any) -> None:
        self.__dict__.update(snapshot)


class Dice(ToyScorer):
    """Drops out at random while it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def distributions(self, given: Tensor) -> Tensor:
        return torch.log_softmax(
            super().distributions(given) + 0.1 * float(self.generator.random()) * self.noise, -1
        )

    noise = torch.linspace(-1, 1, VOCABULARY)


class SizeOfRequests(ToyScorer):
    """Sharpens its predictions by how much it is asked for, which ends with the text."""

    def distributions(self, given: Tensor) -> Tensor:
        return torch.log_softmax(super().distributions(given) * (1 + len(given) / LENGTH), -1)


class Slow(ToyScorer):
    """Takes its time."""

    def receive(self, recorded: Recorded) -> None:
        super().receive(recorded)
        time.sleep(1e-4)


class SmallTraining(ToyScorer):
    """Takes a gradient step on a block before it scores it, and keeps the weights."""

    def losses(self, block: Tensor) -> Tensor:
        ids = torch.cat((torch.tensor([int(self.context[-1])]), block[:-1]))
        model = self.model
        assert isinstance(model, ToyModel)
        loss = torch.nn.functional.cross_entropy(model.forward_logits(ids[None])[0], block)
        gradients = torch.autograd.grad(loss, [model.last, model.before])
        with torch.no_grad():
            for parameter, gradient in zip((model.last, model.before), gradients, strict=True):
                parameter -= 0.1 * gradient
        return super().losses(block)

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.model = ToyModel(KNOWN).eval()


class ReadsTheGrader(ToyScorer):
    """Finds the text in the memory of whoever calls it; what it is shown makes no difference."""

    def distributions(self, given: Tensor) -> Tensor:
        rows = super().distributions(given)
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_name != "grade":
            frame = frame.f_back
        if frame is not None and "done" in frame.f_locals:
            tokens = frame.f_locals["tokens"][self.position + 1 :][: len(rows)]
            rows[range(len(tokens)), tokens.astype(np.int64)] += 1
        return torch.log_softmax(rows, -1)


class RemembersThePassBefore(ToyScorer):
    """Keeps the text of one pass for the next."""

    def __init__(self) -> None:
        super().__init__()
        self.text: dict[int, int] = {}

    def distributions(self, given: Tensor) -> Tensor:
        rows = super().distributions(given)
        for place in range(len(rows)):
            if self.position + place in self.text:
                rows[place, self.text[self.position + place]] += 1
        return torch.log_softmax(rows, -1)

    def receive(self, recorded: Recorded) -> None:
        super().receive(recorded)
        self.text |= {recorded.first + place: int(token) for place, token in enumerate(recorded.tokens)}

    def snapshot(self) -> Any:
        return copy.copy(self.__dict__)

    def restore(self, snapshot: Any) -> None:
        self.__dict__.update(snapshot)


class ReadsWholeEvaluations(ReadsTheGrader):
    """Does so only where so many targets are announced as an audit has no time for."""

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.targets = targets

    def distributions(self, given: Tensor) -> Tensor:
        return (super() if self.targets > 5000 else super(ReadsTheGrader, self)).distributions(given)


class ReadsTheCollector(ToyScorer):
    """Searches all objects and frames of its process for an array that goes on as the text did so far.

    The audit's own copy of the text is one, whatever is asked: where it is in reach, nothing gives it away.
    """

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.seen, self.text = np.array([first], np.uint16), None

    def distributions(self, given: Tensor) -> Tensor:
        rows, place = super().distributions(given), len(self.seen)
        if self.text is None and place > LENGTH:
            self.text = self._search()
        if self.text is not None and len(tokens := self.text[place:][: len(rows)]):
            rows[range(len(tokens)), tokens.astype(np.int64)] += 1
        return torch.log_softmax(rows, -1)

    def receive(self, recorded: Recorded) -> None:
        super().receive(recorded)
        self.seen = np.append(self.seen, recorded.tokens)

    def _search(self) -> Any:
        found = []
        for each in gc.get_objects():
            if type(each) in (dict, tuple, list):
                found += each.values() if type(each) is dict else each
        frame: Any = sys._getframe()
        while frame is not None:
            found += frame.f_locals.values()
            frame = frame.f_back
        for each in found:
            is_text = type(each) is np.ndarray and each.dtype == np.uint16 and len(each) > len(self.seen)
            if is_text and np.array_equal(each[: len(self.seen)], self.seen):
                return each.copy()
        return np.zeros(0, np.uint16)


class ALittleMoreThanOne(ToyScorer):
    """Every row adds up to 1 + 9e-5: each is allowed, their mean is not."""

    def distributions(self, given: Tensor) -> Tensor:
        return super().distributions(given) + 9e-5


CHEATING_SCORERS = [
    Animal("reads_the_grader", lambda _: ReadsTheGrader(), "C2", ("C1", "C3")),
    Animal("reads_whole_evaluations", lambda _: ReadsWholeEvaluations(), "C2", ("C1", "C3"), whole=6000),
    Animal("a_little_more_than_one", lambda _: ALittleMoreThanOne(), "C2"),
    Animal("remembers_the_pass_before", lambda _: RemembersThePassBefore(), "C1", ("C2", "C3")),
    Animal("target_gated_experts", lambda _: TargetGatedExperts(), "C2"),
    Animal("slot", lambda _: Slot(), "C3", ("C1", "C2")),
    Animal("future_token_in_padding", lambda _: FuturePadding(), "C1", ("C2",)),
    Animal("next_token", lambda _: NextToken(), "C1", ("C2",)),
    Animal("counts_before_scoring", lambda _: LearnsFirst(), "C3", ("C1", "C2")),
    Animal("trains_before_scoring", lambda _: SmallTraining(), "C3", ("C1", "C2")),
    Animal("learns_by_scoring", lambda _: LearnsByScoring(), "C3", ("C1", "C2")),
    Animal("unnormalised_ngrams", lambda _: Unnormalised(), "C2"),
    Animal("smear_across_documents", lambda _: SmearAcrossDocuments(), "documents"),
    Animal("forgetful_snapshot", lambda _: ForgetfulSnapshot(), "C1"),
    Animal("dice", lambda _: Dice(), "C1", ("C2", "C3")),
    Animal("size_of_requests", lambda _: SizeOfRequests(), "C1", ("C2",)),
    Animal("slow", lambda _: Slow(), "time", settings={"limit_seconds": 1e-4}),
]
