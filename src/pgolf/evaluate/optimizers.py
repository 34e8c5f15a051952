"""SGD and AdamW by the functions behind the classes of ``torch.optim``, equal to the bit.

A class of ``torch.optim`` imports torch's compiler when it is made, which takes longer than a short
evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd


class Optimizer:
    """Steps of some parameters along their gradients, by torch's fused kernels.

    Args:
        parameters: changed in place; one without a gradient stays as it is.
        moments: how many tensors of the state have the shape of a parameter.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], moments: int) -> None:
        self.parameters = list(parameters)
        self.state = [[torch.zeros_like(value) for value in self.parameters] for _ in range(moments)]
        """Lists of tensors, one for each parameter."""

    def step(self, lr: float) -> None:
        """One step with this learning rate."""
        gradients = [value.grad for value in self.parameters]
        learning = [place for place, gradient in enumerate(gradients) if gradient is not None]
        lists: Any = self.parameters, gradients, *self.state
        with torch.no_grad():
            self._step(lr, *([values[place] for place in learning] for values in lists))

    def _step(self, lr: float, *lists: Any) -> None:
        raise NotImplementedError

    def snapshot(self) -> list[list[Tensor]]:
        """A copy of the state, for ``restore``."""
        return copy.deepcopy(self.state)

    def restore(self, snapshot: list[list[Tensor]]) -> None:
        """Go back to a snapshot."""
        self.state = copy.deepcopy(snapshot)


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum."""

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float) -> None:
        super().__init__(parameters, moments=1)
        self.momentum = momentum

    def _step(self, lr: float, *lists: Any) -> None:
        parameters, gradients, sums = lists
        plain: Any = {"weight_decay": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False}
        sgd(parameters, gradients, sums, fused=True, lr=lr, momentum=self.momentum, **plain)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101)."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, moments=2)
        self.state.append([torch.zeros((), device=value.device) for value in self.parameters])  # Steps.
        self.settings: Any = {"weight_decay": weight_decay, "beta1": betas[0], "beta2": betas[1], "eps": eps}

    def _step(self, lr: float, *lists: Any) -> None:
        parameters, gradients, means, squares, steps = lists
        plain: Any = {"amsgrad": False, "maximize": False, "fused": True}
        adamw(parameters, gradients, means, squares, [], steps, lr=lr, **self.settings, **plain)
