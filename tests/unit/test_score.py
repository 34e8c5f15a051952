"""Scores: the right losses, summed exactly, with the weights untouched."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.evaluate.ledger import Ledger, Score
from pgolf.evaluate.protocol import grade
from pgolf.evaluate.scorer import FrozenScorer, WindowScorer
from pgolf.evaluate.windows import Window, sliding_windows
from pgolf.model.gpt import GPT
from tests.unit.stand_ins import (
    LENGTH,
    byte_counts,
    random_tokens,
    small_model,
    small_recipe,
    window_losses,
)


@pytest.fixture(scope="module")
def network() -> GPT:
    return small_model(small_recipe())


def losses_of(network: GPT, tokens: np.ndarray, windows: list[Window]) -> Tensor:
    """The loss of every target in order, one window at a time."""
    return torch.cat([window_losses(network, tokens, [window]) for window in windows])


def graded(network: GPT, tokens: np.ndarray, stride: int, batch: int) -> Score:
    ledger = Ledger()
    grade(WindowScorer(network, LENGTH, stride, batch), tokens, byte_counts(tokens), ledger)
    return ledger.score()


@pytest.mark.parametrize(
    ("count", "stride"), [(5, 4), (17, 4), (50, 4), (66, 4), (30, 1), (51, 7), (66, LENGTH)]
)
def test_equals_one_plain_forward_pass_per_window(network: GPT, count: int, stride: int) -> None:
    tokens = random_tokens(count)
    nats, bytes_ = 0.0, 0
    for start, end, first in sliding_windows(count - 1, LENGTH, stride):
        inputs = torch.tensor(tokens[None, start:end].astype(np.int64))
        with torch.no_grad():
            log_p = F.log_softmax(network(inputs)[0].double(), dim=-1)
        for t in range(first, end):
            nats -= log_p[t - start, int(tokens[t + 1])].item()
            bytes_ += int(tokens[t + 1]) % 3 + 1 + (int(tokens[t]) % 5 == 0)
    score = graded(network, tokens, stride, 4)
    assert (score.targets, score.bytes) == (count - 1, bytes_)
    assert score.nats == pytest.approx(nats, abs=1e-4)
    assert score.loss == score.nats / (count - 1)
    assert score.bpb == pytest.approx(score.nats / math.log(2) / bytes_, rel=1e-12)


def test_the_batch_changes_nothing(network: GPT) -> None:
    tokens = random_tokens(91)
    scores = [graded(network, tokens, 5, batch) for batch in (1, 3, 64)]
    assert len({(score.targets, score.bytes) for score in scores}) == 1
    assert [score.nats for score in scores] == pytest.approx([scores[0].nats] * 3, rel=1e-6)


@pytest.mark.parametrize("t", [0, 6, 15, 16, 30, 47])
@pytest.mark.parametrize("stride", [3, LENGTH])
def test_tokens_after_a_target_do_not_change_its_loss(network: GPT, t: int, stride: int) -> None:
    tokens = random_tokens(50)
    changed = tokens.copy()
    changed[t + 2 :] = (changed[t + 2 :] + 7) % 64
    windows = sliding_windows(49, LENGTH, stride)
    before, after = losses_of(network, tokens, windows), losses_of(network, changed, windows)
    assert torch.equal(before[: t + 1], after[: t + 1])
    assert not torch.equal(before[t + 1 :], after[t + 1 :])


def test_a_window_sees_its_own_inputs_only(network: GPT) -> None:
    tokens = random_tokens(41)
    windows = sliding_windows(40, LENGTH, 8)
    second = windows[1]
    alone = window_losses(network, tokens[second.start :], [Window(0, LENGTH, second.first - second.start)])
    assert torch.equal(losses_of(network, tokens, windows)[second.first : second.end], alone)
    scorer = FrozenScorer(network, LENGTH, 8, 4)
    scorer.begin(int(tokens[0]), 40)
    assert not scorer.losses(torch.from_numpy(tokens[1:17].astype(np.int64))).requires_grad


class Fixed(nn.Module):
    """Assigns token k the loss of about ``weights[k]``; counts the positions that reach the output layer."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=len(weights))
        self.weights = nn.Parameter(torch.tensor(weights))
        self.projected = 0

    def hidden(self, tokens: Tensor, length: int, last: int) -> Tensor:
        return torch.zeros(len(tokens), last, 1)

    def project(self, hidden: Tensor) -> Tensor:
        self.projected += hidden[..., 0].numel()
        return -self.weights.expand(*hidden.shape[:-1], -1)


def test_losses_are_summed_in_float64() -> None:
    network: Any = Fixed([0.0, 1e8, 3.0])
    tokens = np.array([0, 1, *[2] * 2000], dtype=np.uint16)
    ledger = Ledger()
    grade(WindowScorer(network, 2001, 2001, 1), tokens, byte_counts(tokens), ledger)
    # log(1 + e^-3) is added to each loss of 3; in float32, 1e8 would swallow parts of them.
    assert ledger.score().nats == pytest.approx(1e8 + 2000 * (3 + math.log1p(math.exp(-3))), abs=0.01)


def test_logits_are_computed_for_scored_targets_only() -> None:
    network: Any = Fixed([0.0, 1.0, 2.0])
    graded(network, random_tokens(66) % 3, 2, 8)
    assert network.projected == 65


def test_an_empty_score_has_no_mean() -> None:
    assert math.isnan(Score(0.0, 0, 0).loss) and math.isnan(Score(0.0, 0, 0).bpb)


def test_scoring_leaves_nothing_behind_that_poisons_training(network: GPT) -> None:
    graded(network, random_tokens(90), 4, 2)
    assert all(parameter.grad is None for parameter in network.parameters())
    network(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)).mean().backward()
    network.zero_grad(set_to_none=True)
