"""Averages of the weights over the steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.recipe.sections import AverageSection

State = dict[str, Tensor]


def ema_decay(average: AverageSection, steps: int) -> float:
    """The weight of the past at each step of an EMA: 1 - 1 / (window * steps) where there is a window."""
    return max(0.0, 1 - 1 / (average.window * steps)) if average.window * steps else average.decay


class Averager:
    """Keeps the average of the weights that a recipe asks for; all sums are float32.

    EMA (Polyak averaging with forgetting) follows every step; SWA (Izmailov et al. 2018) is the plain
    mean of snapshots taken every ``every`` steps once the learning-rate scale is below ``start_scale``.
    ``steps``, those of the training, are what ``window`` is a part of.
    """

    def __init__(self, average: AverageSection, weights: Mapping[str, Tensor], steps: int) -> None:
        self.section, self.decay = average, ema_decay(average, steps)
        self.ema = _copy(weights) if average.kind in ("ema", "swa_of_ema") else None
        self.sum: State | None = None
        self.count = 0

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int, scale: float) -> None:
        """Take in the weights after ``step`` steps, the last of which had learning-rate scale ``scale``."""
        if self.ema is not None:
            # A float32 weight is read where it is; only others are copied.
            current = [weights[name].detach().float() for name in self.ema]
            torch._foreach_lerp_(list(self.ema.values()), current, 1.0 - self.decay)
        if self.section.kind in ("swa", "swa_of_ema") and self._is_snapshot(step, scale):
            source = weights if self.ema is None else self.ema
            if self.sum is None:
                self.sum = _copy(source)
            else:
                torch._foreach_add_(
                    list(self.sum.values()), [source[name].detach().float() for name in self.sum]
                )
            self.count += 1

    def result(self, weights: Mapping[str, Tensor]) -> State:
        """The averaged weights, float32; ``weights`` themselves where nothing was averaged.

        A single SWA snapshot is no average: as in the references it is ignored.
        """
        if self.sum is not None and self.count > 1:
            return {name: total / self.count for name, total in self.sum.items()}
        if self.ema is not None:
            return _copy(self.ema)
        return _copy(weights)

    def state(self) -> State:
        """Everything needed to continue, as named tensors."""
        named = {f"ema.{name}": value for name, value in (self.ema or {}).items()}
        named |= {f"sum.{name}": value for name, value in (self.sum or {}).items()}
        return named | {"count": torch.tensor(self.count)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` returned."""
        self.count = int(state["count"])
        ema = {name[4:]: value.clone() for name, value in state.items() if name.startswith("ema.")}
        total = {name[4:]: value.clone() for name, value in state.items() if name.startswith("sum.")}
        self.ema, self.sum = ema or None, total or None

    def _is_snapshot(self, step: int, scale: float) -> bool:
        return scale < self.section.start_scale and step % self.section.every == 0


def _copy(weights: Mapping[str, Tensor]) -> State:
    return {name: value.detach().float().clone() for name, value in weights.items()}
