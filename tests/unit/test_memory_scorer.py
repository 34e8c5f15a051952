"""A memory beside any scorer: requests, ranks, snapshots and the ledger are as for the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.evaluate import memory_scorer
from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.evaluate import evaluate
from pgolf.evaluate.ledger import Ledger, verify_ledger
from pgolf.evaluate.memory_scorer import MemoryScorer
from pgolf.evaluate.protocol import Recorded, Scorer, grade
from pgolf.evaluate.scorer import weights_digest
from pgolf.memory.memory import Memory
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.team import SOLO, Team
from tests.unit.lora_stand_ins import BOS, Tokens, documents
from tests.unit.memory_stand_ins import start, sums
from tests.unit.stand_ins import VOCABULARY, byte_counts, random_tokens, small_model, small_recipe

BASES = ("none", "sliding", "full", "lora", "lora_document", "phased")
EVERY_BASE = pytest.mark.parametrize("base", BASES)
# Rounding of a model in blocks of other sizes; a memory alone has none.
ROUNDING = 5e-5


def recipe_of(base: str, mixing: str = "logistic") -> Recipe:
    method = base if base in BASES[2:] else "full"
    recipe = small_recipe(
        *(f'ttt.method="{method}"', "model.layers=1", "ttt.lora.rank=2", "ttt.lora.chunk_tokens=24"),
        *("ttt.frozen_blocks=0", "ttt.epochs=1", "evaluate.batch=2", "memory.enabled=true"),
        *("memory.order=3", f'memory.mixing="{mixing}"'),
    )
    return recipe


def scorer_of(base: str, team: Team = SOLO, mixing: str = "logistic", stored: Tokens | None = None) -> Scorer:
    recipe = recipe_of(base, mixing)
    begin = start(VOCABULARY, stored=random_tokens(0) if stored is None else stored)
    if base in ("none", "sliding"):
        alone = None if base == "none" else build_scorer(small_model(recipe), recipe, "sliding", BOS)
        return MemoryScorer(alone, recipe.memory, begin)
    return build_scorer(small_model(recipe), recipe, "ttt", BOS, team, begin)


def stream() -> Tokens:
    """Documents that repeat each other (161,)."""
    tokens = documents(36, 1, 25, 40, 9, 50)
    tokens[70:90] = tokens[10:30]
    tokens[130:150] = tokens[70:90]
    return tokens


def graded(scorer: Scorer, *, strict: bool = False, team: Team = SOLO) -> Ledger:
    tokens, ledger = stream(), Ledger()
    grade(scorer, tokens, byte_counts(tokens), ledger, strict=strict, team=team)
    return ledger


def scored(scorer: Scorer, most: int, begin: bool = True, first: int = 0, until: int | None = None) -> Tensor:
    """What every target costs, asked for at most so many at once."""
    tokens = stream()
    if begin:
        scorer.begin(int(tokens[0]), len(tokens) - 1)
    losses, done = [], first
    until = len(tokens) - 1 if until is None else until
    while done < until:
        count = min(scorer.wanted(), until - done, most)
        block = tokens[done + 1 : done + 1 + count]
        losses.append(scorer.losses(torch.from_numpy(block.astype(np.int64))))
        scorer.receive(Recorded(done, block.copy()))
        done += count
    return torch.cat(losses)


@pytest.mark.parametrize("mixing", ["logistic", "linear"])
@EVERY_BASE
def test_requests_of_any_size_give_the_same_scores(base: str, mixing: str) -> None:
    blocks = scored(scorer_of(base, mixing=mixing), 1000)
    assert len(blocks) == 160
    for most in (1, 7):
        other = scored(scorer_of(base, mixing=mixing), most)
        assert torch.equal(blocks, other) if base == "none" else (blocks - other).abs().max() < ROUNDING


@EVERY_BASE
def test_one_target_at_a_time_gives_the_same_ledger(base: str) -> None:
    block, strict = graded(scorer_of(base)), graded(scorer_of(base), strict=True)
    assert len(strict.entries) == 160 > len(block.entries)
    assert strict.score().bytes == block.score().bytes
    assert strict.score().nats == pytest.approx(block.score().nats, abs=160 * ROUNDING)
    if base == "none":
        assert strict.score().nats == pytest.approx(block.score().nats, abs=1e-9)


@EVERY_BASE
def test_distributions_add_up_and_are_the_losses(base: str) -> None:
    scorer, tokens, done = scorer_of(base), stream(), 0
    scorer.begin(int(tokens[0]), 160)
    while done < 160:
        block = tokens[done + 1 : done + 1 + min(scorer.wanted(), 160 - done)]
        ids = torch.from_numpy(block.astype(np.int64))
        rows = scorer.distributions(ids[:-1])
        assert rows.shape == (len(block), VOCABULARY) and np.abs(sums(rows.numpy()) - 1).max() < 1e-6
        assert torch.allclose(-rows.gather(1, ids[:, None])[:, 0], scorer.losses(ids), atol=1e-5)
        scorer.receive(Recorded(done, block.copy()))
        done += len(block)


@EVERY_BASE
def test_a_later_token_changes_no_earlier_loss(base: str) -> None:
    before, tokens = scored(scorer_of(base), 1000), stream()
    for place in (5, 37, 100):
        other = tokens.copy()
        other[place] = (other[place] + 7) % VOCABULARY
        scorer, ledger = scorer_of(base), Ledger()
        losses: list[Tensor] = []
        plain = scorer.losses
        scorer.losses = lambda block, plain=plain, into=losses: (into.append(plain(block)), into[-1])[1]  # type: ignore
        grade(scorer, other, byte_counts(other), ledger)
        after = torch.cat(losses)
        # Target t is token t + 1; where a document begins, blocks may end elsewhere.
        assert (before[: place - 1] - after[: place - 1]).abs().max() < ROUNDING
        assert (before[place - 1 :] - after[place - 1 :]).abs().max() > 1e-3


@EVERY_BASE
def test_a_snapshot_brings_everything_back(base: str) -> None:
    scorer, expected = scorer_of(base), scored(scorer_of(base), 10)
    scored(scorer, 10, until=70)
    snapshot, digest = scorer.snapshot(), scorer.state_digest()
    for _ in range(2):
        again = scored(scorer, 10, begin=False, first=70)
        assert (again - expected[70:]).abs().max() < ROUNDING
        assert scorer.state_digest() != digest
        scorer.restore(snapshot)
        assert scorer.state_digest() == digest
    assert torch.equal(scored(scorer, 10), expected), "begin forgets it all"


@EVERY_BASE
def test_asking_changes_neither_state_nor_scores(base: str) -> None:
    scorer, expected = scorer_of(base), scored(scorer_of(base), 10)
    scored(scorer, 10, until=70)
    digest = scorer.state_digest()
    for seed in range(3):
        asked = torch.from_numpy(random_tokens(5, seed).astype(np.int64))
        scorer.losses(asked)
        scorer.distributions(asked)
    assert scorer.state_digest() == digest
    assert torch.allclose(scored(scorer, 10, begin=False, first=70), expected[70:], atol=ROUNDING, rtol=0)


def test_stored_text_is_read_twice_at_most_and_forgotten_never(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, made = stream(), []
    monkeypatch.setattr(memory_scorer, "Memory", lambda *how: made.append(how) or Memory(*how))
    with_text, without = scorer_of("none", stored=tokens[1:60]), scorer_of("none")
    first = scored(with_text, 50)
    assert first[:59].sum() < 0.6 * scored(without, 50)[:59].sum()
    del made[:]
    for _ in range(3):
        assert torch.equal(scored(with_text, 50), first)
    assert len(made) == 1, "an evaluation, which is one stream, keeps nothing to begin anew with"
    assert with_text.state_digest() != without.state_digest()
    with_text.begin(BOS, 10)  # A stream of another size.
    assert torch.isfinite(with_text.losses(torch.arange(5))).all()


def test_a_memory_pays_where_text_repeats_itself() -> None:
    recipe, tokens = recipe_of("full"), stream()
    network, digest = small_model(recipe), weights_digest(small_model(recipe))
    with_memory = evaluate(
        network, recipe, tokens, byte_counts(tokens), "ttt", memory=start(VOCABULARY, trust=(0.2, 0.9))
    )
    off = recipe.with_overrides(["memory.enabled=false"])
    without = evaluate(network, off, tokens, byte_counts(tokens), "ttt", memory=start(VOCABULARY))
    assert with_memory.val_loss < without.val_loss - 0.05
    assert weights_digest(network) == digest, "the model is left as it was"
    assert without.ledger.header["settings"].get("memory") is None
    assert type(build_scorer(network, recipe, "ttt")) is type(build_scorer(network, off, "ttt"))


@pytest.mark.parametrize("base", ["full", "lora_document"])
def test_the_ledger_says_with_what_and_verifies(base: str, tmp_path: Path) -> None:
    recipe, tokens = recipe_of(base), stream()
    result = evaluate(
        small_model(recipe), recipe, tokens, byte_counts(tokens), "ttt", memory=start(VOCABULARY)
    )
    assert result.ledger.header["settings"]["memory"] == recipe.memory.model_dump()
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(result.ledger.content())
    found = verify_ledger(path, tokens, byte_counts(tokens))
    assert found.problem is None and found.score.bpb == result.val_bpb
    states = [entry.state for entry in result.ledger.entries]
    assert len(set(states)) == len(states), "it learns from every block"


# ---- ranks


class Threads(Team):
    """Ranks that are threads of this process; ``rounds`` exchanges values between them."""

    def __init__(self, rank: int, size: int, rounds: Rounds) -> None:
        self.rank, self.size, self.rounds = rank, size, rounds

    def gather(self, value: Any) -> list[Any]:
        return self.rounds.exchange(self.rank, value)

    def meet(self) -> None:
        self.gather(None)

    def totals(self, values: Sequence[float]) -> list[float]:
        return [sum(each) for each in zip(*self.gather(list(values)), strict=True)]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        everyone = self.gather([tensor.clone() for tensor in tensors])
        for index, tensor in enumerate(tensors):
            tensor.copy_(torch.stack([sent[index] for sent in everyone]).sum(0))


class Rounds:
    def __init__(self, size: int) -> None:
        self.barrier, self.sent = threading.Barrier(size, timeout=60), [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.sent[rank] = value
        self.barrier.wait()
        received = list(self.sent)
        self.barrier.wait()
        return received


def in_ranks(size: int, make: Callable[[Team], Scorer]) -> list[Ledger]:
    rounds = Rounds(size)
    teams = [Threads(rank, size, rounds) for rank in range(size)]
    # One after the other: models are drawn from torch's one generator.
    scorers = [make(team) for team in teams]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda scorer, team: graded(scorer, team=team), scorers, teams))


@EVERY_BASE
def test_ranks_write_the_ledger_of_one_process(base: str) -> None:
    alone = graded(scorer_of(base))
    ledgers = in_ranks(2, lambda team: scorer_of(base, team))
    assert ledgers[0].entries == ledgers[1].entries
    assert [(entry.first, entry.targets) for entry in ledgers[0].entries] == [
        (entry.first, entry.targets) for entry in alone.entries
    ]
    if base in ("none", "sliding"):
        assert ledgers[0].entries == alone.entries
    else:
        # Gradients are added up in another order.
        nats = [[entry.nats for entry in ledger.entries] for ledger in (ledgers[0], alone)]
        assert np.allclose(*nats, atol=1e-2)


@EVERY_BASE
def test_it_learns_from_every_block_and_so_goes_nowhere_ahead(base: str) -> None:
    scorer, tokens = scorer_of(base), stream()
    scorer.begin(BOS, 160)
    assert scorer.steady() == scorer.wanted()
    with pytest.raises(NotImplementedError):
        scorer.ahead(tokens[1:5])
