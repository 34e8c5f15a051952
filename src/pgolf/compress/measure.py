"""What each tensor's quantization costs: predicted from its sensitivity, and measured on calibration text."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.compress.calibrate import Calibration
from pgolf.compress.quantize import Quantized, Stored, dequantize
from pgolf.model.gpt import GPT
from pgolf.model.load import model_from
from pgolf.recipe.recipe import Recipe

# Multiply-adds that measuring may take: a few seconds on two cores.
_WORK = 8.0e10
_FEWEST_TOKENS = 256
_PASS = 4096
"""Positions of a forward pass; fewer would spend more time on starting operations than on computing."""


def predicted_rises(
    state: Mapping[str, Tensor], stored: Mapping[str, Stored], calibration: Calibration
) -> dict[str, float]:
    """Predicted rise of the loss in nats per token, by matrix whose sensitivity is known."""
    known = calibration.sensitivities
    return {
        name: known[name].loss(state[name].float() - value.dequantize())
        for name, value in stored.items()
        if isinstance(value, Quantized) and name in known
    }


@torch.no_grad()
def measured_rises(
    state: Mapping[str, Tensor], stored: Mapping[str, Stored], recipe: Recipe, calibration: Calibration
) -> dict[str, float]:
    """Rise of the loss by quantized tensor, in nats per token, when that tensor alone is as stored.

    Measured on the first part of the calibration text, so much of it that the work stays bounded.
    """
    network = model_from(recipe.model, state).eval()
    changed = {name: value for name, value in stored.items() if isinstance(value, Quantized)}
    size = sum(tensor.numel() for tensor in state.values())
    count = max(int(_WORK / (size * max(len(changed), 1))), _FEWEST_TOKENS)
    length = min(calibration.tokens.size(1) - 1, count)
    tokens = calibration.tokens[: count // length, : length + 1]
    exact = _loss(network, tokens)
    rises = {}
    for name, value in changed.items():
        parameter = network.get_parameter(name)
        parameter.copy_(dequantize(value))
        rises[name] = _loss(network, tokens) - exact
        parameter.copy_(state[name])
    return rises


def _loss(network: GPT, tokens: Tensor) -> float:
    batches = tokens.split(max(_PASS // tokens.size(1), 1))
    total = sum(float(network(batch[:, :-1], batch[:, 1:]).double().sum()) for batch in batches)
    return total / tokens[:, 1:].numel()
