"""Initial weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from pgolf.recipe.sections import ModelSection

# Smaller matrices keep the framework's default: an orthogonal one would be too special.
_ORTHOGONAL_FROM = 64
# What writes into the stream starts silent.
_ZERO = ("output.weight", "mlp.down.weight", "velocity.weight", "velocity.bias", "hidden.bias")


@torch.no_grad()
def initialise(network: nn.Module, model: ModelSection) -> None:
    """Set every initial weight that is not the framework's default or a constant of its module.

    Matrices with both sides of at least 64 are orthogonal; those that write into the stream (attention
    output, MLP down, the refiner's velocity) start at zero; projections of the bigram and value
    embeddings are scaled by 1/sqrt(2 * layers). Uses torch's global generator. Parameters on the meta device,
    which have no values, are left alone.
    """
    for name, parameter in network.named_parameters():
        if parameter.is_meta:
            continue
        module, _, leaf = name.rpartition(".")
        if module == "token_embedding":
            nn.init.normal_(parameter, std=model.embedding_init_std)
        elif name == "bigram.table.weight":
            nn.init.normal_(parameter, std=0.01 if model.bigram.hash == "additive" else 0.0)
        elif name == "value_embedding.table.weight":
            nn.init.normal_(parameter, std=0.01)
        elif module.endswith("attention.gate"):
            nn.init.constant_(parameter, 4.0 if leaf == "bias" else 0.0)
        elif name.endswith(_ZERO):
            nn.init.zeros_(parameter)
        elif leaf == "weight" and parameter.ndim == 2 and name != "skips.weight":
            _initialise_matrix(module, parameter, model)


def _initialise_matrix(module: str, weight: nn.Parameter, model: ModelSection) -> None:
    projection = module in ("bigram.project", "value_embedding.project")
    if min(weight.shape) >= _ORTHOGONAL_FROM:
        nn.init.orthogonal_(weight)
        if projection:
            weight.div_(math.sqrt(2 * model.layers))
    elif module == "value_embedding.project" or (
        module == "bigram.project" and model.bigram.hash == "additive"
    ):
        # A bigram table that starts at zero needs a projection that does not: else neither ever gets a
        # gradient.
        nn.init.zeros_(weight)
    elif module.startswith("refiner."):
        nn.init.normal_(weight, std=0.01)
