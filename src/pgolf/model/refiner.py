"""FlowRefiner: a small learned correction of the final hidden states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.recipe.sections import ModelSection


class FlowRefiner(nn.Module):
    """One Euler step of a velocity field in a latent space, added through a gate (reference #1232).

    x + sigmoid(gate) * up(z + velocity(gelu(hidden(z)))) with z = down(x). The gate starts at
    sigmoid(-5), so that the refiner begins close to the identity.
    """

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        latent, hidden = model.refiner_latent, model.refiner_hidden
        self.down = nn.Linear(model.width, latent, bias=False)
        self.hidden = nn.Linear(latent, hidden)
        self.velocity = nn.Linear(hidden, latent)
        self.up = nn.Linear(latent, model.width, bias=False)
        self.gate = nn.Parameter(torch.tensor(-5.0))

    def forward(self, x: Tensor) -> Tensor:
        """Refine (B, T, D)."""
        z = self.down(x)
        z = z + self.velocity(F.gelu(self.hidden(z)))
        return x + torch.sigmoid(self.gate) * self.up(z)
