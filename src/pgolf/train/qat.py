"""Quantization-aware training that sees the weights as packing will store them: ``qat.grid = "export"``.

During the forward and backward passes of a step the parameters hold what their stored form stands for; then
the exact weights return and take the optimizer's step, with the gradient at the rounded ones. That is the
straight-through estimator (Bengio et al. 2013, arXiv:1308.3432), done with two sets of weights as in
BinaryConnect (Courbariaux et al. 2015, arXiv:1511.00363). The model knows nothing of it, so a tensor may be
of any kind and be used any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pgolf.compress.calibrate import calibration_for
from pgolf.compress.grid import Grid
from pgolf.compress.pack import freeze_grid
from pgolf.compress.quantize import quantize_matrix
from pgolf.compress.scheme import is_pruned, prune, stored_bits
from pgolf.data.dataset import Dataset
from pgolf.model.load import model_from
from pgolf.model.section import QuantizerGroup
from pgolf.optim.routing import quantizer_group
from pgolf.recipe.recipe import Recipe
from pgolf.recipe.sections import CompressSection

Rounding = Callable[[Tensor], Tensor]
"""From a float32 weight to what its stored form stands for: float32, same shape, same device.

It must not change its argument. Equal weights must give equal results, or resumed runs differ.
"""


def choose_grid(weights: Mapping[str, Tensor], recipe: Recipe, dataset: Dataset) -> Grid:
    """The grid to freeze for the rest of training under the "budget" scheme, for the recipe's cap.

    Everything happens on the CPU, with training text; equal weights give an equal grid.

    Args:
        weights: those that would be packed if training ended now.
        recipe: names the cap and the text.
        dataset: the training text.

    Raises:
        PgolfError: the cap is too small for any grid.
    """
    network = model_from(recipe.model, weights)
    state = network.state_dict()
    return freeze_grid(state, recipe, dataset.tokenizer.digest, calibration_for(network, recipe, dataset))


def grid_rounding(network: nn.Module, grid: Grid) -> dict[str, Rounding]:
    """What packing on a frozen grid does to each parameter, by name."""
    grid = grid.to(next(network.parameters()).device)
    return {name: partial(grid.round, name) for name, _ in network.named_parameters()}


def export_rounding(network: nn.Module, recipe: Recipe) -> dict[str, Rounding]:
    """What packing by the "rowwise" scheme does to each parameter, by name, but for those kept as float32.

    Codes and fp16 are both rounded to. Widths are those that the recipe asks for, and codes are the nearest
    ones: what packing decides at the end (fewer bits to meet the cap, error compensation) cannot be known
    while training.
    """
    rounding: dict[str, Rounding] = {}
    for name, parameter in network.named_parameters():
        bits = stored_bits(name, parameter.shape, recipe.compress)
        if bits < 32 or is_pruned(parameter, recipe.compress):
            group = quantizer_group(name)
            rounding[name] = partial(_as_stored, bits=bits, compress=recipe.compress, group=group)
    return rounding


@contextmanager
def rounded_weights(network: nn.Module, rounding: Mapping[str, Rounding]) -> Iterator[None]:
    """Inside, the named parameters hold their rounded values; afterwards, whatever happened, the exact ones.

    A backward pass belongs inside, a step of the optimizer outside. Values are copied in place, so compiled
    code sees the same tensors all the time. Parameters keep their number format: a bfloat16 table is rounded
    to bfloat16 after it, as it is where an artifact is scored.
    """
    parameters = {name: network.get_parameter(name) for name in rounding}
    exact = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(rounding[name](exact[name].float()))
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(exact[name])


def _as_stored(weight: Tensor, bits: int, compress: CompressSection, group: QuantizerGroup) -> Tensor:
    # The steps of ``compress.scheme`` for one tensor, without leaving the device.
    weight = prune(weight, compress)
    if bits >= 16:
        return weight.half().float() if bits == 16 else weight
    return quantize_matrix(weight, bits, compress, group).dequantize()
