"""Evaluation as a whole: coverage, legality, and a model left as it was."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pgolf
from pgolf.data.shards import Tokens
from pgolf.errors import PgolfError
from pgolf.evaluate import scorer as scorer_module
from pgolf.evaluate.evaluate import MODES, evaluate
from pgolf.evaluate.ttt import Adapter
from tests.unit.stand_ins import byte_counts, random_tokens, small_model, small_recipe


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [2, 9, 129, 150])
def test_every_target_and_byte_counts_once(mode: str, count: int) -> None:
    recipe, tokens = small_recipe(), random_tokens(count)
    seen: list[tuple[int, int]] = []
    result = evaluate(
        small_model(recipe), recipe, tokens, byte_counts(tokens), mode, lambda *at: seen.append(at)
    )
    assert result.targets == count - 1
    assert result.bytes == byte_counts(tokens).sum()
    assert seen[-1] == (count - 1, count - 1) and seen == sorted(seen)
    values = json.loads(json.dumps(result.to_json()))
    keys = ["mode", "val_loss", "val_bpb", "targets", "bytes", "seconds"]
    assert list(values) == (keys if mode != "ttt" else [*keys, "chunks"])
    if mode == "ttt":
        assert len(result.chunks) == -(-(count - 1) // 32)
        assert result.chunks[-1] == result.val_bpb


def test_ttt_without_learning_is_sliding() -> None:
    recipe, tokens = small_recipe("ttt.lr=0"), random_tokens(150)
    network = small_model(recipe)
    sliding, ttt = (
        evaluate(network, recipe, tokens, byte_counts(tokens), mode) for mode in ("sliding", "ttt")
    )
    assert ttt.val_loss == pytest.approx(sliding.val_loss, rel=1e-7)


def test_ttt_learns_from_a_text_that_repeats_itself() -> None:
    recipe = small_recipe("ttt.epochs=3", 'ttt.optimizer="sgd"', 'ttt.schedule="constant"')
    tokens = np.tile(random_tokens(8), 30)
    network = small_model(recipe)
    sliding, ttt = (
        evaluate(network, recipe, tokens, byte_counts(tokens), mode) for mode in ("sliding", "ttt")
    )
    assert ttt.val_bpb < 0.8 * sliding.val_bpb


def test_a_token_never_changes_the_score_of_earlier_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe('ttt.schedule="constant"', "evaluate.batch=1", "model.layers=2", "ttt.epochs=1")
    network, tokens = small_model(recipe), random_tokens(151)
    recorded: list[torch.Tensor] = []
    plain = scorer_module.window_logits

    def recording(*arguments: object) -> torch.Tensor:
        recorded.append(plain(*arguments))
        return recorded[-1]

    monkeypatch.setattr(scorer_module, "window_logits", recording)

    def losses(stream: Tokens) -> torch.Tensor:
        recorded.clear()
        evaluate(network, recipe, stream, byte_counts(stream), "ttt")
        return torch.cat(recorded)

    before = losses(tokens)
    # Chunks have 32 targets: some changes begin at the edge of a chunk, some inside one.
    for first in (20, 33, 49, 65, 96, 97, 120):
        other = tokens.copy()
        other[first : first + 8] = (other[first : first + 8] + 9) % 64
        after = losses(other)
        assert torch.equal(before[: first - 1], after[: first - 1])
        # The last targets lie beyond any window that sees the change: only the weights can carry it there.
        assert not torch.equal(before[-8:], after[-8:])


def spied(monkeypatch: pytest.MonkeyPatch, settings: list[str], count: int) -> list[tuple[str, int]]:
    """What happens in a TTT evaluation: ("score" or "train", targets) in order, ("chunks", number)."""
    events: list[tuple[str, int]] = []
    update = Adapter._update

    def recording(self: Adapter, inputs: torch.Tensor, targets: torch.Tensor, lr: float) -> None:
        events.append(("train", targets.numel()))
        update(self, inputs, targets, lr)

    monkeypatch.setattr(Adapter, "_update", recording)
    recipe = small_recipe("evaluate.batch=64", "ttt.epochs=1", "ttt.batch_sequences=64", *settings)
    scored = 0

    def report(done: int, _: int) -> None:
        nonlocal scored
        events.append(("score", done - scored))
        scored = done

    tokens = random_tokens(count + 1)
    result = evaluate(small_model(recipe), recipe, tokens, byte_counts(tokens), "ttt", report)
    return [*events, ("chunks", len(result.chunks))]


def test_each_chunk_is_scored_then_trained_on_except_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    events = spied(monkeypatch, ["evaluate.stride=16"], 96)
    assert events == [
        ("score", 32),
        ("train", 32),
        ("score", 32),
        ("train", 32),
        ("score", 32),
        ("chunks", 3),
    ]


def test_nothing_is_trained_on_when_nothing_is_left_to_score(monkeypatch: pytest.MonkeyPatch) -> None:
    # The last window begins to score in chunk 0 and reaches over the three targets of chunk 1.
    settings = ["evaluate.sequence_length=32", "evaluate.stride=16", "ttt.chunk_tokens=40"]
    assert spied(monkeypatch, settings, 43) == [("score", 43), ("chunks", 1)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_model_is_left_as_it_was(mode: str, training: bool, interrupted: bool) -> None:
    recipe, tokens = small_recipe("ttt.frozen_blocks=1"), random_tokens(200)
    network = small_model(recipe).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def progress(done: int, _: int) -> None:
        if interrupted and done > 100:
            raise KeyboardInterrupt

    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            evaluate(network, recipe, tokens, byte_counts(tokens), mode, progress)
    else:
        evaluate(network, recipe, tokens, byte_counts(tokens), mode, progress)
    assert network.training is training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_repeating_an_evaluation_repeats_the_numbers() -> None:
    recipe, tokens = small_recipe(), random_tokens(150)
    network = small_model(recipe)
    first, second = (evaluate(network, recipe, tokens, byte_counts(tokens), "ttt") for _ in range(2))
    assert (first.val_loss, first.chunks) == (second.val_loss, second.chunks)


def test_text_of_no_bytes_is_a_clear_mistake() -> None:
    recipe = small_recipe()
    with pytest.raises(PgolfError, match="10 validation targets stand for no bytes"):
        evaluate(small_model(recipe), recipe, random_tokens(11), np.zeros(10, dtype=np.uint16), "sliding")


def test_no_function_both_scores_and_updates() -> None:
    scoring = {"losses", "distributions", "score", "_logits", "_measure"}
    updating = {"adapt", "_adapt", "follow", "_update", "backward", "step"}
    found: set[str] = set()
    for path in (Path(pgolf.__file__).parent / "evaluate").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            calls = {node.func for node in ast.walk(function) if isinstance(node, ast.Call)}
            names = {getattr(call, "id", None) or getattr(call, "attr", "") for call in calls}
            found |= names & (scoring | updating)
            assert not (names & scoring and names & updating), f"{path.name}: {function.name}"
    assert found == scoring | updating, "the names above are out of date"


def test_evaluation_needs_neither_the_training_package_nor_the_compiler() -> None:
    # The compiler's import takes longer than all others together.
    program = "import sys, pgolf.evaluate.evaluate; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "pgolf.evaluate.evaluate" in loaded
    assert not [name for name in loaded if name.startswith(("pgolf.train.", "torch._dynamo"))]
