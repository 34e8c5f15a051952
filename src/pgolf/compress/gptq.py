"""Rounding with error compensation: GPTQ, on any grid of steps per row and factors per column.

Columns are rounded one after the other, the most used inputs first; what a column's rounding gets wrong is
made good, as far as the inputs' correlations allow, by the columns that are still to come (Frantar et al.
2022, arXiv:2210.17323).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 128


@dataclass(frozen=True)
class Order:
    """The order in which columns are rounded, and how errors spread; depends on the inputs alone."""

    permutation: Tensor
    """(C,) int64: columns, the most used first."""
    factor: Tensor
    """(C, C) float32, upper triangular, in that order: F^T F is the inverse of the columns' moments."""

    def column_spread(self) -> Tensor:
        """(C,) float32: the error of each column that costs as much as any other's once it is compensated."""
        spread = torch.empty(len(self.permutation))
        spread[self.permutation] = self.factor.diagonal()
        return spread


def rounding_order(moments: Tensor, damping: float, as_they_stand: bool = False) -> Order:
    """Prepare for matrices whose inputs have these second moments (C, C).

    Args:
        moments: symmetric, positive semi-definite.
        damping: added to the diagonal, as a part of its mean.
        as_they_stand: round the columns from the first to the last, instead of the most used first. On a grid
            without bounds the expected error is the same.
    """
    moments = moments.double()
    mean = moments.diagonal().mean().clamp_min(1e-30)
    by_use = moments.diagonal().argsort(descending=True, stable=True)
    permutation = torch.arange(len(moments)) if as_they_stand else by_use
    ordered = moments[permutation][:, permutation]
    ordered = ordered + damping * mean * torch.eye(len(moments), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    return Order(permutation, torch.linalg.cholesky(inverse, upper=True).float())


def round_on_grid(
    weight: Tensor, steps: Tensor, columns: Tensor, low: int, high: int, order: Order | None
) -> Tensor:
    """Codes (R, C) int8 in [low, high] of a float32 matrix (R, C) on the grid steps[r] * columns[c].

    Args:
        steps: (R,) float32, 0 for rows that stay 0.
        columns: (C,) float32, positive.
        order: how to compensate; None rounds every entry to the nearest.
    """
    inverse = torch.where(steps > 0, 1 / steps.clamp_min(1e-30), torch.zeros_like(steps))
    if order is None:
        return (weight * inverse[:, None] / columns[None, :]).round().clamp(low, high).to(torch.int8)
    # Transposed: a column of the matrix is then contiguous.
    remaining = weight.T[order.permutation].contiguous()
    factors = columns[order.permutation]
    codes = torch.empty_like(remaining)
    for start in range(0, len(remaining), _BLOCK):
        stop = min(start + _BLOCK, len(remaining))
        errors = torch.empty(stop - start, remaining.size(1))
        for index in range(start, stop):
            value, factor = remaining[index], factors[index]
            code = (value * (inverse / factor)).round_().clamp_(low, high)
            codes[index] = code
            error = (value - code * (steps * factor)) / order.factor[index, index]
            errors[index - start] = error
            if index + 1 < stop:
                remaining[index + 1 : stop].addr_(order.factor[index, index + 1 : stop], error, alpha=-1)
        if stop < len(remaining):
            remaining[stop:].addmm_(order.factor[start:stop, stop:].T, errors, alpha=-1)
    back = torch.empty_like(order.permutation)
    back[order.permutation] = torch.arange(len(back))
    return codes[back].T.contiguous().to(torch.int8)
