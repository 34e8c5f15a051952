"""Floating-point operations of a model, and how much of a device training makes use of."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from pgolf.model.load import shape_of
from pgolf.model.shape import schedule
from pgolf.model.slots import product_flops
from pgolf.optim.schedule import stages
from pgolf.recipe.recipe import Recipe

# Dense bfloat16 matrix products with float32 sums, in FLOP/s, by the manufacturer's data sheets (without
# sparsity). The first name that is part of the device's name counts.
_PEAKS = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
)


def forward_flops(recipe: Recipe, passes: int | None = None, length: int | None = None) -> int:
    """Operations of the forward pass per token, a multiplication and an addition being two.

    Counted are all matrix products, each as often as it is used (a shared core as often as layers use it),
    the output layer and attention (causal, so half of the square); looking up embeddings is free.

    Args:
        recipe: its model.
        passes: through the model's loop; by default all of them.
        length: of the sequences; by default that of the training, at its longest.
    """
    model, length = recipe.model, length or recipe.train.sequence_length
    network, order = shape_of(model), schedule(model, passes)
    uses = Counter(visit.core for visit in order)
    flops = 2 * model.vocab_size * model.width
    flops += sum(product_flops(child) for child in network.children() if child is not network.cores)
    flops += sum(uses[index] * product_flops(core) for index, core in enumerate(network.cores))
    # Scores and weighted values: two products of width D over half of the length, on average.
    return flops + 2 * 2 * model.width * len(order) * length // 2


def training_flops(recipe: Recipe) -> int:
    """Operations of the forward and the backward pass per token: three times the forward pass.

    It is the mean over the training, which may begin with fewer passes through a loop and with shorter
    sequences. What an implementation computes twice, and the optimizer, are not counted.
    """
    parts = stages(recipe.train, recipe.model.loop)
    return round(sum((end - begin) * 3 * forward_flops(recipe, *shape) for begin, end, *shape in parts))


def peak_flops(device_name: str) -> float | None:
    """What a device can do at most (FLOP/s in dense bfloat16), or None where that is not known."""
    return next((peak for name, peak in _PEAKS if name in device_name), None)


def training_speed(
    recipe: Recipe, tokens: int, seconds: float, device: torch.device, devices: int = 1
) -> dict[str, float | None]:
    """How fast training was, as JSON values.

    Args:
        recipe: what was trained.
        tokens: targets, over all devices.
        seconds: that training on them took.
        device: one of the devices.
        devices: their number.

    Returns:
        ``tokens_per_second`` and ``tflops_per_second`` (the model's operations, 10^12) over all devices, and
        ``mfu``, model-FLOPs utilisation (Chowdhery et al. 2022): the part of the devices' peak that this is;
        None on a CPU and on devices whose peak is not known. All None where nothing was trained.
    """
    found: dict[str, Any] = {"tokens_per_second": None, "tflops_per_second": None, "mfu": None}
    if not tokens or seconds <= 0:
        return found
    rate = tokens / seconds
    flops = rate * training_flops(recipe)
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    mfu = None if peak is None else flops / (peak * devices)
    return {"tokens_per_second": rate, "tflops_per_second": flops / 1e12, "mfu": mfu}
