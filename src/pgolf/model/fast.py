"""Three formulas of the model with their gradients by hand, for training in float32 on the CPU.

Autograd takes each formula apart into its smallest operations and runs them backwards one by one; on a CPU every one
of them is a pass over memory. The gradients here need about half of the passes and keep fewer tensors. The values are
those of the textbook formulas up to rounding (tests/unit/test_fast.py). Wherever a compiler fuses the operations
itself, under autocast, and without gradients, the textbook formulas run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pgolf.model.rope import rotate

# What F.rms_norm adds to the mean square.
_EPSILON = torch.finfo(torch.float32).eps
_only_textbook = False


@contextlib.contextmanager
def textbook() -> Iterator[None]:
    """Within it everything runs by the textbook formulas: what the others are compared with."""
    global _only_textbook
    before, _only_textbook = _only_textbook, True
    try:
        yield
    finally:
        _only_textbook = before


def rms_norm(x: Tensor, scale: float = 1.0) -> Tensor:
    """``scale`` times x (..., D) over the root of its mean square along D (Zhang and Sennrich 2019)."""
    if _by_hand(x):
        return _RmsNorm.apply(x, scale)
    normed = F.rms_norm(x, (x.size(-1),))
    return normed if scale == 1.0 else normed * scale


def norm_and_rotate(x: Tensor, cosines: Tensor, sines: Tensor, gain: Tensor | None = None) -> Tensor:
    """RMS-normalise each head, rotate it by its position, multiply by the head's gain.

    Args:
        x: (B, T, H, W).
        cosines: (T, rotated / 2), as ``sines``.
        sines: see ``rotate``.
        gain: (H,), or None for 1.
    """
    if _by_hand(x):
        return _NormAndRotate.apply(x, cosines, sines, gain)
    rotated = rotate(F.rms_norm(x, (x.size(-1),)), cosines, sines)
    return rotated if gain is None else rotated * gain.to(rotated.dtype)[:, None]


def squared_leaky_relu(x: Tensor, slope: float) -> Tensor:
    """leaky_relu(x, slope)^2, elementwise; slope 0 is the squared ReLU."""
    if _by_hand(x):
        return _SquaredLeakyRelu.apply(x, slope)
    return F.leaky_relu(x, slope).square()


def _by_hand(x: Tensor) -> bool:
    return (
        x.requires_grad
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and not (_only_textbook or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
    )


def _inverse_rms(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.size(-1)).add_(_EPSILON).rsqrt_()


class _RmsNorm(torch.autograd.Function):
    """y = s r x with r = 1/rms(x); dx = s r (dy - y <y, dy> / (D s^2))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        inverse = _inverse_rms(x).mul_(scale)
        y = x * inverse
        # The output rather than the input: the product that follows keeps it anyway.
        ctx.save_for_backward(y, inverse)
        ctx.share = -1 / (x.size(-1) * scale**2)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        along = (y * dy).sum(dim=-1, keepdim=True)
        return torch.addcmul(dy, y, along, value=ctx.share).mul_(inverse), None


class _NormAndRotate(torch.autograd.Function):
    """y = g R r x with r = 1/rms(x), R the rotation; dx = g r R'dy - r^2 x <y, dy> / W, dg = <y, dy> / g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor, gain: Tensor | None) -> Tensor:
        inverse = _inverse_rms(x)
        cosines, sines = cosines[:, None, :], sines[:, None, :]
        factor = inverse if gain is None else inverse * gain[:, None]
        y = _rotate_in_place(x * factor, cosines, sines)
        ctx.save_for_backward(x, y, inverse, cosines, sines, *([] if gain is None else [gain]))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
        x, y, inverse, cosines, sines, *gains = ctx.saved_tensors
        along = (y * dy).sum(dim=-1, keepdim=True)
        dgain = along.sum(dim=(0, 1, 3)) / gains[0] if gains else None
        dx = _rotate_in_place(dy * (inverse * gains[0][:, None] if gains else inverse), cosines, -sines)
        return dx.addcmul_(x, along.mul_(inverse.square()), value=-1 / x.size(-1)), None, None, dgain


def _rotate_in_place(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = cosines.size(-1)
    first, second = x[..., :half], x[..., half : 2 * half]
    before = first.clone()
    first.mul_(cosines).addcmul_(second, sines)
    second.mul_(cosines).addcmul_(before, sines, value=-1)
    return x


class _SquaredLeakyRelu(torch.autograd.Function):
    """y = a^2 with a = leaky(x); dx = 2 leaky(a) dy, for a has the sign of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        leaky = F.leaky_relu(x, slope)
        ctx.save_for_backward(leaky)
        ctx.slope = slope
        return leaky.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (leaky,) = ctx.saved_tensors
        return F.leaky_relu(leaky, ctx.slope).mul_(dy).mul_(2), None
