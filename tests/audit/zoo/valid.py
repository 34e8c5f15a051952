"""Valid subjects, which no audit may accuse."""

from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.subject import Claim, Context
from pgolf.data.shards import Tokens
from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.memory_scorer import MemoryScorer
from pgolf.evaluate.protocol import Recorded, Scorer
from tests.audit.zoo.toys import (
    BOS,
    CHUNK,
    KNOWN,
    LENGTH,
    PIECES,
    VOCABULARY,
    Animal,
    ToyModel,
    ToyScorer,
    chunks,
    claim_of,
    student,
    toy_costs,
    toy_logits,
    toy_text,
    train,
)
from tests.unit.memory_stand_ins import section
from tests.unit.memory_stand_ins import start as memory_start
from tests.unit.stand_ins import random_tokens, small_model, small_recipe


def library(mode: str, *settings: str) -> Any:
    """One of pgolf's own scorers around a small transformer."""
    recipe = small_recipe(
        *(f"model.vocab_size={VOCABULARY}", "model.layers=1", "evaluate.stride=8", "evaluate.batch=8"),
        *("ttt.frozen_blocks=0", "ttt.epochs=1", "ttt.batch_sequences=4"),
        *settings,
    )
    network = small_model(recipe)
    return lambda _: build_scorer(network, recipe, mode, BOS)


def beside_ttt() -> Any:
    """A memory beside test-time training, as an evaluation makes it."""
    recipe = small_recipe(
        *(f"model.vocab_size={VOCABULARY}", "model.layers=1", "evaluate.stride=8", "evaluate.batch=8"),
        *("ttt.frozen_blocks=0", "ttt.epochs=1", "ttt.batch_sequences=4", 'ttt.optimizer="sgd"'),
        *("memory.enabled=true", "memory.order=2"),
    )
    network, begin = small_model(recipe), memory_start(VOCABULARY)
    return lambda _: build_scorer(network, recipe, "ttt", BOS, memory=begin)


class NgramMixture(ToyScorer):
    """The model mixed with counts of what followed each token so far; the counts are part of the
    distribution.
    """

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.counts = np.zeros((VOCABULARY, VOCABULARY))

    def distributions(self, given: Tensor) -> Tensor:
        rows = super().distributions(given).exp().numpy()
        text = [int(self.context[-1]), *given.tolist()]
        found, counts = np.zeros_like(rows), self.counts.copy()
        for place, previous in enumerate(text):
            if place:
                counts[text[place - 1], previous] += 1
            found[place] = counts[previous]
        return torch.from_numpy(np.log(self.mixed(rows, found)))

    def mixed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        totals = counts.sum(1, keepdims=True)
        return np.where(totals > 0, 0.7 * rows + 0.3 * counts / np.maximum(totals, 1), rows)

    def receive(self, recorded: Recorded) -> None:
        previous = np.concatenate([self.context[-1:], recorded.tokens[:-1]])
        np.add.at(self.counts, (previous, recorded.tokens), 1)
        super().receive(recorded)

    def state_digest(self) -> str:
        return str(hash(self.counts.tobytes()))


class IndependentDocuments(Scorer):
    """Sees the text of the document in progress only: the last two tokens, and how often each token occurred
    in it.
    """

    documents_independent = True
    vocab_size = VOCABULARY

    def __init__(self) -> None:
        self.last, self.before = (weights.detach().numpy() for weights in ToyModel(KNOWN).parameters())

    def begin(self, first: int, targets: int) -> None:
        self.document = [first]

    def wanted(self) -> int:
        return 20

    def distributions(self, given: Tensor) -> Tensor:
        document, rows = list(self.document), []
        for place in range(len(given) + 1):
            if place:
                document = self._after(document, int(given[place - 1]))
            logits = self.last[document[-1]] + np.log1p(np.bincount(document, minlength=VOCABULARY))
            rows.append(logits + self.before[document[-2]] if len(document) > 1 else logits)
        return torch.log_softmax(torch.from_numpy(np.stack(rows)).float(), -1)

    def receive(self, recorded: Recorded) -> None:
        for token in recorded.tokens.tolist():
            self.document = self._after(self.document, token)

    def state_digest(self) -> str:
        return "weights never change"

    def _after(self, document: list[int], token: int) -> list[int]:
        return [token] if token == BOS else [*document, token]


class Caching(ToyScorer):
    """Keeps the last result, as a cache of keys and values would; no result depends on it."""

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.kept: tuple[int, bytes, Tensor] | None = None

    def distributions(self, given: Tensor) -> Tensor:
        key = given.numpy().tobytes()
        if self.kept is None or self.kept[:2] != (self.position, key):
            self.kept = (self.position, key, super().distributions(given))
        return self.kept[2]


class LearningScorer(ToyScorer):
    """Test-time training through the adapter: learns in ``receive``, at fixed places of the text."""

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        if not hasattr(self, "source"):
            self.source = self.model
        self.model, self.optimizer = student(self.source)
        self.weights_changed()
        self.text = [first]

    def wanted(self) -> int:
        return min(super().wanted(), CHUNK - self.position % CHUNK)

    def receive(self, recorded: Recorded) -> None:
        super().receive(recorded)
        self.text += recorded.tokens.tolist()
        if self.position % CHUNK == 0:
            train(self.model, self.optimizer, np.array(self.text[-CHUNK - 1 :], dtype=np.uint16))
            self.weights_changed()

    def snapshot(self) -> Any:
        return copy.copy(self.__dict__) | {"text": list(self.text)}, copy.deepcopy(self.model)

    def restore(self, snapshot: Any) -> None:
        plain, model = snapshot
        self.__dict__.update(plain | {"text": list(plain["text"])})
        self.model, self.optimizer = student(model)
        self.weights_changed()


class Ppm(Scorer):
    """Prediction by partial matching (Cleary and Witten 1984; method C): the longest known context predicts,
    or escapes to the next shorter one, which is asked for tokens that no longer one has seen.
    """

    vocab_size = VOCABULARY
    order = 2

    def begin(self, first: int, targets: int) -> None:
        self.text = [first]
        self.counts: dict[tuple[int, ...], Counter[int]] = {}

    def wanted(self) -> int:
        return 20

    def distributions(self, given: Tensor) -> Tensor:
        rows, tokens = [self.row()], given.tolist()
        for token in tokens:
            self.learn(token)
            rows.append(self.row())
        for _ in tokens:
            self.forget()
        return torch.from_numpy(np.stack(rows)).log().float()

    def row(self) -> np.ndarray:
        row, left, free = np.zeros(VOCABULARY), 1.0, np.ones(VOCABULARY, np.bool_)
        for context in self.contexts():
            known = {token: count for token, count in self.counts.get(context, {}).items() if free[token]}
            if known:
                total = sum(known.values()) + len(known)
                for token, count in known.items():
                    row[token] = left * count / total
                left *= len(known) / total
                free[list(known)] = False
        row[free] = left / max(free.sum(), 1)
        return row / row.sum()

    def contexts(self) -> list[tuple[int, ...]]:
        return [
            tuple(self.text[len(self.text) - n :]) for n in range(self.order, -1, -1) if n <= len(self.text)
        ]

    def learn(self, token: int) -> None:
        for context in self.contexts():
            self.counts.setdefault(context, Counter())[token] += 1
        self.text.append(token)

    def forget(self) -> None:
        token = self.text.pop()
        for context in self.contexts():
            self.counts[context][token] -= 1
            # As if it had never been there: what is left has to be in the same order too.
            self.counts[context] += Counter()
            if not self.counts[context]:
                del self.counts[context]

    def receive(self, recorded: Recorded) -> None:
        for token in recorded.tokens.tolist():
            self.learn(token)

    def state_digest(self) -> str:
        return hashlib.sha256(repr((self.text, self.counts)).encode()).hexdigest()


def with_memory(base: Callable[[], Scorer] | None, mixing: str, stored: int | None = None) -> Any:
    """A memory beside a scorer, or alone; its stored text is of another seed than any that is audited."""

    def make(_: Context) -> Scorer:
        text = toy_text(1000 + stored)[:60] if stored is not None else random_tokens(0)
        begin = memory_start(VOCABULARY, stored=text)
        return MemoryScorer(None if base is None else base(), section(order=2, mixing=mixing), begin)

    return make


def sliding_evaluator(_: Context) -> Any:
    model = ToyModel(KNOWN)

    def evaluate(tokens: Tokens, byte_table: Any) -> Claim:
        nats, positions = [], []
        targets = len(tokens) - 1
        for start in range(0, max(targets - LENGTH, 0) + CHUNK, CHUNK // 4):
            end, first = min(start + LENGTH, targets), positions[-1] + 1 if positions else 0
            if first >= end:
                continue
            with torch.no_grad():
                costs = toy_costs(model, tokens[start : end + 1])
            nats += costs[first - start :].tolist()
            positions += list(range(first, end))
        return claim_of(nats, tokens, positions=np.array(positions))

    return evaluate


def ttt_evaluator(_: Context) -> Any:
    """Score a chunk, then learn from it, with a cosine over the announced chunks."""
    model = ToyModel(KNOWN)

    def evaluate(tokens: Tokens, byte_table: Any, announced: int, wanted: tuple[int, ...] = ()) -> Claim:
        pupil, optimizer = student(model)
        rows, total = [], -(-announced // CHUNK)
        for index, text in enumerate(chunks(tokens)):
            with torch.no_grad():
                rows.append(toy_logits(pupil, text).log_softmax(-1))
            optimizer.param_groups[0]["lr"] = 1 + math.cos(math.pi * index / total)
            train(pupil, optimizer, text)
        logs = torch.cat(rows)
        nats = -logs.gather(1, torch.from_numpy(tokens[1:].astype(np.int64))[:, None])[:, 0]
        return claim_of(
            nats, tokens, distributions={place: logs[place] for place in wanted if place < len(logs)}
        )

    return evaluate


ttt_evaluator.__dict__["periods"] = (CHUNK,)


def byte_evaluator(_: Context) -> Any:
    """Predicts the bytes of the text from the last byte, mixed with their frequencies so far; no token is
    predicted.
    """
    table = np.random.default_rng(0).random((257, 256)) + 0.1
    table /= table.sum(1, keepdims=True)

    def evaluate(tokens: Tokens, byte_table: Any, wanted: tuple[int, ...] = ()) -> Claim:
        counts, last, nats = np.ones(256), 256, []
        rows: dict[int, np.ndarray] = {}
        for place, token in enumerate(tokens[1:].tolist()):
            mixed = np.zeros((0, 256))
            for byte in PIECES[token]:
                mixed = np.vstack([mixed, np.log(0.5 * table[last] + 0.5 * counts / counts.sum())])
                counts[byte] += 1
                last = byte
            nats.append(-sum(row[byte] for row, byte in zip(mixed, PIECES[token], strict=True)))
            if place in wanted:
                rows[place] = mixed
        return claim_of(nats, tokens, byte_distributions=rows)

    return evaluate


VALID = [
    Animal("standard", library("standard"), slow=True),
    Animal("sliding", library("sliding"), slow=True),
    Animal("sgd_ttt", library("ttt", 'ttt.optimizer="sgd"', 'ttt.schedule="cosine"'), slow=True),
    Animal("adamw_ttt", library("ttt", 'ttt.optimizer="adamw"', "ttt.lr=0.01"), slow=True),
    Animal(
        "lora_ttt_per_document",
        library(
            "ttt", 'ttt.method="lora_document"', "ttt.lora.chunk_tokens=28", "ttt.lora.rank=2", "ttt.lr=0.05"
        ),
        slow=True,
    ),
    Animal(
        "adapters_of_the_frontier",
        library(
            *("ttt", 'ttt.method="lora_document"', "ttt.lora.rank=2", "ttt.lora.beta1=0"),
            'ttt.lora.targets=["key", "beside_attention", "beside_mlp", "head"]',
            *("ttt.lora.chunk_schedule=[[4, 8], [9, 30], [21, 0]]", 'ttt.lora.gradient="scoring"'),
        ),
        slow=True,
    ),
    Animal(
        "adapters_per_pass",
        library(
            *("ttt", 'ttt.method="lora_document"', "ttt.lora.rank=2", "ttt.lora.chunk_tokens=28"),
            *("model.layers=2", "model.loop.last=1", "model.loop.passes=2", "ttt.lora.per_pass=true"),
            'ttt.lora.targets=["query", "down", "vectors"]',
        ),
        slow=True,
    ),
    Animal("memory", with_memory(None, "logistic", stored=0), slow=True),
    Animal("memory_beside_model", with_memory(ToyScorer, "logistic"), slow=True),
    Animal("memory_of_linear_mixing", with_memory(LearningScorer, "linear", stored=1), slow=True),
    Animal("memory_beside_sgd_ttt", beside_ttt(), slow=True),
    Animal("ppm", lambda _: Ppm()),
    Animal("ngram_mixture", lambda _: NgramMixture()),
    Animal("forward_logits", lambda _: ToyScorer()),
    Animal("independent_documents", lambda _: IndependentDocuments()),
    Animal("caching", lambda _: Caching()),
    Animal("learning_adapter", lambda _: LearningScorer()),
    Animal("sliding_evaluator", sliding_evaluator),
    Animal("ttt_evaluator", ttt_evaluator),
    Animal("byte_evaluator", byte_evaluator),
]
