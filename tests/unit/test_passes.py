"""How windows are read: a batch that fits the memory, and compiled passes whose shapes never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.errors import PgolfError
from pgolf.evaluate import passes
from pgolf.evaluate import ttt as ttt_module
from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.evaluate import EvalResult, evaluate
from pgolf.evaluate.passes import fitting_batch, with_batch
from pgolf.evaluate.scorer import WindowScorer
from pgolf.recipe.recipe import load_recipe
from pgolf.runtime.team import Team
from tests.unit.stand_ins import byte_counts, random_tokens, small_model, small_recipe

MODEL = load_recipe("seed_1232").model
CPU = torch.device("cpu")


@given(
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(1, 1 << 16),
    st.sampled_from(["cpu", "cuda"]),
)
def test_a_batch_is_bounded_and_grows_with_memory(one: int, other: int, length: int, device: str) -> None:
    few, many = (fitting_batch(MODEL, length, free, device) for free in sorted((one, other)))
    assert 1 <= few <= many
    assert many == 1 or many * length <= (8192 if device == "cpu" else 131072)
    assert many.bit_count() == 1
    assert fitting_batch(MODEL, 2 * length, one, device) <= fitting_batch(MODEL, length, one, device)


def test_a_batch_uses_at_most_half_of_the_memory_and_smaller_models_fit_more() -> None:
    free = 4 << 30
    batch = fitting_batch(MODEL, 2048, free)
    assert 1 < batch * 2048 * 4 * MODEL.width * 8 <= free // 2
    assert fitting_batch(load_recipe("quickstart").model, 2048, free) > batch


def test_batch_0_is_settled_before_the_ledger_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_batch_here", lambda *_: 4)
    recipe, tokens = small_recipe("evaluate.batch=0", "ttt.lora.rank=2"), random_tokens(120)
    network = small_model(recipe)
    result, explicit = (
        evaluate(network, chosen, tokens, byte_counts(tokens), "ttt")
        for chosen in (recipe, recipe.with_overrides(["evaluate.batch=4"]))
    )
    assert list(result.ledger.lines()) == list(explicit.ledger.lines())
    assert result.ledger.header["settings"]["evaluate"]["batch"] == 4
    for method in ("full", "lora", "phased"):
        scorer = build_scorer(network, recipe.with_overrides([f"ttt.method={method}"]), "ttt")
        assert isinstance(scorer, WindowScorer) and scorer.batch == 4


def test_a_batch_stays_what_it_was_however_much_memory_is_free_later() -> None:
    recipe = small_recipe("evaluate.batch=0")
    first = with_batch(recipe, CPU)
    assert 1 <= first.evaluate.batch <= 8192 // 16
    assert with_batch(recipe, CPU) == first
    own = small_recipe("evaluate.batch=3")
    assert with_batch(own, CPU) is own


def test_ranks_agree_on_the_smallest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Others(Team):
        def gather(self, value: Any) -> list[Any]:
            return [value, 2, 16]

    monkeypatch.setattr(passes, "_batch_here", lambda *_: 8)
    assert with_batch(small_recipe("evaluate.batch=0"), CPU, Others()).evaluate.batch == 2


# ---- compiled passes


class Compiler:
    """Stands in for CUDA's: traces with the "eager" backend, and counts graphs."""

    def __init__(self) -> None:
        self.graphs: list[int] = []
        self.calls = 0
        self.ways: set[bool | str] = set()

    def compiled(self, forward: Callable[..., torch.Tensor], device: torch.device, how: bool | str) -> Any:
        if not how:
            return forward
        self.ways.add(how)
        fast = torch.compile(forward, dynamic=False, backend=self._backend)

        def counting(*arguments: Any) -> Any:
            self.calls += 1
            return fast(*arguments)

        return counting

    def _backend(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs.append(len(graph.graph.nodes))
        return graph.forward


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    torch.compiler.reset()
    compiler = Compiler()
    for module in (passes, ttt_module):
        monkeypatch.setattr(module, "compiled", compiler.compiled)
        monkeypatch.setattr(module, "pays_to_compile", lambda *_: True)
    return compiler


def scored(*settings: str, mode: str = "ttt", count: int = 700) -> EvalResult:
    # Chunks of 128 targets: 32 windows in groups of 4; 8 sequences, trained on by 3, 3 and 2, in 2 epochs.
    recipe = small_recipe(
        *("evaluate.batch=4", "ttt.chunk_tokens=128", "ttt.batch_sequences=3", "ttt.epochs=2", "ttt.lr=0.01"),
        *("model.layers=1", "ttt.frozen_blocks=0", *settings),
    )
    tokens = random_tokens(count + 1)
    return evaluate(small_model(recipe), recipe, tokens, byte_counts(tokens), mode)


def test_a_compiled_ttt_evaluation_has_three_graphs_and_the_same_score(compiler: Compiler) -> None:
    fast = scored()
    # One to score with; two to train with, for whole batches and for the rest of a chunk.
    assert len(compiler.graphs) == 3
    assert compiler.calls > 30 + 5 * 2 * 3
    plain = scored("evaluate.compile=false")
    assert len(compiler.graphs) == 3
    assert fast.val_bpb == pytest.approx(plain.val_bpb, abs=1e-6)
    assert [entry.first for entry in fast.ledger.entries] == [entry.first for entry in plain.ledger.entries]


def test_a_compiled_sliding_evaluation_has_one_graph_however_often_it_is_made(compiler: Compiler) -> None:
    results = [scored(mode="sliding", count=count) for count in (301, 401, 301)]
    assert len(compiler.graphs) == 1
    assert results[0].val_bpb == results[2].val_bpb
    plain = scored("evaluate.compile=false", mode="sliding", count=301)
    assert results[0].val_bpb == pytest.approx(plain.val_bpb, abs=1e-6)


def test_the_recipe_may_ask_for_graphs_that_are_replayed(compiler: Compiler) -> None:
    scored("evaluate.compile=reduce-overhead", count=300)
    assert compiler.ways == {"reduce-overhead"} and len(compiler.graphs) == 3, "scoring and training"
    with pytest.raises(PgolfError, match=r"evaluate\.compile"):
        scored("evaluate.compile=fastest")


def test_short_evaluations_and_cpus_do_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from pgolf.runtime.device import pays_to_compile

    cuda = torch.device("cuda")
    assert pays_to_compile(cuda, 10**9) and not pays_to_compile(cuda, 10**6)
    assert not pays_to_compile(CPU, 10**12)
    monkeypatch.setattr(torch, "compile", None)
    assert scored(count=100).targets == 100
