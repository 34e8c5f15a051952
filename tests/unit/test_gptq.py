"""Rounding with error compensation: on the grid, better than the nearest code, in any order of columns."""

from __future__ import annotations

import pytest
import torch

from pgolf.compress.calibrate import Sensitivity
from pgolf.compress.gptq import round_on_grid, rounding_order
from pgolf.compress.quantize import quantize_matrix
from pgolf.compress.scheme import quantize_state
from pgolf.compress.stored import Quantized
from pgolf.recipe.recipe import load_recipe

ROWS, COLUMNS = 48, 160


def correlated(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight matrix and the second moments of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    mixing = (
        torch.randn(COLUMNS, COLUMNS // 2, generator=generator) * torch.linspace(0.2, 3, COLUMNS)[:, None]
    )
    inputs = torch.randn(4000, COLUMNS // 2, generator=generator) @ mixing.T
    return weight, inputs.T @ inputs / 4000


def error(weight: torch.Tensor, found: torch.Tensor, moments: torch.Tensor) -> float:
    difference = weight - found
    return float(((difference @ moments) * difference).sum())


def test_without_an_order_every_code_is_the_nearest() -> None:
    weight, _ = correlated()
    steps, columns = torch.rand(ROWS) + 0.1, torch.rand(COLUMNS) + 0.5
    codes = round_on_grid(weight, steps, columns, -8, 7, None)
    expected = (weight / steps[:, None] / columns).round().clamp(-8, 7)
    assert codes.dtype == torch.int8
    assert torch.equal(codes.float(), expected)


@pytest.mark.parametrize("spread", [False, True])
def test_compensation_lowers_the_error_that_counts(spread: bool) -> None:
    weight, moments = correlated()
    steps, columns = torch.full((ROWS,), 0.5), torch.ones(COLUMNS)
    order = rounding_order(moments, 0.01)
    if spread:
        columns = order.column_spread() / order.column_spread().log().mean().exp()
    plain, better = (
        round_on_grid(weight, steps, columns, -127, 127, way) * steps[:, None] * columns
        for way in (None, order)
    )
    assert error(weight, better, moments) < 0.4 * error(weight, plain, moments)


def test_steps_that_follow_the_spread_beat_even_steps_of_the_same_rate() -> None:
    weight, moments = correlated()
    order = rounding_order(moments, 0.01)
    factors = order.column_spread() / order.column_spread().log().mean().exp()
    errors = []
    for columns in (torch.ones(COLUMNS), factors):
        codes = round_on_grid(weight, torch.full((ROWS,), 0.05), columns, -127, 127, order)
        errors.append(error(weight, codes * 0.05 * columns, moments))
    assert errors[1] < 0.8 * errors[0]


def test_independent_inputs_need_no_compensation() -> None:
    weight, _ = correlated()
    steps, columns = torch.full((ROWS,), 0.3), torch.ones(COLUMNS)
    order = rounding_order(torch.diag(torch.linspace(1, 2, COLUMNS)), 1e-6)
    assert torch.equal(
        round_on_grid(weight, steps, columns, -8, 7, order),
        round_on_grid(weight, steps, columns, -8, 7, None),
    )


def test_the_order_of_the_columns_does_not_matter() -> None:
    weight, moments = correlated()
    steps, columns = torch.full((ROWS,), 0.4), torch.ones(COLUMNS)
    shuffled = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(3))
    straight = round_on_grid(weight, steps, columns, -127, 127, rounding_order(moments, 0.01))
    other = round_on_grid(
        weight[:, shuffled], steps, columns, -127, 127, rounding_order(moments[shuffled][:, shuffled], 0.01)
    )
    assert (other != straight[:, shuffled]).float().mean() < 0.01


def test_unused_inputs_and_rows_without_a_step() -> None:
    weight, moments = correlated()
    moments[5], moments[:, 5] = 0, 0
    steps = torch.full((ROWS,), 0.4)
    steps[3] = 0
    codes = round_on_grid(weight, steps, torch.ones(COLUMNS), -127, 127, rounding_order(moments, 0.01))
    assert codes[3].count_nonzero() == 0
    silent = rounding_order(torch.zeros(COLUMNS, COLUMNS), 0.01)
    assert bool(silent.factor.isfinite().all())


def test_fixed_widths_can_be_rounded_with_compensation_too() -> None:
    weight, moments = correlated()
    name = "cores.0.mlp.up.weight"
    sensitivity = {name: Sensitivity([torch.ones(ROWS)], [moments])}
    settings = [
        'compress.scheme="rowwise"',
        "compress.keep_below=0",
        "compress.bits.mlp=3",
        'compress.clip="std"',
        "compress.clip_std=3.0",
    ]
    found = {}
    for rounding in ("nearest", "gptq"):
        compress = load_recipe("tiny", [*settings, f'compress.rounding="{rounding}"']).compress
        value = quantize_state({name: weight}, compress, sensitivities=sensitivity)[name]
        assert isinstance(value, Quantized)
        assert (int(value.codes.min()), int(value.codes.max())) == (-4, 3)
        assert torch.allclose(value.scale.float(), 3.0 * weight.std(dim=1) / 3, rtol=1e-3)
        found[rounding] = error(weight, value.dequantize(), moments)
    assert found["gptq"] < 0.6 * found["nearest"]
    assert torch.equal(quantize_matrix(weight, 3, compress).scale, value.scale)
