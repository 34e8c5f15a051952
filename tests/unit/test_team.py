"""Who does what in a team, and what the launcher's environment variables are taken for."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

from pgolf.compress.grid import Grid
from pgolf.errors import PgolfError
from pgolf.evaluate import protocol
from pgolf.evaluate.evaluate import evaluate
from pgolf.optim.muon import Muon
from pgolf.runtime import ranks
from pgolf.runtime.team import SOLO, Team
from pgolf.train.distributed import agree, shared_grid
from tests.e2e.conftest import pgolf
from tests.unit.stand_ins import byte_counts, random_tokens, small_model, small_recipe


class Member(Team):
    """One of several, who notes what it is asked to send."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent: list[torch.Tensor] = []

    def collect(self, own: torch.Tensor) -> Any:
        self.sent.append(own)
        return lambda: own.new_zeros((self.size * own.size(0), *own.shape[1:]))


@given(st.integers(0, 100), st.integers(1, 70))
def test_shares_are_all_there_is_in_order_and_even(count: int, size: int) -> None:
    shares = [Member(rank, size).share(count) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_a_team_of_itself() -> None:
    loss = torch.tensor(1.5)
    SOLO.add_up([loss])
    SOLO.meet()
    assert (loss.item(), SOLO.totals([2.0]), SOLO.gather("x"), SOLO.first(lambda: 3)) == (
        1.5,
        [2.0],
        ["x"],
        3,
    )
    assert agree(SOLO, 2.5, True) == (2.5, True)
    assert SOLO.is_first and SOLO.bytes_of_first(b"a") == b"a" and list(SOLO.share(2)) == [0, 1]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_each_matrix_is_orthogonalised_by_one_rank(size: int) -> None:
    def stepped(team: Team) -> list[torch.nn.Parameter]:
        torch.manual_seed(0)
        matrices = [torch.nn.Parameter(torch.randn(6, 4)) for _ in range(5)]
        for matrix in matrices:
            matrix.grad = torch.randn(6, 4)
        Muon([{"params": matrices, "lr": 1.0}], 0.9, 5, torch.float32, team).step()
        return matrices

    torch.manual_seed(0)
    before = [torch.randn(6, 4) for _ in range(5)]
    updates = torch.stack([old - new.detach() for old, new in zip(before, stepped(SOLO), strict=True)])
    members = [Member(rank, size) for rank in range(size)]
    for member in members:
        stepped(member)
    together = torch.cat([member.sent[0] for member in members])
    assert torch.allclose(together[:5], updates, atol=1e-5)
    assert not together[5:].any()


def test_every_rank_rounds_on_the_grid_that_the_first_one_chose() -> None:
    class First(Member):
        def bytes_of_first(self, content: bytes | None) -> bytes:
            assert content is not None
            sent.append(content)
            return content

    class Other(Member):
        def first(self, work: Any) -> None:
            """Somebody else does it."""

        def bytes_of_first(self, content: bytes | None) -> bytes:
            assert content is None
            return sent.pop(0)

    sent: list[bytes] = []
    steps = {"a": torch.rand(3).half(), "b": torch.rand(2).half()}
    chosen = Grid(steps, {"b": torch.rand(4).half()}, {"source": "train", "tokens": 64})
    for team in (First(0, 2), Other(1, 2)):
        grid = shared_grid(team, lambda: chosen)
        assert grid.calibration == chosen.calibration
        assert grid.tensors().keys() == chosen.tensors().keys()
        assert all(torch.equal(value, chosen.tensors()[name]) for name, value in grid.tensors().items())
    assert shared_grid(SOLO, lambda: chosen) is chosen


@pytest.mark.parametrize("mode", ["standard", "sliding", "ttt"])
def test_ranks_score_the_blocks_that_one_process_scores(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = protocol._requests
    asked: list[tuple[int, int]] = []

    def many(*arguments: Any) -> Any:
        # All that a team of three would divide, done by one.
        found = plain(*arguments[:-1], Member(0, 3))
        asked.extend((first, count) for _, first, count in found)
        return found

    recipe, tokens = small_recipe(), random_tokens(400)
    network = small_model(recipe)
    alone = evaluate(network, recipe, tokens, byte_counts(tokens), mode)
    monkeypatch.setattr(protocol, "_requests", many)
    divided = evaluate(network, recipe, tokens, byte_counts(tokens), mode)
    assert divided.ledger.entries == alone.ledger.entries
    assert asked == [(entry.first, entry.targets) for entry in alone.ledger.entries]


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    device, team = ranks.join("cpu")
    assert (device.type, team.size, team.restarted) == ("cpu", 1, False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ranks.join("cpu")[1].restarted


@pytest.mark.parametrize(
    ("variables", "device", "said"),
    [
        ({"WORLD_SIZE": "two"}, "cpu", "WORLD_SIZE is two, not a number; start the ranks with torchrun"),
        ({"WORLD_SIZE": "2"}, "cpu", "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "cuda:1", "one device for 2 ranks"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "cpu", "rank 0 of 2 cannot reach the others"),
    ],
)
def test_a_wrong_place_is_a_clear_mistake(
    variables: dict[str, str], device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PgolfError, match=said):
        ranks.join(device)


def test_commands_that_share_nothing_refuse_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    said = pgolf("doctor", check=2).stderr
    assert "pgolf doctor: works alone, and 2 ranks were started" in said and "without torchrun" in said
    monkeypatch.setenv("RANK", "1")
    assert pgolf("doctor", check=2).stderr == ""  # One line, not one per rank.
    monkeypatch.setenv("WORLD_SIZE", "1")
    pgolf("recipes")


@pytest.fixture
def one_of_eight(monkeypatch: pytest.MonkeyPatch) -> Iterator[ranks.Ranks]:
    """Rank 3 of 8 on GPUs, in a group that takes every transfer and sends nothing."""
    asked: dict[str, Any] = {}
    begin = dist.init_process_group

    def init_process_group(backend: str, **options: Any) -> None:
        asked.update(options, backend=backend)
        begin("fake", store=FakeStore(), rank=3, world_size=8)

    silent = SimpleNamespace(start=lambda: None, stop=lambda: None, silent=lambda seconds: [])
    monkeypatch.setattr(ranks, "Heartbeat", lambda *_: silent)
    monkeypatch.setattr(ranks, "_own_room", lambda store, *_: store)
    monkeypatch.setattr(ranks.Ranks, "meet", lambda self: None)
    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    team = ranks.Ranks(3, 8, False, torch.device("cuda", 3), dist.HashStore())
    assert (asked["backend"], asked["device_id"]) == ("cpu:gloo,cuda:nccl", torch.device("cuda", 3))
    assert asked["timeout"] == ranks.TIMEOUT
    yield team
    team.leave()
    assert not dist.is_initialized()


def test_torch_takes_every_transfer_of_eight_ranks(
    one_of_eight: ranks.Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    team, sizes, add_up = one_of_eight, [], dist.all_reduce
    monkeypatch.setattr(ranks, "_BUCKET", 20)
    monkeypatch.setattr(
        dist, "all_reduce", lambda tensor, **how: sizes.append(tensor.numel()) or add_up(tensor, **how)
    )
    gradients = [torch.ones(6, 4), torch.full((3,), 2.0, dtype=torch.bfloat16), torch.tensor(3.0)]
    team.add_up(gradients)
    assert [tensor.float().mean().item() for tensor in gradients] == [1.0, 2.0, 3.0]
    assert sizes == [20, 8], "all in one row, a bucket at a time"
    assert team.totals([1.5, 2.0]) == [1.5, 2.0]
    team.copy_first(gradients)
    assert team.bytes_of_first(None) == b""
    # Five matrices: a rank takes one of them, and three take none.
    matrices = [torch.nn.Parameter(torch.ones(6, 4)) for _ in range(5)]
    for matrix in matrices:
        matrix.grad = torch.randn(6, 4)
    Muon([{"params": matrices, "lr": 1.0}], 0.9, 5, torch.bfloat16, team).step()
    assert team.collect(torch.ones(2, 3))().shape == (16, 3)
