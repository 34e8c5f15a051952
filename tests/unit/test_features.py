"""Every feature of the model, by itself: what is asked of all of them, whatever they do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pgolf.compress.container import encode_artifact, read_artifact
from pgolf.compress.scheme import quantize_state
from pgolf.errors import PgolfError
from pgolf.model.features import __path__ as folder
from pgolf.model.gpt import GPT, build_model
from pgolf.model.load import model_from
from pgolf.model.parts import FEATURES
from pgolf.model.section import FEATURE_ROWS, ModelSection
from pgolf.model.shape import Visit, schedule
from pgolf.model.slots import AttentionPart, Part, Reading, product_flops
from pgolf.model.step import extend, single_pass
from pgolf.optim.build import build_optimizers
from pgolf.optim.routing import ROUTES, route
from pgolf.recipe.recipe import load_recipe
from tests.unit.test_model import PLAIN, TINY, randomised, tokens

EXAMPLES = {name: settings for feature in FEATURES for name, *settings in feature.examples}
LENGTH = 12


def with_feature(name: str, *settings: str) -> ModelSection:
    return load_recipe("seed_456", [*TINY, *PLAIN, *EXAMPLES[name], *settings]).model


def plain() -> ModelSection:
    return load_recipe("seed_456", [*TINY, *PLAIN]).model


def test_every_file_is_listed_and_every_feature_has_an_example() -> None:
    files = {path.stem for path in Path(folder[0]).glob("*.py")} - {"__init__"}
    assert files == {feature.__module__.rpartition(".")[2] for feature in FEATURES}
    assert all(feature.examples for feature in FEATURES)
    assert len(EXAMPLES) == sum(len(feature.examples) for feature in FEATURES), "each case has its own name"
    assert not [feature for feature in FEATURES if feature.wanted(plain())], (
        "none of them is on in a plain model"
    )


def test_the_schedule_is_the_order_of_layers() -> None:
    model = load_recipe("seed_456", [*TINY, *PLAIN, "model.layers=5", "model.unique_layers=2"]).model
    assert schedule(model) == ((0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1), (4, 0, 2))
    network = randomised(model).eval()
    x = tokens()
    before, cache = network.hidden(x), network.cache(2, LENGTH)
    assert len(cache.layers) == 5
    # Another order is another model, read piece by piece as at once.
    network.schedule = (*network.schedule[:3], Visit(4, 0, 2), Visit(3, 1, 1))
    after = network.hidden(x)
    assert not torch.allclose(after, before, atol=1e-3)
    parts = [extend(network, part, cache) for part in x.split(1, dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), after, atol=1e-5, rtol=1e-5)


def test_a_loop_is_a_stretch_of_layers_that_is_passed_through_again_and_its_skips_belong_to_steps() -> None:
    settings = ["model.layers=11", "model.loop.first=3", "model.loop.last=5", "model.loop.passes=3"]
    model = load_recipe("seed_456", [*TINY, *PLAIN, *settings, "model.skip=gated"]).model
    order = [visit.layer for visit in schedule(model)]
    assert order == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [visit.round for visit in schedule(model) if visit.layer == 4] == [0, 1, 2]
    network, x = randomised(model).eval(), tokens()
    assert len(network.skips.weight) == 8, "one for each step of the second half that takes something back"
    whole = network.hidden(x)
    with network.passing(1):
        assert [visit.layer for visit in network.schedule] == list(range(11))
        plain_order = network.hidden(x)
    assert torch.equal(network.hidden(x), whole) and not torch.allclose(whole, plain_order, atol=1e-2)
    # Plain order uses the first five vectors, as a model without a loop would have them.
    without = GPT(load_recipe("seed_456", [*TINY, *PLAIN, settings[0], "model.skip=gated"]).model).eval()
    state = network.state_dict()
    state |= {name: state[name][:5] for name in ("skips.weight", "skips.gate")}
    without.load_state_dict(state)
    assert torch.equal(without.hidden(x), plain_order)


def test_gradients_of_looped_layers_add_up_and_those_of_shared_cores_are_means() -> None:
    x = tokens(length=9)

    def gradient(*settings: str) -> torch.Tensor:
        network = randomised(load_recipe("seed_456", [*TINY, *PLAIN, "model.layers=2", *settings]).model)
        with torch.no_grad():  # Both see the same function: two times the same layer.
            for vectors in network.layers.parameters():
                vectors.copy_(torch.linspace(0.5, 1.5, vectors.numel()).view(vectors.shape))
        network(x[:, :-1], x[:, 1:]).mean().backward()
        found: torch.Tensor = network.cores[0].mlp.up.weight.grad
        return found

    shared = gradient("model.unique_layers=1")
    looped = gradient("model.layers=1", "model.loop.passes=2")
    assert torch.allclose(looped, 2 * shared, atol=1e-6)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_causal_and_does_something(name: str) -> None:
    network, x = randomised(with_feature(name)), tokens()
    logits = network(x)
    changed = x.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 64
    after = network(changed)
    assert torch.allclose(logits[:, :7], after[:, :7], atol=1e-5)
    assert not torch.allclose(logits[:, 7:], after[:, 7:], atol=1e-3)
    without = randomised(plain())
    own = without.state_dict()
    without.load_state_dict(own | {n: v for n, v in network.state_dict().items() if n in own})
    assert not torch.allclose(without(x), logits, atol=1e-4), f"{name} changes nothing"


@pytest.mark.parametrize("name", EXAMPLES)
def test_pieces_give_the_hidden_states_of_the_whole_window(name: str) -> None:
    network, x = randomised(with_feature(name)).eval(), tokens(length=LENGTH)
    expected = network.hidden(x)
    for sizes in ([LENGTH], [1] * LENGTH, [1, 4, 1, 2, 3, 1], [7, 1, 1, 3]):
        cache = network.cache(x.size(0), LENGTH)
        parts = [extend(network, part, cache) for part in x.split(sizes, dim=1)]
        assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-5), sizes


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_last_positions_alone_are_those_of_the_whole_window(name: str) -> None:
    network, x = randomised(with_feature(name)).eval(), tokens(length=LENGTH)
    assert torch.allclose(network.hidden(x, last=3), network.hidden(x)[:, -3:], atol=1e-5, rtol=1e-4)


def test_a_part_without_a_form_for_single_positions_is_read_by_the_ordinary_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, x = randomised(with_feature("xsa")).eval(), tokens(length=LENGTH)
    assert single_pass(network)
    (part, *_) = network.cores[-1].attention.parts
    monkeypatch.setattr(type(part), "single", AttentionPart.single)
    assert single_pass(network) is False
    cache = network.cache(2, LENGTH)
    parts = [extend(network, part, cache) for part in x.split(1, dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), network.hidden(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_parameter_has_its_groups_and_learns(name: str) -> None:
    recipe = load_recipe("seed_456", [*TINY, *PLAIN, *EXAMPLES[name]])
    network = build_model(recipe.model, 0).train()
    assert [entry.name for entry in route(network, recipe)] == [n for n, _ in network.named_parameters()]
    optimizers = build_optimizers(network, recipe)
    # The first layer has no earlier value to mix in; its pair of weights exists in the references too.
    silent = {n for n, _ in network.named_parameters()} - {"cores.0.attention.value_mix"}
    torch.manual_seed(0)
    for _ in range(6):
        x = torch.randint(64, (4, LENGTH + 1))
        network(x[:, :-1], x[:, 1:]).mean().backward()
        silent -= {
            n for n, value in network.named_parameters() if value.grad is not None and value.grad.any()
        }
        for optimizer in optimizers:
            optimizer.step()
        network.zero_grad(set_to_none=True)
    assert not silent


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_packs_and_loads(name: str, tmp_path: Path) -> None:
    recipe = load_recipe("seed_456", [*TINY, *PLAIN, *EXAMPLES[name], "compress.keep_below=0"])
    network = randomised(recipe.model).eval()
    stored = quantize_state(network.state_dict(), recipe.compress)
    file = tmp_path / "artifact.pgolf"
    file.write_bytes(encode_artifact(stored, recipe, "", "range", 1))
    read = read_artifact(file)
    assert read.recipe == recipe
    again = model_from(read.recipe.model, read.state).eval()
    assert isinstance(again, GPT)
    x = tokens()
    assert not torch.equal(again(x), network(x)), "codes are not the weights"
    assert torch.nn.functional.cosine_similarity(again(x).flatten(), network(x).flatten(), dim=0) > 0.9


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_clone_has_parts_of_its_own(name: str) -> None:
    network = randomised(with_feature(name)).eval()
    copied, x = network.clone(), tokens()
    before = network(x)
    assert torch.equal(copied(x), before)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.5)
    assert torch.equal(network(x), before)
    assert not torch.allclose(copied(x), before, atol=1e-3)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_its_parameters_have_a_row_each_and_these_rows_claim_no_others(feature: type[Part]) -> None:
    for _, *settings in feature.examples:
        model = load_recipe("seed_456", [*TINY, *PLAIN, *settings]).model
        names, others = ({n for n, _ in GPT(section).named_parameters()} for section in (model, plain()))
        own = {row: {n for n in names if re.fullmatch(row.pattern, n)} for row in FEATURE_ROWS}
        assert sorted(n for claimed in own.values() for n in claimed - others) == sorted(names - others)
        assert not [row for row, claimed in own.items() if claimed - others and claimed & others]


def test_each_pattern_of_the_table_claims_something_in_some_model() -> None:
    models = [with_feature(name) for name in EXAMPLES]
    models.append(load_recipe("seed_456", [*TINY, *PLAIN, "model.mlp=star_relu"]).model)
    names = {n for model in models for n, _ in GPT(model).named_parameters()}
    assert not [row.pattern for row in ROUTES if not any(re.fullmatch(row.pattern, n) for n in names)]


def test_operations_of_parts_count() -> None:
    network = GPT(with_feature("gated attention"))
    gate = network.cores[0].attention.gate
    assert product_flops(gate) == 2 * gate.weight.numel()
    assert product_flops(network.cores[0]) - product_flops(GPT(plain()).cores[0]) == 2 * gate.weight.numel()


def test_the_window_gate_halves_every_head_at_first_and_reads_its_window_alone() -> None:
    network, x = GPT(with_feature("window gate")), torch.randn(1, 5, 32)
    gate, y, v = network.cores[0].attention.window_gate, torch.randn(1, 5, 4, 8), torch.randn(1, 5, 2, 8)
    assert torch.equal(gate.output(y, v, x), y / 2)
    assert torch.equal(
        GPT(with_feature("window gate that lets through")).cores[0].attention.window_gate.output(y, v, x), y
    )
    with torch.no_grad():
        gate.weight.normal_()
    expected = torch.sigmoid(0.5 * x[..., :12] @ gate.weight.T)[..., None] * y
    assert torch.allclose(gate.output(y, v, x), expected, atol=1e-6)
    outside = torch.cat((x[..., :12], torch.randn(1, 5, 20)), dim=-1)
    assert torch.equal(gate.output(y, v, outside), gate.output(y, v, x))


def test_pass_vectors_stand_before_each_pass_and_nowhere_in_the_plain_order() -> None:
    network, x = randomised(with_feature("pass vectors")).eval(), tokens()
    (part,), order = network.layer_parts, network.schedule
    stream, zeros = torch.randn(1, 32), torch.zeros(1, 32)
    added = [part.before(zeros, [], order, place) for place in range(len(order))]
    assert [visit.layer for visit in order] == [0, 1, 2, 1, 2]
    assert torch.equal(torch.cat(added), torch.stack([zeros[0], *_apart(part.vectors, zeros[0])]))
    with network.passing(1):
        assert torch.equal(part.before(stream, [], network.schedule, 1), stream)
    assert not torch.equal(network.hidden(x), x)


def _apart(vectors: torch.Tensor, between: torch.Tensor) -> list[torch.Tensor]:
    return [entry for vector in vectors for entry in (vector, between)]


def test_a_broken_loop_is_refused_with_all_that_is_wrong_a_line_each() -> None:
    settings = [
        *("model.loop.first=2", "model.loop.last=3", "model.loop.passes=0", "model.loop.start_fraction=1.5"),
        "model.loop.curriculum=[1,2]",
    ]
    with pytest.raises(PgolfError) as refused:
        load_recipe("seed_456", [*TINY, *PLAIN, *settings])
    assert refused.value.lines[1:] == [
        "model.loop.first 2 to model.loop.last 3 must be a stretch of the layers 0 to 2",
        "model.loop.passes 0 must be at least 1",
        "model.loop.start_fraction 1.5 must be 0 to 1",
        "model.loop.curriculum [1, 2] must end at model.loop.passes 0",
        "model.loop.curriculum [1, 2] must name passes from 1 to model.loop.passes",
    ]


def test_dense_mixing_begins_silent_and_adds_the_beginning_and_the_newest_outputs() -> None:
    network = build_model(with_feature("dense mixing", "model.layers=5", "model.dense.window=3"), 0)
    (dense,), order, kept = network.layer_parts, network.schedule, []
    streams = [torch.randn(1, 2, 32) for _ in range(4)]
    for place, x in enumerate(streams):
        assert torch.equal(dense.before(x, kept, order, place), x)
        dense.after(x, kept, order, place)
    assert [id(x) for x in kept] == [id(x) for x in (streams[0], streams[2], streams[3])]
    mixture, x = dense.mixtures["4"], streams[3]
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_()
    inner = torch.nn.functional.gelu(torch.nn.functional.rms_norm(x, (32,)) @ mixture.hidden.weight.T)
    shares = (inner @ mixture.shares.weight.T + mixture.shares.bias)[..., None]
    mixed = shares[..., 0, :] * streams[0] + shares[..., 1, :] * streams[3] + shares[..., 2, :] * streams[2]
    assert torch.allclose(dense.before(x, kept, order, 4), x + mixed, atol=1e-5)
    with pytest.raises(PgolfError, match=r"dense.every 3 is not less than model.layers 3"):
        with_feature("dense mixing", "model.dense.every=3")


def test_learned_caps_begin_as_the_recipes_and_stay_positive() -> None:
    network = build_model(with_feature("asymmetric softcap", "model.softcap=3"), 0)
    network.load_state_dict(network.state_dict() | randomised(plain()).state_dict())
    symmetric = randomised(load_recipe("seed_456", [*TINY, *PLAIN, "model.softcap=3"]).model)
    x = tokens()
    assert torch.equal(network.softcap(), torch.tensor([3.0, 3.0])) and symmetric.softcap() == 3
    assert torch.allclose(network(x), symmetric(x), atol=1e-6)
    assert torch.allclose(network(x, x), symmetric(x, x), atol=1e-5)
    with torch.no_grad():
        network.cap.offset.copy_(torch.tensor([1.0, -9.0]))
    upper, lower = network.softcap().tolist()
    assert upper == pytest.approx(3 * 2.71828 ** (1 / 3), rel=1e-4) and 0 < lower < 3
    assert network(x).max() > 3 and network(x).min() >= -lower


def test_the_window_smear_is_silent_at_first_and_takes_nothing_across_a_bos() -> None:
    network, x = GPT(with_feature("window smear")), torch.randn(1, 4, 32)
    (smear,) = network.embedding_parts
    reading = Reading(torch.tensor([[7, 8, 1, 9]]))
    assert torch.equal(smear(x, reading), x)
    with torch.no_grad():
        smear.gate.weight.normal_()
        smear.share.fill_(0.8)
    shares = 0.8 * torch.sigmoid(x[..., :12] @ smear.gate.weight.T)
    expected = x.clone()
    for at in (1, 3):
        expected[:, at] += shares[:, at] * x[:, at - 1]
    assert torch.allclose(smear(x, reading), expected, atol=1e-6)
    with pytest.raises(PgolfError, match=r"window_smear.width 33 exceeds model.width 32"):
        with_feature("window smear", "model.window_smear.width=33")


def test_lanes_begin_as_the_stream_and_end_as_their_mean_or_the_second() -> None:
    x = tokens()
    for name, share in (("two lanes", 0.5), ("split lanes", 0.0)):
        network = build_model(with_feature(name), 0).eval()
        lanes, (first, second) = network.lanes_of(1), torch.randn(2, 1, 4, 32)
        assert network.lanes_of(0) is None and lanes is not None
        assert lanes.enter(first, None) is first and lanes.enter(first, second) is second
        assert lanes.read(first, second) is second
        assert torch.allclose(network.merged(first, second), share * first + (1 - share) * second)
        # Layers that write nothing yet keep 1.1 of each lane, which the norm takes out again.
        assert torch.allclose(network.hidden(x), build_model(plain(), 0).eval().hidden(x), atol=1e-5)
    assert network.lanes.shares[0].tolist() == [pytest.approx([1.3, 0.7]), pytest.approx([0.7, 1.3])]


def test_lanes_that_cannot_be() -> None:
    with pytest.raises(PgolfError, match=r"lanes.start 3 is not one of the layers 0 to 2"):
        with_feature("two lanes", "model.lanes.start=3")
    loop = ("model.loop.last=1", "model.loop.passes=2")
    with pytest.raises(PgolfError, match=r"lanes.start 1 must come after model.loop.last 1"):
        with_feature("two lanes", *loop)
    assert len(schedule(with_feature("parallel layers", *loop))) == 5


def test_what_cannot_be_gated() -> None:
    with pytest.raises(PgolfError, match=r"window_gate.width 33 exceeds model.width 32"):
        with_feature("window gate", "model.window_gate.width=33")
    with pytest.raises(PgolfError, match="gate the same outputs"):
        with_feature("window gate", "model.gated_attention=true")
