"""Quantization of one matrix: integer codes and one step size per row."""

from __future__ import annotations

import torch
from torch import Tensor

from pgolf.compress.stored import Quantized, code_range
from pgolf.model.section import QuantizerGroup
from pgolf.recipe.sections import CompressSection

# Candidate ranges, as quantiles of a row's magnitudes.
_TENSOR_PERCENTILES = (
    *(0.990, 0.993, 0.995, 0.997, 0.998, 0.999, 0.9993, 0.9995),
    *(0.9997, 0.9999, 0.99993, 0.99995, 0.99997, 0.99999, 1.0),
)
_ROW_PERCENTILES = (0.95, 0.975, 0.99, 0.995, 1.0)


def quantize_matrix(
    weight: Tensor, bits: int, compress: CompressSection, group: QuantizerGroup = "other"
) -> Quantized:
    """Quantize a matrix (rows, columns) row by row, with the recipe's range, floor and rounding.

    Rows take their range from ``clip``; those of 8 bits do so for "std" only, otherwise from
    ``int8_percentile``. ``group`` is the one of the matrix, for what the recipe says by group.
    """
    weight = weight.float()
    magnitudes, floor, round_with = weight.abs(), compress.scale_floor, compress.round_with
    if compress.clip == "std":
        limit = compress.deviations(group) * weight.std(dim=1, correction=min(1, weight.size(1) - 1))
        floor = compress.int8_scale_floor if bits == 8 else floor
        return _round_rows(weight, limit, bits, floor, round_with)
    if bits == 8:
        limit = _row_quantile(magnitudes, compress.int8_percentile)
        weight = weight.clamp(-limit[:, None], limit[:, None])
        # The references round 8-bit codes with the exact step and only then store it as float16.
        return _round_rows(weight, limit, bits, compress.int8_scale_floor, "exact")
    if compress.clip == "percentiles":
        return _best_for_tensor(weight, bits, floor, round_with)
    if compress.clip == "row_percentiles":
        return _best_per_row(weight, bits, floor, round_with)
    return _round_rows(weight, magnitudes.amax(dim=1), bits, floor, round_with)


def prune_smallest(weight: Tensor, fraction: float) -> Tensor:
    """The matrix with the given fraction of its entries, the smallest in magnitude, set to 0."""
    magnitudes = weight.float().abs()
    return weight.masked_fill(magnitudes < _quantile(magnitudes.flatten(), fraction), 0.0)


def _round_rows(weight: Tensor, limit: Tensor, bits: int, floor: float, round_with: str) -> Quantized:
    low, high = code_range(bits)
    step = _steps(limit, high, floor)
    stored = step.half()
    divisor = stored.float() if round_with == "stored" else step
    codes = (weight / divisor[:, None]).round().clamp(low, high).to(torch.int8)
    return Quantized(codes, stored, bits)


def _steps(limit: Tensor, high: int, floor: float) -> Tensor:
    # Bounded before codes are rounded with it: a step that float16 can only store larger would scale up its
    # row.
    return (limit / high).clamp_min(max(floor / high, torch.finfo(torch.float16).tiny))


def _best_for_tensor(weight: Tensor, bits: int, floor: float, round_with: str) -> Quantized:
    """One percentile for the whole tensor: the first with the least mean squared error."""
    magnitudes, best, best_error = weight.abs(), None, float("inf")
    for percentile in _TENSOR_PERCENTILES:
        limit = _row_quantile(magnitudes, percentile)
        candidate = _round_rows(weight, limit, bits, floor, round_with)
        exact = _steps(limit, code_range(bits)[1], floor)
        used = candidate.scale.float() if round_with == "stored" else exact
        error = (weight - candidate.codes.float() * used[:, None]).square().mean().item()
        if best is None or error < best_error:
            best, best_error = candidate, error
    assert best is not None
    return best


def _best_per_row(weight: Tensor, bits: int, floor: float, round_with: str) -> Quantized:
    """Another percentile for each row; entries are picked, not interpolated."""
    ordered, last = weight.abs().sort(dim=1).values, weight.size(1) - 1
    limits = [ordered[:, int(percentile * last)] for percentile in _ROW_PERCENTILES]
    candidates = [_round_rows(weight, limit, bits, floor, round_with) for limit in limits]
    errors = [(weight - candidate.dequantize()).square().mean(dim=1) for candidate in candidates]
    best, rows = torch.stack(errors).argmin(dim=0), torch.arange(len(weight), device=weight.device)
    codes = torch.stack([candidate.codes for candidate in candidates])[best, rows]
    return Quantized(codes, torch.stack([candidate.scale for candidate in candidates])[best, rows], bits)


def _row_quantile(magnitudes: Tensor, percentile: float) -> Tensor:
    return magnitudes.amax(dim=1) if percentile >= 1 else torch.quantile(magnitudes, percentile, dim=1)


def _quantile(values: Tensor, fraction: float) -> Tensor:
    """A quantile by linear interpolation; ``torch.quantile`` stops at 16 million entries."""
    if values.numel() < 1 << 24:
        return torch.quantile(values, fraction)
    position = fraction * (values.numel() - 1)
    low = int(position)
    below, above = (values.kthvalue(min(at, values.numel())).values for at in (low + 1, low + 2))
    return torch.lerp(below, above, position - low)
