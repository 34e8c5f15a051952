"""FlowRefiner: a small learned correction of the final hidden states (reference #1232)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.slots import HeadPart, orthogonal


class FlowRefiner(HeadPart):
    """One Euler step of a velocity field in a latent space, added through a gate.

    x + sigmoid(gate) * up(z + velocity(gelu(hidden(z)))) with z = down(x). The gate starts at
    sigmoid(-5), so that the refiner begins close to the identity.
    """

    name = "refiner"
    examples = (("refiner", "model.refiner=flow"),)

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        latent, hidden = model.refiner_latent, model.refiner_hidden
        self.down = nn.Linear(model.width, latent, bias=False)
        self.hidden = nn.Linear(latent, hidden)
        self.velocity = nn.Linear(hidden, latent)
        self.up = nn.Linear(latent, model.width, bias=False)
        self.gate = nn.Parameter(torch.tensor(-5.0))

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.refiner == "flow"

    def initialise(self, model: ModelSection) -> None:
        for layer in (self.down, self.hidden, self.up):
            if not orthogonal(layer.weight):
                nn.init.normal_(layer.weight, std=0.01)
        for silent in (self.hidden.bias, self.velocity.weight, self.velocity.bias):
            nn.init.zeros_(silent)

    def forward(self, x: Tensor) -> Tensor:
        z = self.down(x)
        z = z + self.velocity(F.gelu(self.hidden(z)))
        return x + torch.sigmoid(self.gate) * self.up(z)
