"""Dense cross-layer mixing (MUDDFormer, Xiao et al. 2025, arXiv:2502.12170), of the residual stream alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.fast import rms_norm
from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.shape import Visit, schedule
from pgolf.model.slots import LayerPart, product_flops


class Mixture(nn.Module):
    """Shares (..., window) of the streams for a position: W2 gelu(W1 norm(x)) + b, zero at first."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, window, bias=False)
        self.shares = nn.Linear(window, window)

    def forward(self, x: Tensor) -> Tensor:
        shares: Tensor = self.shares(F.gelu(self.hidden(rms_norm(x))))
        return shares


class Dense(LayerPart):
    """x + sum over the streams of share_i(x) * stream_i: the beginning and the newest.

    Of challenge #1936 the part for the residual stream, with one window for all layers. That normalises the
    sum and adds it by a scale, and has a part for the values in the last layers.
    """

    name = "dense"
    examples = (("dense mixing", "model.dense.every=2"),)

    def __init__(self, model: ModelSection, fake_quant: FakeQuant) -> None:
        super().__init__(model, fake_quant)
        self.every, self.window = model.dense.every, model.dense.window
        self.mixtures = nn.ModuleDict(
            {
                str(layer): Mixture(model.width, self.window)
                for layer in range(self.every, model.layers, self.every)
            }
        )
        self.uses = sum(str(visit.layer) in self.mixtures for visit in schedule(model))

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return model.dense.every > 0

    def initialise(self, model: ModelSection) -> None:
        for name, parameter in self.named_parameters():
            if ".shares." in name:
                nn.init.zeros_(parameter)

    def flops(self) -> int:
        return self.uses * product_flops(next(iter(self.mixtures.values())))

    def before(self, x: Tensor, kept: list[Tensor], order: Sequence[Visit], place: int) -> Tensor:
        if not kept:
            kept.append(x)
        layer = str(order[place].layer)
        if layer not in self.mixtures:
            return x
        shares = self.mixtures[layer](x).to(x.dtype)
        # The newest come first after the beginning, so a layer knows them by how old they are.
        for index, stream in enumerate((kept[0], *reversed(kept[1:]))):
            x = torch.addcmul(x, shares[..., index, None], stream)
        return x

    def after(self, x: Tensor, kept: list[Tensor], order: Sequence[Visit], place: int) -> None:
        kept.append(x)
        if len(kept) > self.window:
            del kept[1]
