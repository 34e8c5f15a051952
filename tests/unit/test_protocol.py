"""The grader: who knows what when, and the scorers of the library in both of its modes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.evaluate.build import MODES, build_scorer
from pgolf.evaluate.ledger import Ledger
from pgolf.evaluate.protocol import Recorded, Scorer, grade
from pgolf.evaluate.scorer import _fingerprint, weights_digest
from pgolf.model.cache import KvCache
from pgolf.model.gpt import GPT
from pgolf.model.step import extend
from tests.unit.stand_ins import VOCABULARY, byte_counts, random_tokens, small_model, small_recipe


class Counting(Scorer):
    """An adaptive unigram model, which writes down what happens to it."""

    vocab_size = VOCABULARY

    def __init__(self, wanted: int = 7) -> None:
        self.size, self.events = wanted, list[tuple[str, object]]()

    def begin(self, first: int, targets: int) -> None:
        self.counts = torch.ones(VOCABULARY)
        self.events.append(("begin", (first, targets)))

    def wanted(self) -> int:
        return self.size

    def distributions(self, given: Tensor) -> Tensor:
        self.events.append(("score", len(given) + 1))
        return (self.counts / self.counts.sum()).log().expand(len(given) + 1, -1)

    def receive(self, recorded: Recorded) -> None:
        self.events.append(("receive", (recorded.first, recorded.tokens.tolist())))
        self.counts = self.counts + torch.bincount(
            torch.from_numpy(recorded.tokens.astype(np.int64)), minlength=64
        )

    def state_digest(self) -> str:
        return str(self.counts.tolist())


def graded(scorer: Scorer, tokens: np.ndarray, *, strict: bool = False) -> Ledger:
    ledger = Ledger()
    grade(scorer, tokens, byte_counts(tokens), ledger, strict=strict)
    return ledger


@pytest.mark.parametrize("strict", [False, True])
def test_text_is_received_after_its_score_is_in_the_ledger(strict: bool) -> None:
    tokens, ledger = random_tokens(24), Ledger()

    class Looking(Counting):
        def receive(self, recorded: Recorded) -> None:
            entry = ledger.entries[-1]
            assert (entry.first, entry.targets) == (recorded.first, len(recorded.tokens))
            super().receive(recorded)

    scorer = Looking()
    grade(scorer, tokens, byte_counts(tokens), ledger, strict=strict)
    assert scorer.events[0] == ("begin", (int(tokens[0]), 23))
    kinds = [kind for kind, _ in scorer.events[1:]]
    sizes = [1] * 23 if strict else [7, 7, 7, 2]
    assert kinds == ["score", "receive"] * len(sizes)
    assert [size for kind, size in scorer.events if kind == "score"] == sizes
    received = [token for kind, what in scorer.events if kind == "receive" for token in what[1]]  # type: ignore[index]
    assert received == tokens[1:].tolist()
    assert len({entry.state for entry in ledger.entries}) == len(sizes)


def test_the_score_is_that_of_the_state_before_the_text() -> None:
    ledger = graded(Counting(1), np.array([0, 5, 5, 5], dtype=np.uint16))
    expected = [-np.log(1 / 64), -np.log(2 / 65), -np.log(3 / 66)]
    assert [entry.nats for entry in ledger.entries] == pytest.approx(expected, rel=1e-6)


def test_the_stream_cannot_be_reached_through_what_is_handed_out() -> None:
    tokens = random_tokens(30)
    before = tokens.copy()

    class Vandal(Counting):
        def losses(self, block: Tensor) -> Tensor:
            lost = super().losses(block)
            block.zero_()
            return lost

        def receive(self, recorded: Recorded) -> None:
            super().receive(recorded)
            assert recorded.tokens.base is None, "a view would lead to the whole stream"
            recorded.tokens[:] = 0

    vandal, honest = graded(Vandal(), tokens), graded(Counting(), tokens)
    assert np.array_equal(tokens, before)
    assert vandal.score() == honest.score()


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (torch.zeros(3), r"losses of shape \(3,\) for 7 targets at 0"),
        (torch.full((7,), float("nan")), "targets 0 to 7 are not finite"),
        (torch.zeros(7, 1), "shape"),
    ],
)
def test_what_is_no_score_is_refused(losses: Tensor, message: str) -> None:
    class Odd(Counting):
        def losses(self, block: Tensor) -> Tensor:
            return losses

    with pytest.raises(PgolfError, match=message):
        graded(Odd(), random_tokens(9))

    class Narrow(Counting):
        def distributions(self, given: Tensor) -> Tensor:
            return super().distributions(given)[:, :-1]

    with pytest.raises(PgolfError, match=r"distributions of shape \(1, 63\), not \(1, 64\)"):
        graded(Narrow(), random_tokens(9), strict=True)


@pytest.mark.parametrize("mode", MODES)
def test_one_target_at_a_time_gives_the_same_losses(mode: str) -> None:
    recipe, tokens = small_recipe(), random_tokens(110)
    network = small_model(recipe)
    block, strict = (
        graded(build_scorer(network, recipe, mode), tokens, strict=flag) for flag in (False, True)
    )
    assert len(strict.entries) == 109 > len(block.entries)
    for entry in block.entries:
        end = entry.first + entry.targets
        single = sum(other.nats for other in strict.entries[entry.first : end])
        assert single == pytest.approx(entry.nats, abs=2e-4)


def test_one_target_at_a_time_reads_every_token_once_per_window(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, tokens = small_recipe(), random_tokens(41)
    network = small_model(recipe)
    scorer = build_scorer(network, recipe, "sliding")
    read: list[int] = []

    def counting(network: GPT, tokens: Tensor, cache: KvCache) -> Tensor:
        read.append(tokens.size(1))
        return extend(network, tokens, cache)

    monkeypatch.setattr("pgolf.model.step.extend", counting)
    graded(scorer, tokens, strict=True)
    # A window of 16 with stride 4 begins with 13 tokens, and goes on one by one.
    assert read == [1] * 16 + [13, 1, 1, 1] * 6
    again = scorer.distributions(torch.zeros(0, dtype=torch.int64))
    assert torch.equal(again, scorer.distributions(torch.zeros(0, dtype=torch.int64)))


@pytest.mark.parametrize("mode", MODES)
def test_any_division_into_blocks_gives_the_same_losses(mode: str) -> None:
    recipe, tokens = small_recipe(), random_tokens(90)
    network = small_model(recipe)
    plain = build_scorer(network, recipe, mode)
    cut = build_scorer(network, recipe, mode)
    wanted, sizes = cut.wanted, iter([3, 1, 7, 2, 11, 5] * 20)
    cut.wanted = lambda: min(next(sizes), wanted())  # type: ignore[method-assign]
    assert graded(cut, tokens).score().nats == pytest.approx(graded(plain, tokens).score().nats, abs=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_distributions_are_normalised_and_agree_with_the_losses(mode: str) -> None:
    recipe, tokens = small_recipe(), random_tokens(70)
    scorer = build_scorer(small_model(recipe), recipe, mode)
    scorer.begin(int(tokens[0]), 69)
    for first in range(0, 60, 10):
        block = torch.from_numpy(tokens[first + 1 : first + 11].astype(np.int64))
        rows = scorer.distributions(block[:-1])
        assert rows.logsumexp(dim=1).abs().max() < 1e-5
        assert torch.allclose(-rows.gather(1, block[:, None]).squeeze(1), scorer.losses(block), atol=1e-5)
        scorer.receive(Recorded(first, tokens[first + 1 : first + 11]))


@pytest.mark.parametrize("mode", MODES)
def test_going_back_to_a_snapshot_repeats_everything(mode: str) -> None:
    recipe, tokens = small_recipe("ttt.epochs=2"), random_tokens(151)
    scorer = build_scorer(small_model(recipe), recipe, mode)
    scorer.begin(int(tokens[0]), 150)

    def go(first: int, end: int) -> list[tuple[str, list[float]]]:
        seen = []
        for at in range(first, end, 5):
            block = tokens[at + 1 : at + 6]
            seen.append(
                (scorer.state_digest(), scorer.losses(torch.from_numpy(block.astype(np.int64))).tolist())
            )
            scorer.receive(Recorded(at, block))
        return seen

    go(0, 50)
    kept = scorer.snapshot()
    first = go(50, 130)
    for _ in range(2):
        scorer.restore(kept)
        assert go(50, 130) == first
    if mode == "ttt":
        assert len({digest for digest, _ in first}) > 1


def test_the_digest_follows_every_weight() -> None:
    network = small_model(small_recipe())
    digests = {weights_digest(network)}
    for parameter in network.parameters():
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[-1] += 1e-3
        digests.add(weights_digest(network))
    assert len(digests) == 1 + len(list(network.parameters()))
    assert weights_digest(network.clone()) == weights_digest(network)
    # What stands for the values on other devices.
    values = torch.randn(1000)
    prints = {_fingerprint(values)}
    for place in range(0, 1000, 50):
        other = values.clone()
        other[place] = other[place].nextafter(torch.tensor(9.0))
        prints.add(_fingerprint(other))
    assert len(prints) == 21
    assert _fingerprint(values.flip(0)) not in prints
