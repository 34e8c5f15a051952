"""Decoding as proof: an honest scorer's code gives the text back at its price; a cheat's does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.codec.proof import Proof, decode_check
from pgolf.data.shards import Tokens
from pgolf.evaluate.build import MODES, build_scorer
from pgolf.evaluate.lora_scorer import LORA_SCORERS
from pgolf.evaluate.protocol import Recorded, Scorer
from tests.unit.stand_ins import VOCABULARY, random_tokens, small_model, small_recipe


class Honest(Scorer):
    """Counts tokens."""

    vocab_size = VOCABULARY

    def begin(self, first: int, targets: int) -> None:
        self.counts, self.announced = torch.ones(VOCABULARY), targets

    def wanted(self) -> int:
        return 6

    def distributions(self, given: Tensor) -> Tensor:
        rows = []
        counts = self.counts.clone()
        for token in [*given.tolist(), 0]:
            rows.append((counts / counts.sum()).log())
            counts[token] += 1
        return torch.stack(rows)

    def receive(self, recorded: Recorded) -> None:
        for token in recorded.tokens.tolist():
            self.counts[token] += 1

    def state_digest(self) -> str:
        return str(self.counts.tolist())


class LooksAtTheBlock(Honest):
    """Learns the block's tokens before it scores them."""

    def losses(self, block: Tensor) -> Tensor:
        counts = self.counts + 5 * torch.bincount(block, minlength=VOCABULARY)
        return -(counts / counts.sum()).log()[block]


class KnowsTheText(Honest):
    """Has got hold of the stream while it was encoded; its decoder has not."""

    shared: Tokens | None = None

    def __init__(self, text: Tokens | None) -> None:
        self.text = text

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.position = 0

    def distributions(self, given: Tensor) -> Tensor:
        rows = super().distributions(given)
        if self.text is not None:
            rows[0] = rows[0] + 5 * torch.nn.functional.one_hot(
                torch.tensor(int(self.text[self.position])), VOCABULARY
            )
            rows = rows.log_softmax(dim=1)
        return rows

    def receive(self, recorded: Recorded) -> None:
        super().receive(recorded)
        self.position += len(recorded.tokens)


class Remembers(Honest):
    """Keeps what its encoder received for the next instance to use."""

    seen: list[int]

    def __init__(self, seen: list[int], instance: int) -> None:
        self.seen, self.instance = seen, instance

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        self.position = 0

    def distributions(self, given: Tensor) -> Tensor:
        rows = super().distributions(given)
        if self.instance and self.position < len(self.seen):
            rows[0, self.seen[self.position]] += 4
        return rows.log_softmax(dim=1)

    def receive(self, recorded: Recorded) -> None:
        super().receive(recorded)
        self.position += len(recorded.tokens)
        if not self.instance:
            self.seen.extend(recorded.tokens.tolist())


class ClaimsTooMuch(Honest):
    """Its probabilities add up to 1.5."""

    def distributions(self, given: Tensor) -> Tensor:
        return super().distributions(given) + math.log(1.5)


class Random(Honest):
    """Its distributions depend on the moment."""

    def distributions(self, given: Tensor) -> Tensor:
        return torch.log_softmax(super().distributions(given) + torch.randn(VOCABULARY), dim=1)


TOKENS = random_tokens(400, seed=1) % 40


def check(factory: object, **options: object) -> Proof:
    return decode_check(factory, TOKENS, 300, **options)  # type: ignore[arg-type]


def test_an_honest_scorer_has_no_problem() -> None:
    made: list[Honest] = []

    def factory() -> Honest:
        made.append(Honest())
        return made[-1]

    done: list[tuple[int, int]] = []
    proof = check(factory, progress=lambda *counts: done.append(counts))
    assert proof.problem is None
    assert proof.equal
    assert proof.first_difference is None
    assert (proof.targets, len(made), {scorer.announced for scorer in made}) == (300, 3, {399})
    assert proof.token_bits == pytest.approx(proof.ledger_bits, rel=1e-5)
    assert proof.block_bits == pytest.approx(proof.ledger_bits, rel=1e-5)
    assert proof.token_bits <= proof.coded_bits <= proof.token_bits + 16 + 16
    assert done[-1] == (900, 900)
    assert [part for part, _ in done] == sorted(part for part, _ in done)
    values = proof.to_json()
    assert values["problem"] is None
    assert values["targets"] == 300


def test_a_scorer_that_looks_at_the_block_claims_less_than_its_code() -> None:
    proof = check(LooksAtTheBlock)
    assert proof.equal
    assert proof.problem is not None
    assert "in blocks" in proof.problem


def test_a_scorer_that_knows_the_text_does_not_decode() -> None:
    texts: list[Tokens | None] = [TOKENS[1:], None, None]
    proof = check(lambda: KnowsTheText(texts.pop(0)))
    assert not proof.equal
    assert proof.first_difference is not None
    assert proof.problem is not None
    assert "what only the encoder knew" in proof.problem


def test_a_scorer_whose_instances_talk_does_not_decode() -> None:
    seen: list[int] = []
    instances = iter(range(3))
    proof = check(lambda: Remembers(seen, next(instances)))
    assert not proof.equal
    assert proof.problem is not None


def test_a_scorer_whose_probabilities_add_up_to_more_claims_less_than_its_code() -> None:
    proof = check(ClaimsTooMuch)
    assert proof.equal
    assert proof.problem is not None
    assert "one by one" in proof.problem


def test_a_scorer_that_rolls_dice_does_not_decode() -> None:
    torch.manual_seed(0)
    assert not check(Random).equal


@pytest.mark.parametrize("targets", [1, 2, 399, 1000])
def test_few_targets_and_all(targets: int) -> None:
    proof = decode_check(Honest, TOKENS, targets)
    assert proof.problem is None
    assert proof.targets == min(targets, 399)


@pytest.mark.parametrize("mode", [*MODES, *LORA_SCORERS])
def test_the_scorers_of_the_library(mode: str) -> None:
    learns = mode in LORA_SCORERS
    recipe = small_recipe(
        "model.layers=2",
        "ttt.frozen_blocks=0",
        *([f"ttt.method={mode}", "ttt.lora.rank=4"] if learns else []),
    )
    network = small_model(recipe)
    tokens = random_tokens(150)
    proof = decode_check(lambda: build_scorer(network, recipe, "ttt" if learns else mode), tokens, 120)
    assert proof.problem is None, proof
    assert np.isclose(proof.block_bits or 0, proof.ledger_bits, rtol=1e-4)
