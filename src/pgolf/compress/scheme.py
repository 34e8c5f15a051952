"""What becomes of every tensor of a model: codes with a step per row, or a small float format."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pgolf.compress.calibrate import Sensitivity
from pgolf.compress.gptq import round_on_grid, rounding_order
from pgolf.compress.quantize import prune_smallest, quantize_matrix
from pgolf.compress.stored import Stored, code_range
from pgolf.errors import PgolfError
from pgolf.optim.routing import quantizer_group, row_of
from pgolf.recipe.sections import CompressSection

# Entries; smaller matrices are not pruned.
_PRUNED_ABOVE = 65536


def quantize_state(
    state: Mapping[str, Tensor],
    compress: CompressSection,
    five_bit_cores: frozenset[int] = frozenset(),
    sensitivities: Mapping[str, Sensitivity] | None = None,
) -> dict[str, Stored]:
    """Quantize named float32 tensors by the "rowwise" scheme: fixed widths, a range per row.

    Args:
        state: the weights.
        compress: widths, ranges, what to keep.
        five_bit_cores: indices of cores whose attention and MLP matrices get 5 bits instead of more.
        sensitivities: where known, and if the recipe says "gptq", rounding compensates errors.

    Returns:
        For each name its codes, or the tensor as float16 or float32. PgolfError where its format cannot hold
        a value.
    """
    known = sensitivities or {}
    return {
        name: _store(name, tensor, compress, five_bit_cores, known.get(name))
        for name, tensor in state.items()
    }


def stored_bits(name: str, shape: Sequence[int], compress: CompressSection) -> int:
    """Bits per entry that a tensor is stored with: 2 to 8 as codes, 16 or 32 as floats."""
    group = quantizer_group(name)
    if group == "control" or len(shape) != 2 or math.prod(shape) <= compress.keep_below:
        return _kept_bits(name, compress)
    return 16 if name in compress.keep_fp16 else int(getattr(compress.bits, group))


def _store(
    name: str,
    tensor: Tensor,
    compress: CompressSection,
    five_bit_cores: frozenset[int],
    sensitivity: Sensitivity | None,
) -> Stored:
    tensor = prune(tensor.detach().cpu().float(), compress)
    bits = stored_bits(name, tensor.shape, compress)
    check_range(name, tensor, 32 if bits == 32 else 16)
    if bits >= 16:
        return tensor.half() if bits == 16 else tensor
    core = re.match(r"cores\.(\d+)\.", name)
    if core and int(core[1]) in five_bit_cores:
        bits = min(bits, 5)
    quantized = quantize_matrix(tensor, bits, compress, quantizer_group(name))
    if sensitivity is None or compress.rounding != "gptq":
        return quantized
    order = rounding_order(sensitivity.column_moments(), compress.damping)
    low, high = code_range(bits)
    codes = round_on_grid(tensor, quantized.scale.float(), torch.ones(tensor.size(1)), low, high, order)
    return quantized._replace(codes=codes)


def prune(weight: Tensor, compress: CompressSection) -> Tensor:
    """The weight without the smallest part of its entries, if it is a large matrix and the recipe asks so."""
    return prune_smallest(weight, compress.prune) if is_pruned(weight, compress) else weight


def is_pruned(weight: Tensor, compress: CompressSection) -> bool:
    """Whether ``prune`` changes a weight."""
    return bool(compress.prune) and weight.ndim == 2 and weight.numel() > _PRUNED_ABOVE


def check_range(name: str, tensor: Tensor, bits: int) -> None:
    """PgolfError where a float format of 16 or 32 bits cannot hold a tensor."""
    largest = torch.finfo(torch.float32 if bits == 32 else torch.float16).max
    if not bool((tensor.abs() <= largest).all()):
        raise PgolfError(
            f"tensor {name} holds a value that is not finite or exceeds {largest:g}; "
            "train again with a smaller learning rate, or pack an earlier checkpoint"
        )


def _kept_bits(name: str, compress: CompressSection) -> int:
    if compress.control_dtype == "float16":
        return 16
    # Reference #644 keeps vectors, small embeddings and their projections exact, but no vectors of the MLP.
    row = row_of(name)
    return 32 if (row.exact or row.quantizer == "control") and ".mlp." not in name else 16
