"""Low-rank adapters: what they change, how they learn and from which text, what a recipe may ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.evaluate.lora import Adapters, adapted_matrices, training_batches
from pgolf.evaluate.protocol import Recorded
from pgolf.evaluate.ttt import Lesson, Transcript
from pgolf.model.gpt import GPT, parameter_count
from pgolf.recipe.recipe import Recipe
from tests.unit.lora_stand_ins import FORMS, changed, lora_recipe, weights
from tests.unit.stand_ins import LENGTH, random_tokens, small_model, small_recipe


def adapters_of(network: GPT, recipe: Recipe) -> Adapters:
    return Adapters(network, recipe.ttt, LENGTH)


def lesson_of(size: int, targets: int, seed: int = 5) -> Lesson:
    return Lesson(random_tokens(size + 1, seed=seed), targets)


@pytest.mark.parametrize(
    ("targets", "frozen", "expected"),
    [
        (["query"], 0, [f"cores.{core}.attention.query.weight" for core in range(4)]),
        (
            ["value", "up"],
            2,
            [f"cores.{c}.{m}.weight" for c in (2, 3) for m in ("attention.value", "mlp.up")],
        ),
        (["key", "output"], 3, ["cores.3.attention.key.weight", "cores.3.attention.output.weight"]),
        (["down"], 3, ["cores.3.mlp.down.weight"]),
    ],
)
def test_only_the_named_matrices_change(targets: list[str], frozen: int, expected: list[str]) -> None:
    recipe = lora_recipe(
        "lora", f"ttt.lora.targets={targets}", f"ttt.frozen_blocks={frozen}", "model.layers=4"
    )
    network = small_model(recipe)
    before = weights(network)
    adapters = adapters_of(network, recipe)
    assert not changed(before, adapters.student)
    adapters.adapt(lesson_of(40, 40))
    assert changed(before, adapters.student) == set(expected) == set(adapters.up)
    assert not changed(before, network)
    for name in expected:
        added = adapters.student.get_parameter(name).detach() - before[name]
        values = torch.linalg.svdvals(added.double())
        assert values[1] > 1e-4 and values[2] < 1e-5 * values[0], "rank 2"
    adapters.reset()
    assert not changed(before, adapters.student)


@pytest.mark.parametrize("form", ["head", "beside", "vectors", "per pass", "all"])
def test_before_it_learns_the_student_is_the_base(form: str) -> None:
    recipe = lora_recipe("lora_document", *FORMS[form])
    network = small_model(recipe).eval()
    before, adapters = weights(network), adapters_of(network, recipe)
    tokens = torch.from_numpy(random_tokens(LENGTH).astype(np.int64))[None]

    def moved() -> float:
        with torch.no_grad():
            assert torch.equal(adapters.plain(tokens), network(tokens))
            return (adapters.student(tokens) - network(tokens)).abs().max().item()

    assert moved() == 0
    adapters.adapt(lesson_of(40, 40))
    assert moved() > 1e-3
    adapters.reset()
    assert moved() == 0
    assert not changed(before, network)


def test_vectors_learn_and_no_matrix() -> None:
    recipe = lora_recipe("lora_document", *FORMS["vectors"], "model.layers=2", "ttt.frozen_blocks=1")
    network = small_model(recipe)
    before, adapters = weights(network), adapters_of(network, recipe)
    adapters.adapt(lesson_of(40, 40))
    found = changed(before, adapters.student)
    assert {"layers.1.attention_scale", "layers.1.residual_mix", "cores.1.attention.query_gain"} <= found
    assert found <= set(adapters.shift) and not any(
        name.startswith(("layers.0", "cores.0")) for name in found
    )
    assert not any(name.startswith("cores") and name.endswith("weight") for name in found)


def test_freezing_a_block_leaves_out_the_core_that_layers_share() -> None:
    recipe = lora_recipe("lora", "model.layers=4", "model.unique_layers=3", "ttt.frozen_blocks=1")
    names = adapted_matrices(small_model(recipe), recipe.ttt)
    assert {name.split(".")[1] for name in names} == {"1", "2"} and len(names) == 12


@pytest.mark.parametrize("form", ["", "beside", "per pass"])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_follows_the_update_rule(clip: float, form: str) -> None:
    """Against adapters that are written into the forward pass, learned by automatic differentiation."""
    settings = ["model.layers=2", "ttt.lora.epochs=3", "ttt.lora.weight_decay=0.1", *FORMS.get(form, ())]
    recipe = lora_recipe("lora", *settings, f"ttt.grad_clip={clip}")
    adapters, scale = adapters_of(small_model(recipe), recipe), 32.0 / 2
    network = adapters.plain
    up = {name: torch.zeros_like(value).requires_grad_() for name, value in adapters.up.items()}
    down = {name: value.detach().clone().requires_grad_() for name, value in adapters.down.items()}
    lesson = lesson_of(40, 24)
    adapters.adapt(lesson, 0.5)
    plain = weights(network)
    # The learning rate is 0.02, by half.
    betas, eps = ((0.0, 0.99), 1e-10) if form == "beside" else ((0.9, 0.999), 1e-8)
    options = {"lr": 0.01, "weight_decay": 0.1, "betas": betas, "eps": eps}
    optimizer = torch.optim.AdamW([*up.values(), *down.values()], **options)
    text = torch.from_numpy(lesson.text.astype(np.int64))
    for _ in range(3):
        summed = {name: plain[name] + scale * up[name] @ down[name] for name in up}
        arguments = (torch.stack([text[16:32], text[24:40]]), torch.stack([text[17:33], text[25:41]]))
        losses = torch.func.functional_call(network, {**plain, **summed}, arguments)
        optimizer.zero_grad()
        # Targets 16 to 31 in the first sequence, 32 to 39 in the second.
        torch.cat([losses[0], losses[1, 8:]]).mean().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([*up.values(), *down.values()], clip)
        optimizer.step()
    moved = max((adapters.student.get_parameter(n) - plain[n]).abs().max().item() for n in up)
    assert moved > 0.01
    expected_factors = {"": 12, "beside": 7, "per pass": 24}
    assert len(up) == expected_factors[form]
    for name in up:
        expected = plain[name] + scale * up[name] @ down[name]
        assert torch.allclose(adapters.student.get_parameter(name), expected, atol=2e-3 * moved), name


def test_adapters_take_the_memory_of_their_factors_and_of_the_matrices() -> None:
    recipe = lora_recipe("lora", "model.layers=2", "ttt.lora.targets=['query', 'down']")
    network = small_model(recipe)
    adapters = adapters_of(network, recipe)
    factors = [*adapters.up.values(), *adapters.down.values()]
    # Two cores; query 16 to 16, down 24 to 16; rank 2.
    assert sum(value.numel() for value in factors) == 2 * 2 * ((16 + 16) + (24 + 16))
    assert parameter_count(adapters.student) == parameter_count(network)
    own = {
        name
        for name, value in adapters.student.named_parameters()
        if value.data_ptr() != network.get_parameter(name).data_ptr()
    }
    assert own == set(adapters.up)
    adapters.adapt(lesson_of(20, 20))
    assert all(parameter.grad is None for parameter in adapters.student.parameters())
    state = adapters.optimizer.state
    moments = sum(value.numel() for values in state for value in values if value.ndim)
    assert moments == 2 * sum(value.numel() for value in factors)


def test_short_lessons_rotate_like_whole_windows() -> None:
    settings = ["model.rope_dims=4", "model.rope_train_length=8", "ttt.lora.targets=['query']"]
    recipe = lora_recipe("lora", *settings)
    network = small_model(recipe)
    lengths: list[int | None] = []
    adapters = adapters_of(network, recipe)
    plain = adapters.student.hidden

    def watching(tokens: Tensor, length: int | None = None, last: int | None = None) -> Tensor:
        lengths.append(length)
        return plain(tokens, length, last)

    adapters.student.hidden = watching  # type: ignore[method-assign]
    adapters.adapt(lesson_of(5, 5))
    assert lengths == [LENGTH]


def test_no_gradient_is_computed_below_the_first_adapted_layer() -> None:
    recipe = lora_recipe("lora", "model.layers=4", "ttt.frozen_blocks=2")
    adapters = adapters_of(small_model(recipe), recipe)
    needed: list[bool] = []
    for layer in adapters.student.layers:
        layer.register_forward_hook(lambda _, __, output: needed.append(output[0].requires_grad))
    adapters.adapt(lesson_of(5, 5))
    assert needed == [False, False, True, True]


# ---- text


def test_a_transcript_keeps_what_can_be_asked_for() -> None:
    tokens = random_tokens(100)
    bounded, whole = Transcript(int(tokens[0]), 30), Transcript(int(tokens[0]), None)
    done = 0
    for size in (1, 7, 1, 30, 2, 40, 18):
        for transcript in (bounded, whole):
            transcript.add(Recorded(done, tokens[done + 1 : done + 1 + size]))
        done += size
        copied = bounded.copy()
        for targets in (0, 1, 13, 30):
            if targets <= done:
                expected = tokens[done - targets : done + 1]
                assert np.array_equal(bounded.last(targets), expected)
                assert np.array_equal(whole.last(targets), expected)
        copied.add(Recorded(done, tokens[:5]))
        assert bounded.targets == whole.targets == done
    assert np.array_equal(whole.last(99), tokens)
    assert sum(len(part) for part in bounded._parts) <= 31 + 40
    with pytest.raises(AssertionError, match="without gaps"):
        bounded.add(Recorded(200, tokens[:5]))


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize(
    ("size", "targets"), [(1, 1), (5, 3), (8, 8), (20, 3), (20, 8), (20, 9), (20, 20), (33, 17)]
)
def test_every_target_of_a_lesson_is_learned_once_with_its_context(
    size: int, targets: int, batch: int
) -> None:
    lesson = Lesson(np.arange(size + 1, dtype=np.uint16), targets)
    learned: list[int] = []
    for inputs, following, counted in training_batches(lesson, 8, batch):
        assert inputs.shape == following.shape == counted.shape
        assert inputs.shape[0] <= batch and inputs.shape[1] == min(size, 8)
        assert torch.equal(inputs + 1, following), "the text is 0, 1, 2, ..."
        learned += following[counted].tolist()
    assert learned == list(range(size - targets + 1, size + 1))


# ---- recipes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ttt.lora.rank=0"], r"ttt.lora.rank: input should be greater than or equal to 1 \(got 0\)"),
        (["ttt.rank=4"], r"unknown key ttt.rank \(did you mean ttt.lora.rank\?\)"),
        (["ttt.lora.target=[]"], r"did you mean ttt.lora.targets\?"),
        (['ttt.lora.targets=["keys"]'], "ttt.lora.targets.0: input should be 'query', 'key', 'value'"),
        (['ttt.method="dora"'], "ttt.method: input should be 'full', 'lora', 'lora_document' or 'phased'"),
        (['ttt.method="lora"', "ttt.lora.targets=[]"], "ttt.lora.targets is empty"),
        (['ttt.method="lora"', 'ttt.lora.targets=["up", "up"]'], "ttt.lora.targets names a matrix twice"),
        (
            ['ttt.method="phased"', "ttt.lora.rank=9"],
            "ttt.lora.rank 9 exceeds 8, the smaller side of the key matrices",
        ),
        (['ttt.method="lora"', "ttt.frozen_blocks=4"], "freezes all 4 blocks, so ttt.method lora has no"),
        (
            ['ttt.method="lora"', "ttt.frozen_blocks=2", "model.unique_layers=2", "model.xsa_last=0"],
            "ttt.frozen_blocks 2 freezes all 2 blocks",
        ),
        (["ttt.phased.share=0"], "ttt.phased.share: input should be greater than 0"),
        (["ttt.only=vectors", "ttt.frozen_blocks=4"], "so ttt.only vectors has nothing to train"),
        (['ttt.method="lora"', "ttt.lora.chunk_schedule=[[8, 0]]"], "which ttt.method lora does not know"),
        (
            [
                *("ttt.method=lora_document", "ttt.lora.per_pass=true", "ttt.lora.rank=9"),
                *('ttt.lora.targets=["key"]', "ttt.lora.chunk_schedule=[[8, 256], [0, 256], [9, 7]]"),
            ],
            "rank 9 exceeds 8, .*; ttt.lora.per_pass needs matrices that are used several times.*; "
            r"ttt.lora.chunk_schedule: a chunk must have 1 to .*; .* positions \[256, 256, 7\] must rise.*; "
            ".* it ends at position 7; its last part must have 0",
        ),
        (
            ['ttt.lora.targets=["head", "neck"]', "ttt.phased.share=1.5", "ttt.lora.beta1=1"],
            "'vectors' .got 'neck'.; ttt.lora.beta1: .*less than 1 .*; ttt.phased.share: .*less than or",
        ),
    ],
)
def test_mistakes_in_a_recipe(settings: list[str], message: str) -> None:
    with pytest.raises(PgolfError, match=message):
        small_recipe(*settings)


def test_what_a_method_does_not_use_is_no_mistake() -> None:
    small_recipe("ttt.lora.rank=9", "ttt.frozen_blocks=4")
    small_recipe('ttt.method="lora"', "ttt.lora.rank=8", "ttt.chunk_tokens=3", "ttt.lora.chunk_tokens=3")
    with pytest.raises(PgolfError, match=r"ttt.chunk_tokens 3 is shorter than a window"):
        small_recipe("ttt.chunk_tokens=3")
