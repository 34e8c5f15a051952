"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split, on part of each head."""

from __future__ import annotations

import torch
from torch import Tensor

from pgolf.model.shape import Shape


def rotary_tables(
    model: Shape, count: int, device: torch.device, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the first ``count`` positions of a window of ``length``, each (count, rotated / 2)
    float32.

    Windows longer than ``model.rope_train_length`` get a larger base, so that the slowest rotation stretches
    over the new length (NTK-aware scaling). A window that the end of the stream cuts short must be treated as
    a whole one: otherwise how it ends would change what its first positions predict.
    """
    length = length or count
    rotated = model.rope_dims or model.head_width
    base = model.rope_base
    if model.rope_train_length and length > model.rope_train_length:
        base *= (length / model.rope_train_length) ** (rotated / (rotated - 2))
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
    angles = torch.outer(torch.arange(count, dtype=torch.float32, device=device), 1.0 / base**exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate the first dimensions of each head: x (B, T, H, head width) with tables (T, rotated / 2)."""
    half = cosines.size(-1)
    cosines, sines = cosines[:, None, :].to(x.dtype), sines[:, None, :].to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat(
        (first * cosines + second * sines, second * cosines - first * sines, rest),
        dim=-1,
    )
