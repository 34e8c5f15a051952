"""What each rank of a team does when adapters learn, played by one process: its sequences, its windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pgolf.evaluate import protocol
from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.evaluate import evaluate
from pgolf.evaluate.lora import Adapters, adapted_matrices
from pgolf.evaluate.protocol import Recorded
from pgolf.evaluate.ttt import Lesson
from pgolf.runtime.team import SOLO, Team
from tests.unit.lora_stand_ins import FORMS, documents, lora_recipe
from tests.unit.stand_ins import LENGTH, byte_counts, random_tokens, small_model


class Member(Team):
    """One of several, who notes what it is asked to add up, and counts meetings."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent: list[list[Tensor]] = []
        self.meetings = 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        self.sent.append([tensor.clone() for tensor in tensors])

    def meet(self) -> None:
        self.meetings += 1


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_share_the_sequences_of_a_lesson(size: int) -> None:
    recipe = lora_recipe("lora", "ttt.batch_sequences=4", "ttt.grad_clip=0")
    network = small_model(recipe)
    # Four sequences, of which the last one counts in part only.
    lesson = Lesson(random_tokens(3 * LENGTH + 6, seed=5), 3 * LENGTH + 5)
    alone = Adapters(network, recipe.ttt, LENGTH)
    alone.adapt(lesson)
    expected = [factor.grad for factor in alone.factors]
    members = [Member(rank, size) for rank in range(size)]
    trained = []
    for member in members:
        adapters = Adapters(network, recipe.ttt, LENGTH, member)
        with mock.patch.object(adapters.student, "hidden", wraps=adapters.student.hidden) as hidden:
            adapters.adapt(lesson)
        trained.append(sum(len(call.args[0]) for call in hidden.call_args_list))
    assert trained == [len(member.share(4)) for member in members] and sum(trained) == 4
    assert all(len(member.sent) == member.meetings == 1 for member in members)
    for index, gradient in enumerate(expected):
        assert gradient is not None
        total = sum(member.sent[0][index] for member in members)
        assert torch.allclose(torch.as_tensor(total), gradient, atol=1e-6)
    idle = [member.sent[0] for member, count in zip(members, trained, strict=True) if not count]
    assert len(idle) == max(size - 4, 0) and not any(gradient.any() for sent in idle for gradient in sent)


def test_ranks_share_the_windows_that_scored_a_chunk() -> None:
    recipe = lora_recipe("lora_document", *FORMS["scoring"], "evaluate.stride=4", "ttt.grad_clip=0")
    network, tokens = small_model(recipe), documents(60)
    found = []
    members = [SOLO, *(Member(rank, 2) for rank in range(2))]
    for team in members:
        scorer: Any = build_scorer(network, recipe, "ttt", team=team)
        scorer.begin(1, 59)
        for done in (0, 12, 24):
            scorer.losses(torch.from_numpy(tokens[done + 1 : done + 13].astype("int64")))
            if done == 24:
                # The same factors everywhere, which no member of a team of one's own has.
                scorer.adapters.reset()
                scorer._forget_weights()
            scorer.receive(Recorded(done, tokens[done + 1 : done + 13].copy()))
        found.append([factor.grad for factor in scorer.adapters.factors])
    for index, expected in enumerate(found[0]):
        total = sum(member.sent[-1][index] for member in members[1:])  # type: ignore[attr-defined]
        assert torch.allclose(torch.as_tensor(total), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "lora_document", "phased", "per pass", "beside", "all"])
def test_ranks_score_the_blocks_that_one_process_scores(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = protocol._requests
    rounds: list[list[tuple[int, int]]] = []

    def many(*arguments: Any) -> Any:
        # All that a team of three would divide, done by one.
        found = plain(*arguments[:-1], Member(0, 3))
        rounds.append([(first, count) for _, first, count in found])
        return found

    form, method = (FORMS[method], "lora_document") if method in FORMS else ((), method)
    large = ("ttt.lora.chunk_tokens=48", "ttt.lora.chunk_schedule=[]", "evaluate.batch=2")
    recipe = lora_recipe(method, *form, *large)
    network = small_model(recipe)
    with torch.no_grad():
        for name in adapted_matrices(network, recipe.ttt) & dict(network.named_parameters()).keys():
            # Has other bits than what a fresh adapter would make of it by addition.
            network.get_parameter(name)[0, 0] = -0.0
    tokens = documents(30, 20, 90, 7, 60, 150, 25)
    alone = evaluate(network, recipe, tokens, byte_counts(tokens), "ttt")
    monkeypatch.setattr(protocol, "_requests", many)
    divided = evaluate(network, recipe, tokens, byte_counts(tokens), "ttt")
    assert divided.ledger.entries == alone.ledger.entries
    assert [part for found in rounds for part in found] == [
        (entry.first, entry.targets) for entry in alone.ledger.entries
    ]
    assert max(map(len, rounds)) > 2
    assert len({entry.state for entry in alone.ledger.entries}) > 4


def test_the_team_reaches_everything_that_learns() -> None:
    team = Member(0, 2)
    for method in ("lora", "lora_document", "phased"):
        recipe = lora_recipe(method)
        scorer: Any = build_scorer(
            small_model(recipe), recipe.with_overrides(["evaluate.batch=2"]), "ttt", team=team
        )
        scorer.begin(1, 100)
        assert scorer.adapters.team is team
        assert method != "phased" or scorer.base_adapter.team is team
        assert build_scorer(small_model(recipe), recipe, "ttt").team is SOLO  # type: ignore[attr-defined]
