"""Initial weights."""

from __future__ import annotations

import torch
from torch import nn

from pgolf.model.section import ModelSection
from pgolf.model.slots import Part, orthogonal

# What writes into the stream starts silent.
_ZERO = ("attention.output", "mlp.down")


@torch.no_grad()
def initialise(network: nn.Module, model: ModelSection) -> None:
    """Set every initial weight that is not the framework's default or a constant of its module.

    Matrices with both sides of at least 64 are orthogonal; those that write into the stream (attention
    output, MLP down) start at zero. Each part sets its own. Uses torch's global generator. Parameters on the
    meta device, which have no values, are left alone.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return
    parts: tuple[str, ...] = ()
    for name, module in network.named_modules():
        if name.startswith(parts):
            continue
        if isinstance(module, Part):
            module.initialise(model)
            parts += (f"{name}.",)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=model.embedding_init_std)
        elif name.endswith(_ZERO):
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            orthogonal(module.weight)
