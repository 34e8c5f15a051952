"""Quantizers against their definitions, written out entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pgolf.compress.quantize import prune_smallest, quantize_matrix
from pgolf.compress.scheme import quantize_state
from pgolf.compress.stored import Quantized, code_range, dequantize_state
from pgolf.errors import PgolfError
from pgolf.model.gpt import build_model
from pgolf.recipe.recipe import load_recipe
from pgolf.recipe.sections import ClipStd, CompressSection


def weights(rows: int = 24, columns: int = 96, scale: float = 0.3) -> Tensor:
    generator = np.random.RandomState(rows)
    spread = scale * np.exp(generator.normal(size=(rows, 1)))
    return torch.tensor(spread * generator.standard_t(4, size=(rows, columns)), dtype=torch.float32)


def test_ranges() -> None:
    assert [code_range(bits) for bits in (5, 6, 8)] == [(-16, 15), (-32, 31), (-127, 127)]


@pytest.mark.parametrize("floor", [0.0, 1.0])
@pytest.mark.parametrize("bits", [5, 6])
def test_absmax_rows_rounded_with_the_stored_step(bits: int, floor: float) -> None:
    weight, (low, high) = weights(), code_range(bits)
    found = quantize_matrix(weight, bits, CompressSection(scale_floor=floor))
    for row, codes, scale in zip(weight, found.codes, found.scale, strict=True):
        step = np.float16(max(float(row.abs().max()) / high, floor / high))
        assert scale.item() == step
        expected = np.clip(np.round(row.numpy() / np.float32(step)), low, high)
        assert codes.tolist() == expected.tolist()


def test_the_floor_gives_small_rows_one_coarse_step() -> None:
    found = quantize_matrix(weights(scale=0.05).clamp(-0.9, 0.9), 6, CompressSection(scale_floor=1.0))
    assert (found.scale == np.float16(1 / 31)).all()
    without = quantize_matrix(weights(scale=0.05).clamp(-0.9, 0.9), 6, CompressSection())
    assert (without.scale < np.float16(1 / 31)).all()


def test_one_percentile_for_the_tensor_with_the_least_error() -> None:
    weight = weights(rows=8, columns=2000)
    section = CompressSection(clip="percentiles", round_with="exact")
    found = quantize_matrix(weight, 6, section)
    errors = {}
    for percentile in (
        0.99,
        0.993,
        0.995,
        0.997,
        0.998,
        0.999,
        0.9993,
        0.9995,
        0.9997,
        0.9999,
        0.99993,
        0.99999,
        1.0,
    ):
        step = np.quantile(weight.abs().numpy(), percentile, axis=1).astype(np.float32)[:, None] / 31
        codes = np.clip(np.round(weight.numpy() / step), -32, 31)
        errors[percentile] = (((codes * step - weight.numpy()) ** 2).mean(), codes)
    best = min(errors, key=lambda percentile: errors[percentile][0])
    assert best < 1.0, "the case must be one in which clipping pays"
    assert (found.codes.numpy() != errors[best][1]).mean() < 1e-3
    absmax = quantize_matrix(weight, 6, CompressSection())
    assert (found.dequantize() - weight).square().mean() < (absmax.dequantize() - weight).square().mean()


def test_another_percentile_for_each_row() -> None:
    weight = weights(rows=16, columns=400)
    found = quantize_matrix(weight, 5, CompressSection(clip="row_percentiles"))
    single = [quantize_matrix(weight, 5, CompressSection(clip=clip)) for clip in ("absmax", "percentiles")]
    errors = (found.dequantize() - weight).square().mean(dim=1)
    for other in single[:1]:
        assert (errors <= (other.dequantize() - weight).square().mean(dim=1) + 1e-12).all()
    ordered = weight.abs().sort(dim=1).values
    choices = [ordered[:, int(p * 399)] for p in (0.95, 0.975, 0.99, 0.995, 1.0)]
    steps = torch.stack([(limit / 15).half() for limit in choices], dim=1)
    assert (found.scale[:, None] == steps).any(dim=1).all()
    assert len({int(np.argmax(row == scale)) for row, scale in zip(steps, found.scale, strict=True)}) > 1


def test_eight_bits_clip_first_and_round_with_the_exact_step() -> None:
    weight = weights(rows=12, columns=512)
    section = CompressSection(int8_percentile=0.9999984, int8_scale_floor=1.0)
    found = quantize_matrix(weight, 8, section)
    limit = torch.quantile(weight.abs(), 0.9999984, dim=1)
    step = (limit / 127).clamp_min(1 / 127)
    clipped = weight.clamp(-limit[:, None], limit[:, None])
    assert torch.equal(found.codes, (clipped / step[:, None]).round().clamp(-127, 127).to(torch.int8))
    assert torch.equal(found.scale, step.half())


def test_rows_of_zeros_and_tiny_rows_stay_finite() -> None:
    weight = torch.zeros(3, 8)
    weight[1] = 1e-12
    for clip in ("absmax", "percentiles", "row_percentiles"):
        found = quantize_matrix(weight, 6, CompressSection(clip=clip))
        assert found.codes[0].count_nonzero() == 0
        assert torch.isfinite(found.dequantize()).all()


@given(
    exponent=st.floats(-9, 3),
    bits=st.integers(2, 8),
    floor=st.sampled_from([0.0, 1.0]),
    round_with=st.sampled_from(["stored", "exact"]),
    seed=st.integers(0, 99),
)
def test_no_entry_moves_by_more_than_about_half_a_step(
    exponent: float, bits: int, floor: float, round_with: str, seed: int
) -> None:
    # Rows far below the smallest float16 step included: the stored step must be the one the codes are for.
    weight = torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, size=(3, 40)) * 10**exponent).float()
    section = CompressSection(scale_floor=floor, int8_scale_floor=floor, round_with=round_with)
    found = quantize_matrix(weight, bits, section)
    step = found.scale.float()[:, None]
    rounding = weight.abs() * 2.0**-10  # of the step itself, to float16
    assert ((found.dequantize() - weight).abs() <= step * 0.5001 + rounding).all()
    assert found.codes.min() >= code_range(bits)[0]
    assert found.codes.max() <= code_range(bits)[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e6])
@pytest.mark.parametrize("name", ["token_embedding.weight", "smear.gate"])
def test_weights_that_no_format_holds_are_named(name: str, value: float) -> None:
    recipe = load_recipe("tiny")
    state = build_model(recipe.model, 0).state_dict()
    state[name].view(-1)[3] = value
    with pytest.raises(PgolfError, match=f"tensor {name} holds a value that is not finite or exceeds 65504"):
        quantize_state(state, recipe.compress)


def test_pruning_zeroes_the_smallest_entries() -> None:
    weight = weights(rows=40, columns=50)
    pruned = prune_smallest(weight, 0.03)
    gone = pruned == 0
    assert int(gone.sum()) == 60
    assert weight[gone].abs().max() < weight[~gone].abs().min()
    assert torch.equal(pruned[~gone], weight[~gone])


def _stored(name: str, *settings: str) -> dict[str, object]:
    recipe = load_recipe(name, ["model.layers=4", "ttt.frozen_blocks=0", *settings])
    state = build_model(recipe.model, 0).state_dict()
    return dict(quantize_state({key: value + 0.01 for key, value in state.items()}, recipe.compress))


def _format(value: object) -> object:
    return value.bits if isinstance(value, Quantized) else getattr(value, "dtype", None)


def test_the_scheme_of_reference_456() -> None:
    stored = _stored("seed_456", "model.unique_layers=3", "model.xsa_last=3")
    assert _format(stored["cores.0.mlp.up.weight"]) == 5
    assert _format(stored["cores.0.attention.key.weight"]) == 6
    assert _format(stored["cores.2.attention.key.weight"]) == torch.float16
    assert _format(stored["token_embedding.weight"]) == torch.float16
    assert _format(stored["bigram.table.weight"]) == 6
    assert _format(stored["bigram.project.weight"]) == 6
    assert _format(stored["layers.0.residual_mix"]) == torch.float16


def test_pruning_touches_only_large_matrices() -> None:
    recipe = load_recipe("seed_456", ["model.layers=2", "model.xsa_last=2", "ttt.frozen_blocks=0"])
    state = {name: value + 0.5 for name, value in build_model(recipe.model, 0).state_dict().items()}
    kept = dequantize_state(quantize_state(state, recipe.compress))
    large = kept["token_embedding.weight"]
    assert (large == 0).float().mean() == pytest.approx(0.03, abs=1e-3)
    assert kept["layers.0.residual_mix"].count_nonzero() == state["layers.0.residual_mix"].numel()


def test_the_scheme_of_reference_644() -> None:
    # The search for the best percentile takes long: as small as matrices can be that are rounded.
    small = ["model.layers=2", "model.xsa_last=2", "model.mlp_hidden=144", "model.bigram.buckets=576"]
    stored = _stored("seed_644", *small, "model.value_embedding.layers=[0, 1]", 'model.bigram.hash="xor"')
    assert _format(stored["token_embedding.weight"]) == 6
    assert _format(stored["bigram.table.weight"]) == 6
    assert _format(stored["bigram.project.weight"]) == torch.float32
    assert _format(stored["value_embedding.table.weight"]) == 6
    assert _format(stored["value_embedding.project.weight"]) == torch.float32
    assert _format(stored["cores.0.mlp.scale"]) == torch.float16
    assert _format(stored["skips.gate"]) == torch.float32


def test_the_scheme_of_reference_1232() -> None:
    stored = _stored("seed_1232_flow", "model.xsa_last=4")
    assert _format(stored["token_embedding.weight"]) == 8
    assert _format(stored["bigram.table.weight"]) == 8
    assert _format(stored["cores.0.mlp.up.weight"]) == 6
    assert _format(stored["bigram.project.weight"]) == torch.float16
    assert _format(stored["refiner.hidden.weight"]) == torch.float16
    assert _format(stored["cores.0.attention.value_mix"]) == torch.float16


@pytest.mark.parametrize("bits", [4, 8])
def test_a_group_clips_at_its_own_number_of_standard_deviations(bits: int) -> None:
    weight, high = weights(rows=12, columns=512), code_range(bits)[1]
    table = ClipStd(attention=13.0, mlp=2.0)
    for group, deviations in (("attention", 13.0), ("mlp", 2.0), ("embedding", 12.85)):
        by_table = quantize_matrix(weight, bits, CompressSection(clip="std", clip_std=table), group)
        by_number = quantize_matrix(weight, bits, CompressSection(clip="std", clip_std=deviations))
        assert torch.equal(by_table.scale, (deviations * weight.std(dim=1) / high).half())
        assert torch.equal(by_table.dequantize(), by_number.dequantize())


def test_a_single_column_has_no_deviation_and_still_a_step() -> None:
    found = quantize_matrix(torch.ones(3, 1), 6, CompressSection(clip="std"))
    assert found.scale.isfinite().all() and (found.scale > 0).all()
