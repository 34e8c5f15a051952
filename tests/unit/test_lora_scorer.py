"""Scorers with low-rank adapters: what learns from what, what forgets; no order of requests matters."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.evaluate import EvalResult, evaluate
from pgolf.evaluate.ledger import Ledger
from pgolf.evaluate.lora_scorer import LORA_SCORERS, DocumentScorer, LoraScorer, PhasedScorer
from pgolf.evaluate.protocol import Recorded, Scorer, grade
from pgolf.evaluate.scorer import weights_digest
from pgolf.evaluate.ttt import Lesson
from tests.unit.lora_stand_ins import BOS, FORMS, Tokens, changed, documents, lora_recipe, weights
from tests.unit.stand_ins import LENGTH, byte_counts, random_tokens, small_model, small_recipe

METHODS = tuple(LORA_SCORERS)
# Documents that end before, at and after grid points; one of a single token, one of none but its BOS.
SIZES = (36, 1, 2, 25, 40, 9, 20)


def graded(
    scorer: Scorer, tokens: Tokens, *, strict: bool = False, most: int | None = None, until: int | None = None
) -> Tensor:
    """The loss of every target, or of those before ``until``; ``most`` bounds the targets of a request."""
    scorer.begin(int(tokens[0]), len(tokens) - 1)
    done, end = 0, until or len(tokens) - 1
    losses: list[Tensor] = []
    while done < end:
        count = 1 if strict else min(scorer.wanted(), end - done, most or end)
        block = tokens[done + 1 : done + 1 + count]
        if strict:
            row = scorer.distributions(torch.zeros(0, dtype=torch.int64))
            losses.append(-row[:, int(block[0])])
        else:
            losses.append(scorer.losses(torch.from_numpy(block.astype(np.int64))))
        scorer.receive(Recorded(done, block.copy()))
        done += count
    return torch.cat(losses)


def scored(
    method: str,
    tokens: Tokens,
    *settings: str,
    strict: bool = False,
    most: int | None = None,
    until: int | None = None,
) -> Tensor:
    return _scored("ttt", method, tokens.tobytes(), settings, strict, most, until)


def sliding(tokens: Tokens, *settings: str) -> Tensor:
    return _scored("sliding", "lora_document", tokens.tobytes(), settings, False, None, None)


@functools.cache
def _scored(
    mode: str,
    method: str,
    tokens: bytes,
    settings: tuple[str, ...],
    strict: bool,
    most: int | None,
    until: int | None,
) -> Tensor:
    """By a scorer of its own; what several tests compare with is computed once."""
    recipe = lora_recipe(method, *settings)
    scorer = build_scorer(small_model(recipe), recipe, mode)
    return graded(scorer, np.frombuffer(tokens, np.uint16), strict=strict, most=most, until=until)


def evaluated(method: str, tokens: Tokens, *settings: str) -> EvalResult:
    recipe = lora_recipe(method, *settings)
    return evaluate(small_model(recipe), recipe, tokens, byte_counts(tokens), "ttt")


# ---- the protocol


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "settings", [(), ("ttt.lora.chunk_tokens=7", "evaluate.stride=5"), ("evaluate.batch=1",)]
)
def test_requests_of_any_size_give_the_same_numbers(method: str, settings: tuple[str, ...]) -> None:
    tokens = documents(*SIZES)
    blocks = scored(method, tokens, *settings)
    assert len(blocks) == len(tokens) - 1
    for other in (scored(method, tokens, *settings, strict=True), scored(method, tokens, *settings, most=5)):
        assert torch.allclose(blocks, other, atol=1e-5, rtol=0)
    assert (blocks - sliding(tokens, *settings)).abs().max() > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_numbers_in_requests_of_any_size(form: str) -> None:
    tokens = documents(*SIZES)
    blocks = scored("lora_document", tokens, *FORMS[form])
    for options in ({"strict": True}, {"most": 5}):
        other = scored("lora_document", tokens, *FORMS[form], **options)  # type: ignore[arg-type]
        assert torch.allclose(blocks, other, atol=2e-5, rtol=0)
    assert (blocks - sliding(tokens, *FORMS[form])).abs().max() > 1e-2


@pytest.mark.parametrize("case", [*METHODS, "by position", "scoring", "all"])
def test_a_token_never_changes_earlier_losses(case: str) -> None:
    method, settings = (case, ()) if case in METHODS else ("lora_document", FORMS[case])
    tokens = documents(*SIZES)
    before = scored(method, tokens, *settings)
    # Around grid points (multiples of 12) and document starts (36, 37, 39, 64, 104, 113): they come and go.
    for at, token in [
        (5, BOS),
        (12, 7),
        (13, BOS),
        (36, 7),
        (38, BOS),
        (39, 7),
        (70, BOS),
        (104, 7),
        (105, BOS),
    ]:
        other = tokens.copy()
        other[at] = token
        assert other[at] != tokens[at]
        # Two grid points on there is nothing new to see.
        end = min(at + 25, len(before))
        after = scored(method, other, *settings, until=end)
        # Target t is token t + 1.
        assert torch.equal(before[: at - 1], after[: at - 1])
        assert not torch.equal(before[at - 1 : end], after[at - 1 :])


@pytest.mark.parametrize("method", METHODS)
def test_distributions_are_the_losses(method: str) -> None:
    tokens = documents(*SIZES)
    recipe = lora_recipe(method)
    scorer = build_scorer(small_model(recipe), recipe, "ttt")
    scorer.begin(BOS, len(tokens) - 1)
    done = 0
    while done < len(tokens) - 1:
        block = tokens[done + 1 : done + 1 + scorer.wanted()]
        ids = torch.from_numpy(block.astype(np.int64))
        rows = scorer.distributions(ids[:-1])
        assert rows.exp().sum(1).allclose(torch.ones(len(block)), atol=1e-5)
        assert torch.allclose(F.nll_loss(rows, ids, reduction="none"), scorer.losses(ids), atol=1e-5)
        scorer.receive(Recorded(done, block.copy()))
        done += len(block)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_learning_rate_it_is_sliding(method: str) -> None:
    tokens = documents(*SIZES)
    still = scored(method, tokens, "ttt.lora.lr=0", "ttt.lr=0")
    assert torch.allclose(still, sliding(tokens), atol=1e-5, rtol=0)
    for settings in (
        ["ttt.lora.epochs=0", "ttt.epochs=0"],
        ["ttt.lora.chunk_tokens=10000", "ttt.phased.phases=1"],
    ):
        assert torch.allclose(scored(method, tokens, *settings), sliding(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_repeating_repeats_the_numbers(method: str) -> None:
    tokens, recipe = documents(*SIZES), lora_recipe(method)
    scorer = build_scorer(small_model(recipe), recipe, "ttt")
    torch.manual_seed(1)
    first = graded(scorer, tokens)
    torch.manual_seed(2)
    assert torch.equal(first, graded(scorer, tokens)), "begin goes back to the artifact"
    assert torch.equal(first, scored(method, tokens))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [0, 40, 72, 100])
def test_a_snapshot_brings_everything_back(method: str, at: int) -> None:
    tokens, recipe = documents(*SIZES), lora_recipe(method)
    scorer = build_scorer(small_model(recipe), recipe, "ttt")
    expected = graded(scorer, tokens)
    scorer.begin(BOS, len(tokens) - 1)
    done = 0

    def go(end: int) -> list[Tensor]:
        nonlocal done
        losses = []
        while done < end:
            block = tokens[done + 1 : done + 1 + min(scorer.wanted(), end - done)]
            losses.append(scorer.losses(torch.from_numpy(block.astype(np.int64))))
            scorer.receive(Recorded(done, block.copy()))
            done += len(block)
        return losses

    go(at)
    snapshot, digest = scorer.snapshot(), scorer.state_digest()
    for _ in range(2):
        losses = torch.cat(go(len(tokens) - 1))
        assert torch.allclose(losses, expected[at:], atol=1e-5, rtol=0)
        assert scorer.state_digest() != digest
        scorer.restore(snapshot)
        assert scorer.state_digest() == digest
        done = at
    again = torch.cat(go(len(tokens) - 1))
    assert torch.equal(again, losses)


@pytest.mark.parametrize("method", METHODS)
def test_the_digest_changes_with_the_weights_and_never_else(method: str) -> None:
    tokens, recipe = documents(*SIZES), lora_recipe(method)
    scorer: Any = build_scorer(small_model(recipe), recipe, "ttt")
    ledger = Ledger()
    seen: dict[str, dict[str, Tensor]] = {}
    plain = scorer.losses

    def watching(block: Tensor) -> Tensor:
        now, digest = weights(scorer.network), scorer.state_digest()
        assert digest == weights_digest(scorer.network)
        for known, then in seen.items():
            assert (known == digest) == all(torch.equal(then[name], value) for name, value in now.items())
        seen[digest] = now
        return plain(block)

    scorer.losses = watching
    grade(scorer, tokens, byte_counts(tokens), ledger)
    states = [entry.state for entry in ledger.entries]
    assert set(states) == set(seen) and len(seen) > 8
    # A document without adapters is scored by the same weights as the first.
    assert (states.count(states[0]) > 1) == (method != "lora")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_callers_model_is_left_as_it_was(method: str, interrupted: bool) -> None:
    recipe = lora_recipe(method, "ttt.phased.phases=4")
    network = small_model(recipe)
    before = weights(network)

    def progress(done: int, _: int) -> None:
        if interrupted and done > 100:
            raise KeyboardInterrupt

    tokens = documents(*SIZES)
    try:
        evaluate(network, recipe, tokens, byte_counts(tokens), "ttt", progress)
    except KeyboardInterrupt:
        assert interrupted
    assert not changed(before, network) and network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [2, 9, 12, 13, 14, 25])
def test_streams_of_any_size_are_scored_once(method: str, count: int) -> None:
    result = evaluated(method, documents(count))
    assert result.targets == count - 1
    assert result.chunks[-1] == result.val_bpb


def test_what_is_learned_from_is_recorded() -> None:
    tokens, recipe = documents(*SIZES), lora_recipe("phased")
    scorer: Any = build_scorer(small_model(recipe), recipe, "ttt")
    seen: list[int] = []
    scorer.begin(BOS, len(tokens) - 1)
    done = 0
    lessons: list[Lesson] = []
    scorer.adapters.adapt = lambda lesson, _: lessons.append(lesson)
    while done < len(tokens) - 1:
        block = tokens[done + 1 : done + 1 + scorer.wanted()]
        scorer.losses(torch.from_numpy(block.astype(np.int64)))
        scorer.receive(Recorded(done, block.copy()))
        done += len(block)
        while lessons:
            lesson = lessons.pop()
            assert np.array_equal(lesson.text, tokens[done + 1 - len(lesson.text) : done + 1])
            assert (lesson.text[1:] == BOS).sum() == 0, "one document only"
            seen.extend(range(done - lesson.targets, done))
    assert seen == sorted(set(seen)), "every target at most once"
    # Left out: what follows a document's last grid point, and a grid point at which the document is over.
    starts = np.flatnonzero(tokens == BOS).tolist()
    ends = [*starts[1:], len(tokens) - 1]
    assert seen == [t for s, e in zip(starts, ends, strict=True) for t in range(s, (e - 1) // 12 * 12)]


def test_chunks_go_by_the_position_in_the_document() -> None:
    recipe = lora_recipe("lora_document", *FORMS["by position"])
    scorer: Any = build_scorer(small_model(recipe), recipe, "ttt")
    # Two whole documents, and one of 5 targets inside a chunk.
    tokens, lessons = documents(40, 5, 12), []
    scorer.adapters = None
    scorer.begin(BOS, len(tokens) - 1)
    scorer.adapters.adapt = lambda lesson, _: lessons.append((scorer.position, lesson.targets))
    done = 0
    while done < len(tokens) - 1:
        block = tokens[done + 1 : done + 1 + scorer.wanted()]
        scorer.receive(Recorded(done, block.copy()))
        done += len(block)
    # 4 up to position 8, 7 up to 30, then 13; the chunk that begins at 36 ends at 49 in the third document.
    assert lessons == [(4, 4), (8, 4), (15, 7), (22, 7), (29, 7), (36, 7), (49, 4), (53, 4)]


def test_a_scored_chunk_is_read_once() -> None:
    reads: dict[str, int] = {}
    tokens = documents(97)
    for gradient in ("lesson", "scoring"):
        settings = ("evaluate.stride=12", "evaluate.batch=8", f'ttt.lora.gradient="{gradient}"')
        recipe = lora_recipe("lora_document", *settings)
        scorer: Any = build_scorer(small_model(recipe), recipe, "ttt")
        scorer.begin(BOS, 96)
        with mock.patch.object(scorer.network, "hidden", wraps=scorer.network.hidden) as hidden:
            done = 0
            while done < 96:
                ids = torch.from_numpy(tokens[done + 1 : done + 1 + scorer.wanted()].astype(np.int64))
                scorer.losses(ids)
                scorer.receive(Recorded(done, ids.numpy().astype(np.uint16)))
                done += len(ids)
        reads[gradient] = hidden.call_count
    # Eight chunks, of which the last is not learned.
    assert reads["lesson"] - reads["scoring"] == 7


# ---- what each method learns and forgets


def test_a_document_is_scored_as_if_it_were_alone() -> None:
    # Windows side by side, as long as the documents: no window sees two of them.
    settings = [f"evaluate.stride={LENGTH}", "ttt.lora.chunk_tokens=8"]
    tokens = np.append(documents(LENGTH, LENGTH, LENGTH), np.uint16(BOS))
    together = scored("lora_document", tokens, *settings)
    frozen = sliding(tokens, *settings)
    for index in range(3):
        begin, end = index * LENGTH, (index + 1) * LENGTH
        alone = scored("lora_document", tokens[begin : end + 1], *settings)
        assert torch.allclose(together[begin:end], alone, atol=1e-5, rtol=0)
        # Adapters that last know the document before.
        if index:
            lasting = scored("lora", tokens, *settings)[begin : begin + 8]
            assert not torch.allclose(lasting, frozen[begin : begin + 8], atol=1e-3)
        assert torch.allclose(together[begin : begin + 8], frozen[begin : begin + 8], atol=1e-5, rtol=0)
        assert not torch.allclose(together[begin + 8 : end], frozen[begin + 8 : end], atol=1e-3)


def test_inside_a_block_a_document_begins_with_the_base_weights() -> None:
    # One grid point before BOS, which is token 30; the block of targets 24 to 35 holds the edge.
    tokens = documents(30, 30)
    frozen = sliding(tokens)
    learned = scored("lora_document", tokens)
    differs = (learned - frozen).abs() > 1e-4
    # Target 29 is BOS itself, predicted by the adapters of the old document.
    assert not differs[:12].any() and differs[12:30].all()
    assert not differs[30:36].any() and differs[36:48].all()


def test_a_document_without_a_grid_point_learns_nothing() -> None:
    tokens = documents(11, 1, 10, 2)
    assert torch.allclose(scored("lora_document", tokens), sliding(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_repetition_is_learned(method: str) -> None:
    text = np.tile(random_tokens(8, seed=3), 30)
    text[text == BOS] = 2
    tokens = np.concatenate(([np.uint16(BOS)], text))
    settings = ["ttt.lora.epochs=2", 'ttt.schedule="constant"']
    assert scored(method, tokens, *settings).mean() < 0.8 * sliding(tokens).mean()


def test_only_lasting_adapters_learn_from_earlier_documents() -> None:
    text = documents(*[20] * 10)
    text[:] = np.tile(text[:20], 10)
    settings = ['ttt.schedule="constant"', "ttt.lora.epochs=2"]
    lasting, forgetful, phased = (scored(method, text, *settings)[-60:].mean() for method in METHODS)
    frozen = sliding(text)[-60:].mean()
    assert lasting < 0.8 * frozen
    assert lasting < forgetful and phased < forgetful


def test_another_token_may_begin_documents() -> None:
    tokens, recipe = documents(*SIZES), lora_recipe("lora_document")
    marked = build_scorer(small_model(recipe), recipe, "ttt", document_start=BOS)
    assert isinstance(marked, DocumentScorer)
    # A stream that starts in the middle of a document: what is left of it counts as one.
    assert not torch.equal(graded(marked, tokens[3:]), scored("lora_document", tokens[3:]))
    assert torch.equal(graded(marked, tokens), scored("lora_document", tokens))
    middle = graded(marked, tokens[3:])
    assert torch.allclose(middle[:12], sliding(tokens[3:])[:12], atol=1e-5)
    assert marked.document > 0


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ([], [(0, 0, 62), (1, 0, 124)]),
        (['ttt.phased.text="phase"'], [(0, 0, 62), (1, 62, 124)]),
        (["ttt.phased.phases=1"], []),
        (["ttt.phased.phases=2", "ttt.phased.share=0.5"], [(0, 0, 46), (1, 0, 93)]),
        (["ttt.phased.phases=400"], None),
    ],
)
def test_the_base_learns_at_the_end_of_each_phase(
    settings: list[str], trained: list[tuple[int, int, int]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = documents(100, 87)
    recipe = lora_recipe("phased", *settings)
    scorer: Any = build_scorer(small_model(recipe), recipe, "ttt")
    scorer.begin(BOS, len(tokens) - 1)
    assert isinstance(scorer, PhasedScorer)
    seen: list[tuple[int, int, int]] = []
    done = 0

    def watching(chunk: Any) -> None:
        text = chunk.text
        assert np.array_equal(text, tokens[done + 1 - len(text) : done + 1])
        seen.append((chunk.index, done + 1 - len(text), done))

    monkeypatch.setattr(scorer.base_adapter, "adapt", watching)
    while done < len(tokens) - 1:
        block = tokens[done + 1 : done + 1 + scorer.wanted()]
        done += len(block)
        scorer.receive(Recorded(done - len(block), block.copy()))
    if trained is None:
        assert [end for _, _, end in seen] == list(range(1, 186))
    else:
        assert seen == trained


def test_a_phase_changes_the_base_under_the_adapters_in_use() -> None:
    tokens = documents(187)
    recipe = lora_recipe("phased", "ttt.phased.phases=2")
    network = small_model(recipe)
    scorer: Any = build_scorer(network, recipe, "ttt")
    scorer.begin(BOS, 186)
    done = 0
    before, base = weights(network), weights(network)
    while done < 93:
        base, up = (
            weights(scorer.base),
            {name: value.detach().clone() for name, value in scorer.adapters.up.items()},
        )
        block = tokens[done + 1 : done + 1 + scorer.wanted()]
        scorer.receive(Recorded(done, block.copy()))
        done += len(block)
        if done < 93:
            assert not changed(before, scorer.base)
    assert done == 93 and changed(base, scorer.base) == set(before)
    assert all(torch.equal(value, up[name]) for name, value in scorer.adapters.up.items()), (
        "93 is no grid point"
    )
    for name, value in scorer.network.named_parameters():
        expected = scorer.base.get_parameter(name)
        if name in scorer.adapters.up:
            assert not torch.equal(value, expected)
            expected = expected + 16.0 * scorer.adapters.up[name] @ scorer.adapters.down[name]
        assert torch.allclose(value, expected, atol=1e-6), name
    assert not changed(before, network)


def test_lasting_adapters_follow_the_schedule_and_those_of_a_document_do_not() -> None:
    rates: dict[str, list[float]] = {}
    for method in METHODS:
        recipe = lora_recipe(method, 'ttt.schedule="cosine"', "ttt.lora.chunk_tokens=25")
        scorer: Any = build_scorer(small_model(recipe), recipe, "ttt")
        scorer.begin(BOS, 125)
        seen = rates[method] = []
        scorer.adapters.adapt = lambda _, factor, seen=seen: seen.append(factor)
        tokens, done = documents(126), 0
        while done < 125:
            block = tokens[done + 1 : done + 1 + scorer.wanted()]
            scorer.receive(Recorded(done, block.copy()))
            done += len(block)
    assert rates["lora"] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert rates["lora_document"] == rates["phased"] == [1.0] * 4


def test_the_recipe_chooses_the_scorer() -> None:
    kinds = {"lora": LoraScorer, "lora_document": DocumentScorer, "phased": PhasedScorer}
    for method, kind in kinds.items():
        recipe = lora_recipe(method)
        assert type(build_scorer(small_model(recipe), recipe, "ttt")) is kind
        assert not isinstance(build_scorer(small_model(recipe), recipe, "sliding"), LoraScorer)
    recipe = small_recipe()
    assert not isinstance(build_scorer(small_model(recipe), recipe, "ttt"), LoraScorer)
