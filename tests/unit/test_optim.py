"""Optimizers, routing, schedule and averages, against plain re-computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pgolf.model.gpt import GPT, build_model
from pgolf.optim.averaging import Averager, ema_decay
from pgolf.optim.build import build_optimizers, set_schedule
from pgolf.optim.muon import Muon
from pgolf.optim.newton_schulz import Method, orthogonalise, polar_express
from pgolf.optim.routing import ROUTES, route, row_of
from pgolf.optim.schedule import lr_scale, muon_momentum, muon_weight_decay, progress, remark, rewarming
from pgolf.recipe.files import recipe_names
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.recipe.sections import AverageSection, TrainSection
from pgolf.runtime.team import SOLO


@pytest.mark.parametrize("name", recipe_names())
def test_every_parameter_of_every_recipe_is_routed_once(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        network = GPT(recipe.model)
    routes = route(network, recipe)
    assert [entry.name for entry in routes] == [entry for entry, _ in network.named_parameters()]
    for entry in routes:
        if entry.optimizer == "muon":
            assert entry.parameter.ndim == 2


def test_an_unclaimed_or_twice_claimed_parameter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="0 rows"):
        row_of("cores.0.attention.mystery")
    monkeypatch.setattr("pgolf.optim.routing.ROUTES", (*ROUTES, ROUTES[0]))
    with pytest.raises(AssertionError, match="2 rows"):
        row_of("token_embedding.weight")


def _rates(recipe: Recipe) -> dict[str, tuple[str, float, float]]:
    with torch.device("meta"):
        network = GPT(recipe.model)
    return {r.name: (r.optimizer, r.lr, r.weight_decay) for r in route(network, recipe)}


def test_routing_of_reference_644() -> None:
    rates = _rates(load_recipe("seed_644", ['model.bigram.hash="xor"']))
    assert rates["cores.4.mlp.up.weight"] == ("muon", 0.025, 0.04)
    assert rates["cores.5.mlp.up.weight"] == ("muon", 0.05, 0.04)
    assert rates["layers.5.mlp_scale"] == ("adamw", 0.05, 0.04)
    assert rates["bigram.table.weight"] == ("adamw", 0.025, 0.04)
    assert rates["bigram.project.weight"] == ("muon", 0.025, 0.04)
    assert rates["bigram.scale"][0] == "none"
    assert rates["value_embedding.project.weight"] == ("adamw", 0.025, 0.04)
    assert rates["token_embedding.weight"] == ("adamw", 0.035, 0.04)


def test_routing_of_references_456_and_1232() -> None:
    rates = _rates(load_recipe("seed_456"))
    assert rates["bigram.table.weight"] == ("adamw", 0.035, 0.01)
    assert rates["cores.9.attention.query.weight"] == ("muon", 0.025, 0.04)
    rates = _rates(load_recipe("seed_1232_flow"))
    assert rates["cores.10.attention.gate.weight"] == ("adamw", 0.025, 0.04)
    assert rates["refiner.down.weight"] == ("adamw", 0.025, 0.04)
    assert rates["bigram.scale"] == ("adamw", 0.025, 0.04)


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for rows, columns in ((32, 96), (96, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(3, rows, columns), 5))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_polar_express_derives_the_published_polynomials() -> None:
    published = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    ]
    found = polar_express(7)
    for (a, b, c), expected in zip(found, published, strict=False):
        # All but the last leave headroom for rounding.
        assert (a * 1.01, b * 1.01**3, c * 1.01**5) == pytest.approx(expected, rel=1e-6)
    assert found[-1] == pytest.approx((1.875, -1.25, 0.375), rel=1e-4)


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_polar_express_comes_closer_to_one_in_as_many_steps(steps: int) -> None:
    # Singular values of a known spread in front of random directions.
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(48, 48))[0], torch.linalg.qr(torch.randn(48, 48))[0]
    matrix = (left * torch.logspace(-2.5, 0, 48) @ right)[None]
    missed = {
        method: (torch.linalg.svdvals(orthogonalise(matrix, steps, method)) - 1).abs().max().item()
        for method in ("quintic", "polar_express")
    }
    assert missed["polar_express"] < missed["quintic"]
    if steps == 7:
        assert missed["polar_express"] < 0.01


@pytest.mark.parametrize("method", ["quintic", "polar_express"])
@pytest.mark.parametrize("shape", [(2, 24, 96), (2, 96, 24), (2, 24, 30)])
def test_orthogonalising_keeps_singular_vectors(method: Method, shape: tuple[int, int, int]) -> None:
    # Whatever route is taken (wide matrices have a shorter one): the polynomials act on the singular values
    # alone.
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.square().sum(dim=1, keepdim=True).sqrt()
    if method == "polar_express":
        values = values / 1.01
    for a, b, c in polar_express(5) if method == "polar_express" else [(3.4445, -4.7750, 2.0315)] * 5:
        values = a * values + b * values**3 + c * values**5
    expected = left @ torch.diag_embed(values) @ right
    assert torch.allclose(orthogonalise(matrices, 5, method).double(), expected, atol=1e-5)


def test_the_recipe_chooses_the_polynomials() -> None:
    recipe = load_recipe("tiny", ["optim.newton_schulz=polar_express"])
    muon = build_optimizers(build_model(recipe.model, 0), recipe)[0]
    assert isinstance(muon, Muon)
    assert muon.method == "polar_express"
    parameter = nn.Parameter(torch.zeros(8, 8))
    parameter.grad = torch.randn(8, 8)
    Muon([{"params": [parameter], "lr": 1.0}], 0.9, 7, torch.float32, method="polar_express").step()
    assert torch.linalg.svdvals(parameter.detach()).min() > 0.9


def test_muon_equals_a_plain_loop_over_matrices() -> None:
    torch.manual_seed(0)
    shapes = [(8, 24), (24, 8), (8, 24)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    plain = [parameter.detach().clone() for parameter in ours]
    sums = [torch.zeros(shape) for shape in shapes]
    muon = Muon([{"params": ours, "lr": 0.1, "weight_decay": 0.04}], 0.9, 5, torch.float32)
    for _ in range(3):
        gradients = [torch.randn(shape) for shape in shapes]
        for parameter, gradient in zip(ours, gradients, strict=True):
            parameter.grad = gradient.clone()
        muon.step()
        for weight, total, gradient in zip(plain, sums, gradients, strict=True):
            total.mul_(0.9).add_(gradient)
            x = gradient + 0.9 * total
            x = x / (x.norm() + 1e-7)
            if x.size(0) > x.size(1):
                x = x.T
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            if weight.size(0) > weight.size(1):
                x = x.T
            weight.mul_(1 - 0.1 * 0.04).add_(
                x, alpha=-0.1 * math.sqrt(max(1, weight.size(0) / weight.size(1)))
            )
    for parameter, weight in zip(ours, plain, strict=True):
        assert torch.allclose(parameter, weight, atol=1e-5)


def test_muon_rounds_updates_to_bfloat16_when_asked() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(8, 8))
    parameter.grad = torch.randn(8, 8)
    Muon([{"params": [parameter], "lr": 1.0}], 0.9, 5, torch.bfloat16).step()
    assert torch.equal(parameter.detach(), parameter.detach().bfloat16().float())


def test_muon_makes_rows_of_equal_norm_where_the_recipe_says() -> None:
    torch.manual_seed(0)
    shapes, beta2 = [(24, 8), (8, 24), (24, 8)], 0.7
    gradients = [
        [torch.linspace(0.1, 3, shape[0])[:, None] * torch.randn(shape) for shape in shapes] for _ in range(3)
    ]
    found: dict[str, list[torch.Tensor]] = {}
    means = [torch.zeros(shape[0]) for shape in shapes]
    for how in ("none", "before", "after", "normuon"):
        recipe = load_recipe("tiny", [f"optim.muon_row_norm={how}", f"optim.normuon_beta2={beta2}"])
        made = build_optimizers(build_model(recipe.model, 0), recipe)[0]
        assert isinstance(made, Muon)
        weights = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        rows = made.row_norm, made.beta2
        muon = Muon([{"params": weights, "lr": 1.0}], 0.0, 5, torch.float32, SOLO, "quintic", *rows)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.data.zero_()
                weight.grad = gradient.clone()
            muon.step()
            if how == "none":
                for mean, weight in zip(means, weights, strict=True):
                    mean.mul_(beta2).add_((1 - beta2) * weight.detach().square().mean(dim=1))
        found[how] = [weight.detach().clone() for weight in weights]
    for plain, before, after, slow, mean, gradient in zip(
        *(found[how] for how in ("none", "before", "after", "normuon")), means, gradients[-1], strict=True
    ):
        rows, columns = plain.shape
        scale = math.sqrt(max(1, rows / columns))
        unit = gradient / gradient.norm(dim=1, keepdim=True)
        assert torch.allclose(before, -scale * orthogonalise(unit[None], 5)[0], atol=1e-5)
        now, slowly = plain / plain.norm(dim=1)[:, None], plain / mean.sqrt()[:, None]
        for update, divided in ((after, now), (slow, slowly)):
            assert torch.allclose(update, divided * (plain.norm() / divided.norm()), atol=1e-5)
        norms = after.norm(dim=1)
        assert torch.allclose(norms, norms.mean().expand_as(norms), rtol=1e-4)


def test_embeddings_and_vectors_may_decay_differently_from_matrices() -> None:
    rates = _rates(load_recipe("seed_644", ["optim.adam_weight_decay={embedding=0.085, scalar=0.02}"]))
    assert rates["cores.4.mlp.up.weight"][2] == 0.04
    assert rates["token_embedding.weight"][2] == 0.085
    assert rates["layers.5.mlp_scale"][2] == rates["bigram.table.weight"][2] == 0.02


def test_linear_and_cosine_warmdown() -> None:
    train = TrainSection(steps=100, warmdown_steps=40)
    assert [lr_scale(train, step, 0.0) for step in (0, 60, 80, 99)] == [1.0, 1.0, 0.5, 0.025]
    cosine = TrainSection(steps=100, warmdown_steps=40, warmdown_shape="cosine")
    assert lr_scale(cosine, 80, 0.0) == pytest.approx(0.5)
    assert lr_scale(cosine, 90, 0.0) == pytest.approx(0.5 * (1 - math.cos(math.pi / 4)))
    assert lr_scale(TrainSection(steps=100, warmdown_steps=0), 99, 0.0) == 1.0
    # A warmdown longer than the run is under way from the start.
    assert lr_scale(TrainSection(steps=100, warmdown_steps=200), 0, 0.0) == 0.5


def test_the_warmdown_may_be_a_part_of_training_and_end_above_zero() -> None:
    by_part = TrainSection(steps=100, warmdown_steps=0, warmdown_fraction=0.4, lr_floor=0.1)
    found = [lr_scale(by_part, step, 0.0) for step in (0, 60, 80, 99)]
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.1])
    longer = by_part.model_copy(update={"steps": 1000})
    assert [lr_scale(longer, step, 0.0) for step in (600, 800)] == pytest.approx([1.0, 0.5])
    timed = by_part.model_copy(update={"wallclock_seconds": 50.0})
    assert lr_scale(timed, 0, 0.0) == 1.0
    assert [lr_scale(timed, 10, at) for at in (30.0, 40.0, 50.0)] == pytest.approx([1.0, 0.5, 0.1])
    cosine = TrainSection(steps=100, warmdown_steps=40, warmdown_shape="cosine", lr_floor=0.3)
    assert lr_scale(cosine, 80, 0.0) == pytest.approx(0.5) and lr_scale(cosine, 99, 0.0) == 0.3


def test_lengths_follow_the_part_of_training_that_is_done() -> None:
    train = TrainSection(steps=10, length_schedule=((8, 0.2), (16, 1.0)))
    assert [train.length_at(progress(train, step, 1e9)) for step in (0, 2, 3, 9)] == [8, 8, 16, 16]
    timed = train.model_copy(update={"wallclock_seconds": 100.0})
    assert [train.length_at(progress(timed, 1, at)) for at in (20.0, 21.0, 101.0)] == [8, 16, 16]
    assert TrainSection().length_at(0.5) == 2048
    assert [rewarming(steps) for steps in (0, 15, 31, 99)] == [1 / 32, 0.5, 1.0, 1.0]


def test_the_weight_decay_of_matrices_tapers_and_no_other() -> None:
    settings = ["optim.muon_weight_decay_taper=0.5", "optim.muon_weight_decay_taper_start=0.6"]
    recipe = load_recipe("tiny", settings)
    optimizers = build_optimizers(build_model(recipe.model, 0), recipe)
    for done, factor in ((0.0, 1.0), (0.6, 1.0), (0.8, 0.75), (1.0, 0.5)):
        set_schedule(optimizers, 1.0, 0.9, muon_weight_decay(recipe.optim, done))
        decays = [{group["weight_decay"] for group in optimizer.param_groups} for optimizer in optimizers]
        assert [*decays[0]] == pytest.approx([recipe.optim.muon_weight_decay * factor])
        assert decays[1] == {recipe.optim.adam_weight_decay}


def test_a_warmdown_longer_than_the_training_is_remarked() -> None:
    said = remark(TrainSection(steps=10, warmdown_steps=40))
    assert "warmdown_steps 40 is more than train.steps 10" in said and "begins at 0.25" in said
    for usual in ({"warmdown_steps": 10}, {"warmdown_steps": 40, "wallclock_seconds": 5.0}):
        assert remark(TrainSection(steps=10, **usual)) == ""  # type: ignore[arg-type]


def test_wall_clock_schedule_fits_the_warmdown_into_the_time() -> None:
    train = TrainSection(steps=10_000, warmdown_steps=100, wallclock_seconds=600)
    assert lr_scale(train, 0, 0.0) == 1.0
    assert lr_scale(train, 100, 100.0) == 1.0  # 1 s a step: the warmdown needs the last 100 s
    assert lr_scale(train, 550, 550.0) == pytest.approx(0.5)
    assert lr_scale(train, 600, 600.0) == 0.0


def test_momentum_warm_up_counts_steps() -> None:
    optim = load_recipe("seed_1232").optim
    assert muon_momentum(optim, 0) == 0.92
    assert muon_momentum(optim, 750) == pytest.approx(0.955)
    assert muon_momentum(optim, 5000) == 0.99


def test_progress_is_that_of_the_steps_or_of_the_time_whichever_ends_first() -> None:
    train = load_recipe("seed_456", ["train.steps=10"]).train
    assert [progress(train, step, 1e9) for step in (0, 5, 10)] == [0, 0.5, 1]
    timed = load_recipe("seed_456", ["train.steps=10", "train.wallclock_seconds=8"]).train
    assert progress(timed, 5, 1.0) == 0.5 and progress(timed, 1, 6.0) == 0.75


def test_schedule_scales_every_group() -> None:
    recipe = load_recipe("quickstart", ["optim.decoder_lr_mult=2.0"])
    optimizers = build_optimizers(build_model(recipe.model, 0), recipe)
    set_schedule(optimizers, 0.5, 0.95)
    rates = {round(group["lr"], 6) for optimizer in optimizers for group in optimizer.param_groups}
    assert rates == {0.0125, 0.025, 0.0175}
    assert all(group["momentum"] == 0.95 for group in optimizers[0].param_groups)


def _steps(section: AverageSection, scales: list[float]) -> tuple[list[torch.Tensor], torch.Tensor]:
    weights = {"w": torch.zeros(2)}
    averager, seen = Averager(section, weights, 100), []
    for step, scale in enumerate(scales, start=1):
        weights["w"] = weights["w"] + step
        seen.append(weights["w"].clone())
        averager.update(weights, step, scale)
        fresh = Averager(section, weights, 100)
        fresh.load(averager.state())  # every state must be resumable
        averager = fresh
    return seen, averager.result(weights)["w"]


def test_ema_follows_every_step() -> None:
    seen, result = _steps(AverageSection(kind="ema", decay=0.5), [1.0] * 3)
    expected = torch.zeros(2)
    for weight in seen:
        expected = 0.5 * expected + 0.5 * weight
    assert torch.allclose(result, expected)


def test_the_window_of_an_ema_follows_the_number_of_steps() -> None:
    by_window = _steps(AverageSection(window=0.04), [1.0] * 3)[1]  # of 100 steps
    assert torch.equal(by_window, _steps(AverageSection(decay=0.75), [1.0] * 3)[1])
    assert 1 - ema_decay(AverageSection(window=1 / 17), 4_900) == pytest.approx(17 / 4_900)
    assert ema_decay(AverageSection(window=0.01), 10) == 0.0, "a window below a step keeps the last weights"


def test_swa_is_the_mean_of_late_snapshots() -> None:
    section = AverageSection(kind="swa", every=2, start_scale=0.6)
    seen, result = _steps(section, [1.0, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert torch.allclose(result, torch.stack([seen[3], seen[5], seen[7]]).mean(dim=0))


def test_a_single_snapshot_is_no_average() -> None:
    seen, result = _steps(AverageSection(kind="swa", every=2, start_scale=0.6), [1.0, 0.5])
    assert torch.equal(result, seen[-1])


def test_swa_of_ema_averages_the_averages() -> None:
    section = AverageSection(kind="swa_of_ema", decay=0.5, every=1, start_scale=0.6)
    seen, result = _steps(section, [1.0, 0.5, 0.5])
    ema, late = torch.zeros(2), []
    for weight in seen:
        ema = 0.5 * ema + 0.5 * weight
        late.append(ema)
    assert torch.allclose(result, torch.stack(late[1:]).mean(dim=0))
