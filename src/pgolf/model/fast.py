"""The model's formulas in few passes over memory, with gradients by hand, for float32 on the CPU.

The framework takes each formula apart into its smallest operations, and autograd runs them backwards one by
one; on a CPU every one of them is a pass over memory. The formulas here need about half of the passes and
keep fewer tensors. The values are those of the textbook formulas up to rounding, as long as all of them are
numbers (tests/unit/test_fast.py); those run wherever a compiler fuses the operations itself, and under
autocast. Gradients of gradients are not there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdKeyDictionary

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
    """``scale`` times x (..., D) over the root of its mean square along D (Zhang and Sennrich 2019).

    The result has the format of x. So the stream of a model has that of its embeddings, bf16 on CUDA.
    """
    if by_hand(x):
        return _RmsNorm.apply(x, scale)
    normed = _normed(x)
    return normed if scale == 1.0 else normed * scale


def norm_and_rotate(x: Tensor, cosines: Tensor, sines: Tensor, gain: Tensor | None = None) -> Tensor:
    """RMS-normalise each head, rotate it by its position, multiply by the head's gain.

    Args:
        x: (B, T, H, W).
        cosines: (T, rotated / 2), as ``sines``.
        sines: see ``rotate``.
        gain: (H,), or None for 1.
    """
    if by_hand(x):
        return _NormAndRotate.apply(x, cosines, sines, gain)
    rotated = rotate(_normed(x), cosines, sines)
    return rotated if gain is None else rotated * gain.to(rotated.dtype)[:, None]


def squared_leaky_relu(x: Tensor, slope: float) -> Tensor:
    """leaky_relu(x, slope)^2, elementwise; slope 0 is the squared ReLU."""
    if by_hand(x):
        return _SquaredLeakyRelu.apply(x, slope)
    return F.leaky_relu(x, slope).square()


def scaled_sum(x: Tensor, first: Tensor | None, other: Tensor, second: Tensor) -> Tensor:
    """``first * x + second * other``: streams x and other (..., D), factors (D,); None stands for ones."""
    if by_hand(x):
        return _ScaledSum.apply(x, first, other, second)
    return (x if first is None else first.to(x.dtype) * x) + second.to(x.dtype) * other


def by_hand(x: Tensor) -> bool:
    """Whether these formulas run for an input: float32 on the CPU, nothing else in charge of it."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not (_only_textbook or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
    )


def _normed(x: Tensor) -> Tensor:
    # CUDA's autocast makes it float32 in some versions of torch (2.13) and leaves it alone in others (2.11).
    return F.rms_norm(x, (x.size(-1),)).to(x.dtype)


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
    """y = g R r x with r = 1/rms(x), R the rotation.

    With b = R'dy and e = r <b, x>: dx = g r (b - r e x / W), dg = e.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor, gain: Tensor | None) -> Tensor:
        inverse = _inverse_rms(x)
        factor = inverse if gain is None else inverse * gain[:, None]
        ctx.save_for_backward(x, inverse, factor)
        ctx.tables = (
            cosines,
            sines,
        )  # Not saved like the others: it is these very objects that wide tables hang on.
        return _rotated(x * factor, cosines, sines)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
        x, inverse, factor = ctx.saved_tensors
        cosines, sines = ctx.tables
        back = _rotated(dy, cosines, sines, sign=-1)
        along = (back * x).sum(dim=-1, keepdim=True).mul_(inverse)
        dgain = along.sum(dim=(0, 1, 3)) if ctx.needs_input_grad[3] else None
        return (
            back.mul_(factor).addcmul_(x, along.mul_(inverse).mul_(factor), value=-1 / x.size(-1)),
            None,
            None,
            dgain,
        )


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor, sign: int = 1) -> Tensor:
    """The rotation, or with sign -1 the one that takes it back.

    The halves of a pair lie ``half`` numbers apart, so each product is one of whole sequences, shifted, by a
    table that is zero wherever the shift meets something else. Products of the halves alone would be three
    times slower: they are rows of a few numbers.
    """
    half = cosines.size(-1)
    own, later, earlier = _wide_tables(cosines, sines, x.size(2), x.size(3))
    flat = x.flatten(1)
    y = flat * own
    y[:, :-half].addcmul_(flat[:, half:], later, value=sign)
    y[:, half:].addcmul_(flat[:, :-half], earlier, value=sign)
    return y.view(x.shape)


# All layers share a pass's tables, so the wide ones last as long as they do.
_wide: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _wide_tables(cosines: Tensor, sines: Tensor, heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    known: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = _wide.setdefault(cosines, {})
    if (heads, width) not in known:
        half = cosines.size(-1)
        own = cosines.new_ones(len(cosines), heads, width)
        own[..., : 2 * half] = cosines.repeat(1, 2)[:, None]
        later, earlier = torch.zeros_like(own), torch.zeros_like(own)
        later[..., :half], earlier[..., half : 2 * half] = sines[:, None], -sines[:, None]
        known[heads, width] = own.flatten(), later.flatten()[:-half], earlier.flatten()[half:]
    return known[heads, width]


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
        return torch.addcmul(dy.new_zeros(()), F.leaky_relu(leaky, ctx.slope), dy, value=2), None


class _ScaledSum(torch.autograd.Function):
    """y = a x + b z by channel; da = sum of x dy over the positions, db = sum of z dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor | None, other: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(*((other, second) if first is None else (other, second, x, first)))
        return torch.addcmul(x if first is None else first * x, second, other)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        other, second, *scaled = ctx.saved_tensors
        dx, dfirst = dy, None
        if scaled:
            dx, dfirst = dy * scaled[1], _by_channel(dy, scaled[0]) if ctx.needs_input_grad[1] else None
        dsecond = _by_channel(dy, other) if ctx.needs_input_grad[3] else None
        return dx, dfirst, dy * second, dsecond


def _by_channel(dy: Tensor, x: Tensor) -> Tensor:
    return (dy * x).flatten(0, -2).sum(dim=0)
