"""The number formats in which a device holds each parameter."""

from __future__ import annotations

import torch

from pgolf.model.gpt import GPT
from pgolf.optim.routing import row_of
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.device import half_format


def place(network: GPT, recipe: Recipe, device: torch.device) -> GPT:
    """Move the model to its device, in place, in the formats the references use there.

    GPUs without bfloat16 hold everything in float32.
    """
    network.to(device)
    if half_format(device) == torch.bfloat16:
        torch.set_float32_matmul_precision("high")
        set_formats(network, recipe)
    return network


def set_formats(network: GPT, recipe: Recipe) -> GPT:
    """Give the parameters, in place, the formats that they have on CUDA, wherever they are.

    The embedding tables, and what its row in the routing table says, are stored in bfloat16; matrices that
    Muon updates and all vectors stay float32.
    """
    for name, parameter in network.named_parameters():
        row = row_of(name)
        is_table = row.optimizer == "embedding" or (
            row.optimizer == "bigram_table" and recipe.optim.bigram_table_group == "embedding"
        )
        if is_table or (row.half and parameter.ndim == 2):
            parameter.data = parameter.data.bfloat16()
    return network
