"""The trellis: walks that the codes describe, less error than the nearest codes, and errors made good."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.compress.gptq import round_on_grid, rounding_order
from pgolf.compress.trellis import FOLLOWS, LARGEST, ODD, multiples, round_on_trellis

ROWS, COLUMNS = 90, 300


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).normal(size=(ROWS, COLUMNS))).float()


def entropy(codes: Tensor, states: Tensor) -> float:
    """Bits per code, given which grid it is of."""
    total = 0.0
    for odd in (0, 1):
        counts = torch.unique(codes[states == odd], return_counts=True)[1].double()
        total -= float((counts * (counts / counts.sum()).log2()).sum())
    return total / codes.numel()


def grids(codes: Tensor) -> Tensor:
    """For each code whether it is of the odd grid, by the rule in the module's text."""
    found = torch.zeros(codes.shape, dtype=torch.long)
    for row, line in enumerate(codes.tolist()):
        state = 0
        for column, code in enumerate(line):
            found[row, column] = int(ODD[state])
            state = int(FOLLOWS[state, code % 2])
    return found


def test_codes_mean_what_the_rule_says() -> None:
    codes = torch.randint(-LARGEST, LARGEST + 1, (40, 50), generator=torch.Generator().manual_seed(0))
    odd = grids(codes)
    expected = 2 * codes - odd * codes.sign()
    assert torch.equal(multiples(codes.to(torch.int8)).long(), expected)


def test_a_walk_has_less_error_than_a_plain_grid_of_the_same_bits(weight: Tensor) -> None:
    eye, ones = torch.eye(COLUMNS), torch.ones(COLUMNS)
    steps = torch.full((ROWS,), 0.5)
    codes = round_on_trellis(weight, steps, ones, eye)
    error = float((multiples(codes).float() * 0.25 - weight).square().mean())
    bits = entropy(codes, grids(codes))
    # A plain grid with as many bits: its error falls by a factor of four with each bit.
    plain = round_on_grid(weight, steps, ones, -127, 127, None)
    its_error = float((plain.float() * 0.5 - weight).square().mean())
    its_bits = entropy(plain, torch.zeros_like(plain))
    assert error < 0.86 * its_error * 4 ** (its_bits - bits)


def test_errors_are_made_good_in_later_columns(weight: Tensor) -> None:
    mixing = torch.from_numpy(np.random.RandomState(1).normal(size=(COLUMNS, COLUMNS))).float()
    moments = mixing @ torch.diag(torch.linspace(0.05, 1, COLUMNS)) @ mixing.T
    order = rounding_order(moments, 0.01, as_they_stand=True)
    steps, columns = torch.full((ROWS,), 0.4), torch.ones(COLUMNS)

    def cost(factor: Tensor) -> float:
        error = multiples(round_on_trellis(weight, steps, columns, factor)).float() * 0.2 - weight
        return float(((error @ moments) * error).sum())

    assert cost(order.factor) < 0.8 * cost(torch.eye(COLUMNS))


def test_columns_have_steps_of_their_own(weight: Tensor) -> None:
    steps, columns = torch.linspace(0.2, 1.0, ROWS), torch.linspace(0.25, 2.0, COLUMNS)
    codes = round_on_trellis(weight, steps, columns, torch.eye(COLUMNS))
    error = multiples(codes).float() * (steps / 2)[:, None] * columns - weight
    assert float((error.abs() / (steps[:, None] * columns)).max()) < 1.1


def test_weights_beyond_the_largest_code_are_cut_off() -> None:
    weight = torch.full((3, 200), 1000.0)
    codes = round_on_trellis(weight, torch.ones(3), torch.ones(200), torch.eye(200))
    assert int(codes.max()) == LARGEST
    assert int(codes.min()) >= LARGEST - 1
