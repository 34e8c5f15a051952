"""Exclusive self-attention (XSA): what a head takes from others, without what its own position says."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pgolf.model.fast import by_hand
from pgolf.model.section import ModelSection
from pgolf.model.slots import AttentionPart, SinglePart

# F.normalize's smallest divisor.
_SMALLEST_NORM = 1e-12


class Exclusive(AttentionPart):
    """Takes out of each head's output what points along the value of its own position."""

    name = "exclusive"
    examples = (
        ("xsa", "model.xsa_last=2"),
        ("xsa everywhere", "model.xsa_last=3"),
    )

    @staticmethod
    def wanted(model: ModelSection, core: int = 0) -> bool:
        return core >= model.cores - model.xsa_last

    def output(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return remove_own_value(y, v)

    def single(self, attention: Any) -> SinglePart:
        return _Single()


class _Single(SinglePart):
    def output(self, y: Tensor, v: Tensor, read: Tensor | None) -> Tensor:
        direction = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min_(_SMALLEST_NORM)
        return torch.baddbmm(y, y.bmm(direction.transpose(1, 2)), direction, alpha=-1)


def remove_own_value(y: Tensor, v: Tensor) -> Tensor:
    """y minus its projection on the unit vector of v.

    y (B, T, H, W) are the heads' outputs, v (B, T, K, W) the values of the same positions; query heads
    of one group share a value head.
    """
    grouped = y.unflatten(2, (v.size(2), -1))
    if by_hand(y):
        return _RemoveOwnValue.apply(grouped, v.unsqueeze(3)).view_as(y)
    direction = F.normalize(v, dim=-1).unsqueeze(3)
    along = (grouped * direction).sum(dim=-1, keepdim=True)
    return (grouped - along * direction).view_as(y)


class _RemoveOwnValue(torch.autograd.Function):
    """The projection's gradient by hand, with s = <v, v>.

    z = y - c v with c = <y, v> / s; with e = <dz, v> / s:
    dy = dz - e v, dv = 2 c e v - c dz - e y.

    y (B, T, K, G, W), v (B, T, K, 1, W).
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, v: Tensor) -> Tensor:
        inverse = (
            torch.linalg.vector_norm(v, dim=-1, keepdim=True)
            .clamp_min_(_SMALLEST_NORM)
            .square_()
            .reciprocal_()
        )
        share = (y * v).sum(dim=-1, keepdim=True).mul_(inverse)
        ctx.save_for_backward(y, v, inverse, share)
        return torch.addcmul(y, share, v, value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor]:
        y, v, inverse, share = ctx.saved_tensors
        back = (dz * v).sum(dim=-1, keepdim=True).mul_(inverse)
        # Sums over the query heads of a group.
        dv = v * (share * back).sum(dim=3, keepdim=True).mul_(2)
        dv -= (share * dz).addcmul_(back, y).sum(dim=3, keepdim=True)
        return torch.addcmul(dz, back, v, value=-1), dv
