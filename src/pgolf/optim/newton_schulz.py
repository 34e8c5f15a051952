"""Orthogonalising matrices by odd quintic polynomials: x -> a x + b x^3 + c x^5 on their singular values."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pgolf.runtime.device import half_format

Method = Literal["quintic", "polar_express"]
Polynomial = tuple[float, float, float]
"""a, b, c of a x + b x^3 + c x^5."""

# Jordan et al. 2024: the same at every step, steep at 0; where it ends singular values lie anywhere from 0.7
# to 1.2.
_QUINTIC: Polynomial = (3.4445, -4.7750, 2.0315)
# Polar Express, with the authors' choices. Singular values are taken to be at least this fraction of the
# matrix' norm;
_SMALLEST = 1e-3
# no polynomial is made for an interval narrower than from this fraction of its upper end on;
_CUSHION = 0.02407327424182761
# and what rounding may add to a singular value stays inside of the interval.
_SAFETY = 1.01


def orthogonalise(matrices: Tensor, steps: int, method: Method = "quintic") -> Tensor:
    """Push the singular values of each matrix towards 1.

    Args:
        matrices: a stack (N, rows, columns); computed in bfloat16 on GPUs that have it, float32 elsewhere.
        steps: polynomials applied after each other.
        method: "quintic" (Jordan et al. 2024) or "polar_express" (Amsel et al. 2025).

    Returns:
        The stack (N, rows, columns) in the type it was computed in.
    """
    x = matrices.to(torch.bfloat16 if half_format(matrices.device) == torch.bfloat16 else torch.float32)
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / (norm + 1e-7 if method == "quintic" else _SAFETY * norm + 1e-7)
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    polynomials = [_QUINTIC] * steps if method == "quintic" else polar_express(steps)
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@lru_cache
def polar_express(steps: int) -> list[Polynomial]:
    """The polynomials of Polar Express (Amsel, Persson, Musco and Gower 2025, arXiv:2505.16932).

    Each is the one closest to 1 on the interval that the ones before it leave singular values of [0.001, 1]
    in, so early ones are steep and late ones accurate.
    """
    low, high = _SMALLEST, 1.0
    found: list[Polynomial] = []
    for _ in range(steps):
        # Made for a wider interval than there is, a polynomial stays tame in low precision; then it is
        # centred on 1.
        made = _closest_to_one(max(low, _CUSHION * high), high)
        centre = (_value(made, low) + _value(made, high)) / 2
        a, b, c = (coefficient / centre for coefficient in made)
        low = _value((a, b, c), low)
        high = 2 - low
        found.append((a, b, c))
    safe = [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in found[:-1]]
    return [*safe, *found[-1:]]


def _closest_to_one(low: float, high: float) -> Polynomial:
    """The a x + b x^3 + c x^5 whose largest distance from 1 on [low, high] is smallest (Remez exchange)."""
    if low / high > 1 - 1e-5:
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5  # the limit; the equations would be singular
    # The best one misses 1 by the same distance, up and down in turns, at the ends and at its two turning
    # points.
    points = [low, (3 * low + high) / 4, (low + 3 * high) / 4, high]
    for _ in range(100):
        equations = [[x, x**3, x**5, sign] for x, sign in zip(points, (1, -1, 1, -1), strict=True)]
        a, b, c, _ = map(float, np.linalg.solve(equations, np.ones(4)))
        root = np.sqrt(9 * b * b - 20 * a * c)
        turning = [float(np.sqrt((-3 * b + sign * root) / (10 * c))) for sign in (-1, 1)]
        if np.allclose(points[1:3], turning, rtol=1e-12, atol=0):
            break
        points[1:3] = turning
    return a, b, c


def _value(polynomial: Polynomial, x: float) -> float:
    a, b, c = polynomial
    return a * x + b * x**3 + c * x**5
