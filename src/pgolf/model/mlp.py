"""The feed-forward network and its activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.fast import by_hand, squared_leaky_relu
from pgolf.model.linear import FakeQuant, Matrix
from pgolf.model.shape import Shape

# Hidden activations (float32) of one part: 2 MiB, of which a core's cache holds about half.
_IN_CACHE = 1 << 19


class Mlp(nn.Module):
    """Up-projection, squared activation, down-projection.

    "relu2": relu(x)^2 (So et al. 2021, Primer). "leaky_relu2": leaky_relu(x, slope)^2.
    "star_relu": relu(x)^2 * scale + bias with a learned pair per hidden channel (Yu et al. 2022).
    """

    def __init__(self, model: Shape, fake_quant: FakeQuant) -> None:
        super().__init__()
        self.up = Matrix(model.width, model.mlp_hidden, fake_quant)
        self.down = Matrix(model.mlp_hidden, model.width, fake_quant)
        # From the input to the result, past the hidden channels: for adapters (``evaluate/lora.py``).
        self.beside: Matrix | None = None
        self.slope = model.mlp_slope if model.mlp == "leaky_relu2" else 0.0
        star = model.mlp == "star_relu"
        self.scale = nn.Parameter(torch.ones(model.mlp_hidden)) if star else None
        self.bias = nn.Parameter(torch.zeros(model.mlp_hidden)) if star else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        if torch.is_grad_enabled() or not by_hand(x):
            return self._map(x)
        # A part at a time, for the widest tensors of the model to stay in the processor's cache.
        parts = x.flatten(0, -2).split(max(_IN_CACHE // self.up.out_features, 1))
        mapped = [self._map(part) for part in parts]
        return (torch.cat(mapped) if len(mapped) > 1 else mapped[0]).view(x.shape)

    def _map(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        if torch.is_grad_enabled():
            hidden = squared_leaky_relu(hidden, self.slope)
        else:  # In place: nothing of it is allocated three times.
            hidden = F.leaky_relu(hidden, self.slope, inplace=True).square_()
        if self.scale is not None and self.bias is not None:
            hidden = hidden * self.scale.to(hidden.dtype) + self.bias.to(hidden.dtype)
        return self.down(hidden) if self.beside is None else self.down(hidden) + self.beside(x)
