"""One table that gives every parameter its optimizer group and its quantizer group.

The rows of the core are here, those of a feature with its keys. A parameter that no row or more than one row
claims is an error when the optimizers are built, and again when the model is packed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pgolf.model.section import FEATURE_ROWS, QuantizerGroup, Row
from pgolf.recipe.recipe import Recipe
from pgolf.recipe.sections import AdamDecay

if TYPE_CHECKING:
    from torch import nn

ROUTES: tuple[Row, ...] = (
    Row(r"token_embedding\.weight", "embedding", "embedding"),
    Row(r"layers\.\d+\.(residual_mix|attention_scale|mlp_scale)", "scalar", "control"),
    Row(r"cores\.\d+\.attention\.(query|key|value|output)\.weight", "matrix", "attention"),
    Row(r"cores\.\d+\.attention\.query_gain", "scalar", "control"),
    Row(r"cores\.\d+\.mlp\.(up|down)\.weight", "matrix", "mlp"),
    Row(r"cores\.\d+\.mlp\.(scale|bias)", "scalar", "control"),
    *FEATURE_ROWS,
)


@dataclass(frozen=True)
class Route:
    """What happens to one parameter: its name, optimizer, base learning rate and weight decay."""

    name: str
    parameter: nn.Parameter
    optimizer: Literal["muon", "adamw", "none"]
    lr: float
    weight_decay: float


def row_of(name: str) -> Row:
    """The row of a parameter name.

    Raises:
        AssertionError: no row of the table, or more than one, claims the name.
    """
    claims = [row for row in ROUTES if re.fullmatch(row.pattern, name)]
    assert len(claims) == 1, (
        f"{len(claims)} rows of the routing table claim parameter {name}; give it exactly one"
    )
    return claims[0]


def quantizer_group(name: str) -> QuantizerGroup:
    """The quantizer group of a parameter name."""
    return row_of(name).quantizer


def route(network: nn.Module, recipe: Recipe) -> list[Route]:
    """Optimizer, learning rate and weight decay of every parameter, in the order of the network."""
    return [_route_one(name, parameter, recipe) for name, parameter in network.named_parameters()]


def _route_one(name: str, parameter: nn.Parameter, recipe: Recipe) -> Route:
    optim, group = recipe.optim, row_of(name).optimizer
    factor = optim.decoder_lr_mult if _in_decoder(name, recipe) else 1.0
    if group == "matrix":
        return Route(name, parameter, "muon", optim.matrix_lr * factor, optim.muon_weight_decay)
    if group == "bigram_scale" and not optim.train_bigram_scale:
        return Route(name, parameter, "none", 0.0, 0.0)
    as_embedding = group == "embedding" or (
        group == "bigram_table" and optim.bigram_table_group == "embedding"
    )
    lr, decay = optim.embed_lr if as_embedding else optim.scalar_lr * factor, optim.adam_weight_decay
    if isinstance(decay, AdamDecay):
        decay = decay.embedding if as_embedding else decay.scalar
    return Route(name, parameter, "adamw", lr, decay)


def _in_decoder(name: str, recipe: Recipe) -> bool:
    match = re.match(r"(?:layers|cores)\.(\d+)\.", name)
    return match is not None and int(match[1]) >= recipe.model.layers // 2
