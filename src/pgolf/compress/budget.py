"""The budget solver: spend a byte cap where the loss minds it most.

Under an entropy coder a weight's bits depend on its step size alone, so precision is a choice of steps. The
predicted loss is a sum over entries of (sensitivity x error^2) (see ``compress/calibrate.py``), and with
error compensation an error in column c costs 1 / spread[c]^2 (see ``compress/gptq.py``). The least loss for
given bits makes every entry's loss equal:

    step[row, column] = fineness * spread[column] / sqrt(sensitivity[row])

One number, the fineness, is left; it is searched so that the coded artifact lands just under the cap.
Steps are fp16 numbers with two bits of mantissa, which cost 3 to 4 bits each to code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from pgolf.compress.calibrate import Sensitivity
from pgolf.compress.gptq import Order, round_on_grid, rounding_order
from pgolf.compress.quantize import quantize_matrix
from pgolf.compress.stored import Quantized
from pgolf.compress.trellis import round_on_trellis
from pgolf.optim.routing import quantizer_group
from pgolf.recipe.sections import CompressSection

Result = TypeVar("Result")
_HIGHEST = 127
# Least and largest sensitivity of a row beside its tensor's mean: estimates from little text are noisy.
_ROW_RANGE = 64.0
_COLUMN_RANGE = 16.0
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Target:
    """A matrix and what its rounding needs to know; made once, used for every fineness."""

    weight: Tensor
    """(R, C) float32."""
    rows: Tensor
    """(R,) float32: step of each row at fineness 1, columns' factors apart."""
    columns: Tensor
    """(C,) float32: factor of each column, on the coarse grid."""
    order: Order | None
    """How errors are compensated, if they are."""
    trellis: bool = False
    """Whether to round on a trellis; only with an order."""


def is_budgeted(name: str, tensor: Tensor) -> bool:
    """Whether the solver quantizes a tensor; the others are vectors and gates, kept as float16."""
    return tensor.ndim == 2 and quantizer_group(name) != "control"


def prepare(
    state: Mapping[str, Tensor], sensitivities: Mapping[str, Sensitivity], compress: CompressSection
) -> dict[str, Target]:
    """Everything about the matrices of a state that does not depend on the fineness."""
    return {
        name: _target(tensor.detach().float(), sensitivities.get(name), compress)
        for name, tensor in state.items()
        if is_budgeted(name, tensor)
    }


def _target(weight: Tensor, sensitivity: Sensitivity | None, compress: CompressSection) -> Target:
    rows, columns = weight.shape
    if sensitivity is None:
        # Nothing known: the same precision everywhere, in units of the tensor's spread.
        step = weight.square().mean().sqrt().clamp_min(1e-8)
        return Target(weight, step.expand(rows), torch.ones(columns), None)
    compensated = compress.rounding == "gptq"
    # Other coders do not know which codes may follow, and would pay for all of them.
    trellis = compress.trellis and compensated and compress.codec == "range"
    order = rounding_order(sensitivity.column_moments(), compress.damping, as_they_stand=trellis)
    spread = order.column_spread()
    middle = spread.log().mean().exp()
    factors = coarse((spread / middle).clamp(1 / _COLUMN_RANGE, _COLUMN_RANGE))
    weights = sensitivity.row_weights()
    mean = weights.mean().clamp_min(1e-20)
    weights = weights.clamp(mean / _ROW_RANGE, mean * _ROW_RANGE)
    steps = middle / weights.sqrt()
    return Target(weight, steps, factors, order if compensated else None, trellis)


def round_target(target: Target, fineness: float) -> Quantized:
    """A matrix on the grid of a given fineness; the width is the least that holds its codes."""
    target = _softened(target, fineness)
    steps = _grid_steps(target, fineness)
    if target.trellis:
        assert target.order is not None
        codes = round_on_trellis(target.weight, steps, target.columns, target.order.factor)
    else:
        codes = round_on_grid(target.weight, steps, target.columns, -_HIGHEST, _HIGHEST, target.order)
    factors = target.columns
    if target.order is not None:
        # Steps of what is all 0 mean nothing: let them cost little. A grid that training goes on to round on
        # is made without compensation, and keeps its own.
        steps, factors = _where_used(steps, codes, 1), _where_used(factors, codes, 0)
    columns = None if bool((factors == 1).all()) else factors.half()
    scale = steps.half() / 2 if target.trellis else steps.half()
    return Quantized(codes, scale, width_of(codes), columns, trellis=target.trellis)


def _where_used(values: Tensor, codes: Tensor, along: int) -> Tensor:
    """Values of rows (codes are along 1) or columns (0); where codes are all 0, the others' median."""
    idle = (codes == 0).all(dim=along)
    if not bool(idle.any()):
        return values
    used = values[~idle]
    return torch.where(idle, used.median() if len(used) else torch.ones(()), values)


def nearest_codes(weight: Tensor, steps: Tensor, columns: Tensor | None) -> Tensor:
    """Codes (R, C) int8 of a float32 matrix on a stored grid: steps (R,) and factors (C,) in float16."""
    factors = torch.ones(weight.size(1), device=weight.device) if columns is None else columns.float()
    return round_on_grid(weight, steps.float(), factors, -_HIGHEST, _HIGHEST, None)


def _softened(target: Target, fineness: float) -> Target:
    # Where rows want more than 8-bit codes, a column with a small factor holds the largest ones and makes the
    # whole row coarse. So the more such rows there are, the nearer to 1 are the factors.
    bound = float((_least_steps(target) > target.rows * fineness).float().mean())
    return replace(target, columns=coarse(target.columns ** (1 - bound / 2))) if bound else target


def _least_steps(target: Target) -> Tensor:
    return (target.weight.abs() / target.columns[None, :]).amax(dim=1) / _HIGHEST


def _grid_steps(target: Target, fineness: float) -> Tensor:
    """Steps of the rows (R,) float32, on the coarse grid, wide enough for 8-bit codes."""
    steps = coarse(target.rows * fineness, _dither(len(target.rows)))
    least = _least_steps(target)
    return torch.where(steps < least, coarse(least, 1.0), steps).clamp(2.0**-14, 2.0**14)


def shift_steps(steps: Tensor, fineness: float) -> Tensor:
    """Steps of the rows (R,) float16 times a factor, on the coarse grid: only part of the rows change."""
    return coarse(steps.float() * fineness, _dither(len(steps))).clamp(2.0**-14, 2.0**14).half()


def _dither(rows: int) -> Tensor:
    # A row's place between two steps is spread evenly over the rows, so that bytes change little by little.
    return ((torch.arange(rows, dtype=torch.float64) * _GOLDEN) % 1.0).float()


def coarse(values: Tensor, up: Tensor | float = 0.5) -> Tensor:
    """The nearest of 1, 1.25, 1.5, 1.75 times a power of two (float32, positive).

    Args:
        values: positive.
        up: where between two such numbers rounding turns upward: 0 always down, 1 always up.
    """
    mantissa, exponent = torch.frexp(values.clamp_min(2.0**-20))
    eighths = mantissa * 8
    # An exact number stays as it is, also where everything else goes up.
    rounded = torch.where(eighths == eighths.floor(), eighths, (eighths + up).floor())
    return torch.ldexp(rounded / 8, exponent)


def low_rank_correction(
    target: Target, quantized: Quantized, sensitivity: Sensitivity | None, rank: int
) -> Quantized:
    """Add the product of two 8-bit matrices of a given rank that best makes good what rounding got wrong.

    Best by the predicted loss: the error's singular vectors under the rows' weights and columns' moments.
    """
    rank = min(rank, *target.weight.shape)
    error = (target.weight - quantized.dequantize()).double()
    left = torch.ones(len(error), dtype=torch.float64)
    root = torch.eye(error.size(1), dtype=torch.float64)
    if sensitivity is not None:
        weights = sensitivity.row_weights().double()
        left = weights.clamp_min(weights.mean().clamp_min(1e-30) / _ROW_RANGE).sqrt()
        moments = sensitivity.column_moments().double()
        root = torch.linalg.cholesky(moments + 0.01 * torch.eye(len(moments), dtype=torch.float64))
    u, s, v = torch.linalg.svd(left[:, None] * error @ root, full_matrices=False)
    scale = s[:rank].sqrt()
    first = (u[:, :rank] * scale / left[:, None]).T
    second = torch.linalg.solve_triangular(root, v[:rank] * scale[:, None], upper=False, left=False)
    left_part, right_part = (quantize_matrix(part.float(), 8, CompressSection()) for part in (first, second))
    return quantized._replace(correction=(left_part, right_part))


def first_guess(targets: Mapping[str, Target], bits: float) -> float:
    """The fineness at which the matrices should take about so many bits, if their rows are normal.

    A normal row of spread s costs about 1/2 log2(1 + 2 pi e s^2 / step^2) bits per entry.
    """
    heights, counts = [], []
    for target in targets.values():
        spread = (target.weight / target.columns[None, :]).square().mean(dim=1).sqrt()
        heights.append((spread / target.rows).clamp_min(1e-20).log2().double())
        counts.append(torch.full_like(heights[-1], target.weight.size(1)))
    if not heights:
        return 1.0
    height, count = torch.cat(heights), torch.cat(counts)
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        cost = 0.5 * torch.log2(1 + 2 * math.pi * math.e * torch.exp2(2 * (height - middle)))
        if float((cost.clamp_max(8.0) * count).sum()) > bits:
            low = middle
        else:
            high = middle
    return 2.0**low


def search(
    build: Callable[[float], tuple[Result, int]],
    start: float,
    cap: int,
    slack: float,
    entries: int,
    attempts: int = 16,
) -> Result | None:
    """Find the finest grid whose total size stays within a cap.

    Args:
        build: from a fineness to what is packed and its size in bytes; sizes fall as the fineness grows.
        start: fineness to begin with.
        cap: largest size.
        slack: how far below the cap is good enough, as a part of it.
        entries: codes in it.
        attempts: largest number of calls.

    Returns:
        The largest that fits, or None if nothing did.
    """
    best: tuple[Result, int] | None = None
    tried: list[tuple[float, int]] = []
    place = math.log2(start)
    for _ in range(attempts):
        packed, size = build(2.0**place)
        if size <= cap and (best is None or size > best[1]):
            best = packed, size
        if cap * (1 - slack) <= size <= cap or (size <= cap and _as_fine_as_can_be(tried, place, size)):
            break
        tried.append((place, size))
        place = _next_place(tried, cap * (1 - slack / 3), entries)
        if any(abs(place - at) < 1e-6 for at, _ in tried):
            break
    return None if best is None else best[0]


def _as_fine_as_can_be(tried: list[tuple[float, int]], place: float, size: int) -> bool:
    """Whether a grid twice as fine as all others is no larger: every code has its eight bits."""
    larger = max((other for at, other in tried if at > place), default=None)
    if larger is None or size - larger > 1e-4 * size:
        return False
    return place < min(at for at, _ in tried) - 1


def _next_place(tried: list[tuple[float, int]], goal: float, entries: int) -> float:
    """Where (log2 of the fineness) the size should be ``goal``, from the sizes so far."""
    fits = min((point for point in tried if point[1] <= goal), default=None)
    over = max((point for point in tried if point[1] > goal), default=None)
    if fits is not None and over is not None:
        # Sizes are close to linear in the logarithm of the fineness.
        part = (over[1] - goal) / max(over[1] - fits[1], 1)
        return over[0] + min(max(part, 0.02), 0.98) * (fits[0] - over[0])
    place, size = tried[-1]
    slope = -entries / 8.0  # One bit per entry for each factor of two, where codes are not mostly 0,
    if len(tried) > 1 and tried[-2][0] != place:  # or what the last step showed.
        slope = min((size - tried[-2][1]) / (place - tried[-2][0]), slope / 20)
    return place + min(max((goal - size) / slope, -4.0), 4.0)


def width_of(codes: Tensor) -> int:
    """The least width that holds codes: 2 to 8 bits."""
    low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    return next((bits for bits in range(2, 8) if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1)), 8)
