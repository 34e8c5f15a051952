"""Cross-entropy of soft-capped logits, as one kernel each way.

The forward kernel reads the output layer's products z once and keeps two numbers a row; the backward kernel
reads them once more and writes their gradient. Nothing else of size rows x V is made: no logits, no
probabilities, no float32. Everything is computed in float32, blocks of columns at a time, whatever the format
of z.

With y = c * tanh(z / c), L = log sum_j exp(y_j) and target t, a row costs L - y_t, and its gradient is
dz_j = g * (exp(y_j - L) - [j = t]) * (1 - tanh(z_j / c)^2) for an upstream gradient g of that row.
The sum over columns is a running one, rescaled when a larger logit comes (Milakov and Gimelshein 2018,
arXiv:1805.02867).

This module needs Triton; import it only where ``has_triton`` says so. Under ``TRITON_INTERPRET=1`` (set
before the import) the kernels run on the CPU, which the tests use.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns that a block takes at a time, and its warps.
_LARGEST_BLOCK, _WARPS = 4096, 4


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _forward_kernel(z, targets, losses, normalisers, columns, stride, cap, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    z += row * stride
    largest = -float("inf")
    total = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        y = cap * _tanh(tl.load(z + column, mask=inside, other=0.0).to(tl.float32) / cap)
        y = tl.where(inside, y, -float("inf"))
        larger = tl.maximum(largest, tl.max(y, axis=0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(y - larger), axis=0)
        largest = larger
    normaliser = largest + tl.log(total)
    target = tl.load(targets + row)
    # Nothing outside the row may be read; a target that is no column costs NaN, which training reports.
    known = (target >= 0) & (target < columns)
    z_target = tl.load(z + target, mask=known, other=float("nan")).to(tl.float32)
    tl.store(normalisers + row, normaliser)
    tl.store(losses + row, normaliser - cap * _tanh(z_target / cap))


@triton.jit
def _backward_kernel(z, targets, normalisers, upstream, dz, columns, stride, cap, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    t = _tanh(tl.load(z + row * stride + column, mask=inside, other=0.0).to(tl.float32) / cap)
    target = tl.load(targets + row)
    probability = tl.exp(cap * t - tl.load(normalisers + row))
    slope = tl.load(upstream + row) * (1.0 - t * t)
    gradient = slope * (probability - tl.where(column == target, 1.0, 0.0))
    tl.store(dz + row * columns + column, gradient.to(dz.dtype.element_ty), mask=inside)


@torch.library.custom_op(
    "pgolf::softcap_cross_entropy",
    mutates_args=(),
    schema="(Tensor z, Tensor targets, float softcap) -> (Tensor, Tensor)",
)
def _forward(z: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    rows, columns = z.shape
    losses = z.new_empty(rows, dtype=torch.float32)
    normalisers = torch.empty_like(losses)
    if rows:
        _forward_kernel[(rows,)](
            *(z, targets, losses, normalisers, columns, z.stride(0), softcap),
            BLOCK=_block(columns),
            num_warps=_WARPS,
        )
    return losses, normalisers


@_forward.register_fake
def _(z: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    losses = z.new_empty(z.size(0), dtype=torch.float32)
    return losses, torch.empty_like(losses)


@torch.library.custom_op(
    "pgolf::softcap_cross_entropy_backward",
    mutates_args=(),
    schema="(Tensor z, Tensor targets, Tensor normalisers, Tensor upstream, float softcap) -> Tensor",
)
def _backward(z: Tensor, targets: Tensor, normalisers: Tensor, upstream: Tensor, softcap: float) -> Tensor:
    rows, columns = z.shape
    dz = torch.empty((rows, columns), dtype=z.dtype, device=z.device)
    if rows:
        block = _block(columns)
        grid = (rows, triton.cdiv(columns, block))
        _backward_kernel[grid](
            z,
            targets,
            normalisers,
            upstream,
            dz,
            columns,
            z.stride(0),
            softcap,
            BLOCK=block,
            num_warps=_WARPS,
        )
    return dz


@_backward.register_fake
def _(z: Tensor, targets: Tensor, normalisers: Tensor, upstream: Tensor, softcap: float) -> Tensor:
    return z.new_empty(z.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    z, targets, ctx.softcap = inputs
    ctx.save_for_backward(z, targets, output[1])


def _gradients(ctx: Any, upstream: Tensor, _normalisers: Tensor | None) -> tuple[Tensor, None, None]:
    # An expanded gradient, as that of a sum, has stride 0.
    return _backward(*ctx.saved_tensors, upstream.contiguous(), ctx.softcap), None, None


_forward.register_autograd(_gradients, setup_context=_keep)


def softcap_cross_entropy(z: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Loss of each row's target, in nats; opaque to ``torch.compile``, which keeps it in its graph.

    Args:
        z: products of the output layer before the cap (N, V), of any floating format up to float32, on a CUDA
            device.
        targets: (N,) int64; one outside 0 to V - 1 costs NaN.
        softcap: the cap c.

    Returns:
        Losses (N,) float32, differentiable once in z.
    """
    z = z if z.stride(1) == 1 else z.contiguous()
    losses: Tensor = _forward(z, targets.contiguous(), softcap)[0]
    return losses


def _block(columns: int) -> int:
    return min(triton.next_power_of_2(columns), _LARGEST_BLOCK)
