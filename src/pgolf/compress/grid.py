"""A frozen grid: steps that the budget solver chose once, to round on in training and to pack with.

Nothing but the codes is open then, and they are the nearest ones. So training knows what packing will store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgolf.compress.budget import is_budgeted, nearest_codes, shift_steps, width_of
from pgolf.compress.stored import Quantized, Stored, dequantize
from pgolf.recipe.sections import CompressSection

# What a grid depends on. The cap is missing: a grid can be just right for another one.
_KEYS = ("scheme", "rounding", "calibration", "calibration_tokens", "damping", "low_rank")
_WIDEST = 8


@dataclass(frozen=True)
class Grid:
    """How each tensor of a state is stored, but for the codes."""

    steps: Mapping[str, Tensor]
    """By matrix: (R,) float16, the step of each row."""
    columns: Mapping[str, Tensor]
    """By matrix: (C,) float16, the factor of each column; matrices without factors are missing."""
    calibration: Mapping[str, Any] | None
    """The text that it was chosen with: source, size, digest."""

    def store(self, name: str, tensor: Tensor) -> Stored:
        """A tensor as an artifact holds it: the nearest codes, or float16."""
        stored = self._store(name, tensor)
        return stored._replace(bits=width_of(stored.codes)) if isinstance(stored, Quantized) else stored

    def round(self, name: str, tensor: Tensor) -> Tensor:
        """The float32 tensor that the stored one stands for, on the device of tensor and grid."""
        return dequantize(self._store(name, tensor))

    def shifted(self, fineness: float) -> Grid:
        """The grid with smaller (below 1) or larger steps: some rows, spread evenly, take another one."""
        if fineness == 1:
            return self
        return replace(self, steps={name: shift_steps(value, fineness) for name, value in self.steps.items()})

    def to(self, device: torch.device) -> Grid:
        """The same grid on a device."""
        steps = {name: value.to(device) for name, value in self.steps.items()}
        columns = {name: value.to(device) for name, value in self.columns.items()}
        return replace(self, steps=steps, columns=columns)

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it beside ``about``, by names that no parameter has.

        As int16, the bits of the float16: who takes a file's floats for weights passes these by.
        """
        named = {f"steps.{name}": value for name, value in self.steps.items()}
        named |= {f"columns.{name}": value for name, value in self.columns.items()}
        return {name: value.cpu().view(torch.int16) for name, value in named.items()}

    def about(self) -> dict[str, Any]:
        """The rest of what a file holds of it, as JSON values."""
        return {"calibration": None if self.calibration is None else dict(self.calibration)}

    def _store(self, name: str, tensor: Tensor) -> Stored:
        if not is_budgeted(name, tensor):
            return tensor.detach().half()
        steps, columns = self.steps[name], self.columns.get(name)
        # The width is not looked for here: it would make the processor wait for the device.
        return Quantized(nearest_codes(tensor.detach().float(), steps, columns), steps, _WIDEST, columns)


def grid_of(stored: Mapping[str, Stored], calibration: Mapping[str, Any] | None) -> Grid:
    """The grid of tensors that the solver stored."""
    matrices = {name: value for name, value in stored.items() if isinstance(value, Quantized)}
    steps = {name: value.scale for name, value in matrices.items()}
    columns = {name: value.columns for name, value in matrices.items() if value.columns is not None}
    return Grid(steps, columns, calibration)


def grid_from(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Grid:
    """The grid of which ``tensors()`` and ``about()`` are given."""
    parts: dict[str, dict[str, Tensor]] = {"steps": {}, "columns": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value.clone().view(torch.float16)
    return Grid(parts["steps"], parts["columns"], about["calibration"])


def leads_to_the_same(first: CompressSection, second: CompressSection) -> bool:
    """Whether grids of two recipes are chosen in the same way, the cap apart."""
    return all(getattr(first, key) == getattr(second, key) for key in _KEYS)
