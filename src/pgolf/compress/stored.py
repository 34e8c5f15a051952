"""A tensor as an artifact holds it: integer codes and one step size per row, or a small float format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


class Quantized(NamedTuple):
    """A matrix as codes (rows, columns) int8 times a step per row and, where there is one, a column's factor.

    A ``correction`` of rank k adds the product of two small quantized matrices (k, rows) and (k, columns).
    Those that are read from a file have arrays where others have tensors, until ``as_tensors``.
    """

    codes: Tensor
    scale: Tensor
    """Step sizes (rows,) float16; half of them on a trellis."""
    bits: int
    """Width of the codes, 2 to 8; it bounds them and does not say how many bits they cost."""
    columns: Tensor | None = None
    """Factors (columns,) float16."""
    correction: tuple[Quantized, Quantized] | None = None
    trellis: bool = False
    """Whether the codes of each row are a walk through a trellis (``trellis.py``), which the coder knows."""

    def dequantize(self) -> Tensor:
        """The matrix (rows, columns) float32, the same to the last bit on every machine."""
        weight = self._multiples().float() * self.scale.float()[:, None]
        if self.columns is not None:
            weight = weight * self.columns.float()[None, :]
        if self.correction is not None:
            left, right = (part.dequantize() for part in self.correction)
            # One product after the other: a matrix product would round differently from machine to machine.
            for column, row in zip(left, right, strict=True):
                weight = weight + column[:, None] * row[None, :]
        return weight

    def _multiples(self) -> Tensor:
        if not self.trellis:
            return self.codes
        from pgolf.compress.trellis import multiples  # Compiles a function where that was never done.

        return multiples(self.codes)


Stored: TypeAlias = "Quantized | Tensor"
"""Codes, or a float16 or float32 tensor."""


def as_tensors(held: Any) -> Any:
    """An array, or a ``Quantized`` of arrays, with tensors instead, which share their memory."""
    from torch import from_numpy  # Who only looks at the arrays has no need of it.

    if held is None or isinstance(held, int):  # also a bool
        return held
    if isinstance(held, tuple):
        parts = map(as_tensors, held)
        return Quantized(*parts) if isinstance(held, Quantized) else tuple(parts)
    return from_numpy(held)


def dequantize(stored: Stored) -> Tensor:
    """The float32 tensor that a stored one stands for."""
    return stored.dequantize() if isinstance(stored, Quantized) else stored.float()


def dequantize_state(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The float32 tensors that stored ones stand for."""
    return {name: dequantize(value) for name, value in stored.items()}


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code: [-2^(b-1), 2^(b-1) - 1], but [-127, 127] for 8 bits."""
    return (-127, 127) if bits == 8 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
