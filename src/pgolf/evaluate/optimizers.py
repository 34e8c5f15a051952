"""SGD and AdamW by the functions behind the classes of ``torch.optim``, equal to the bit.

A class of ``torch.optim`` imports torch's compiler when it is made, which takes longer than a short
evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd


class Optimizer:
    """Steps of some parameters along their gradients, by torch's fused kernels.

    Args:
        parameters: changed in place; one without a gradient stays as it is.
        rule: torch's function for a step of lists of parameters, gradients and ``state``.
        moments: how many tensors of the state have the shape of a parameter.
        settings: of the rule.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], rule: Callable[..., None], moments: int, **settings: Any
    ) -> None:
        self.parameters, self.rule, self.settings = list(parameters), rule, settings
        self.state: list[list[Tensor]] = [
            [torch.zeros_like(value) for value in self.parameters] for _ in range(moments)
        ]
        """All that steps leave for the next ones: lists with a tensor for each parameter, or empty."""

    def step(self, lr: float) -> None:
        """One step with this learning rate."""
        gradients = [value.grad for value in self.parameters]
        lists: Any = self.parameters, gradients, *self.state
        learning = (
            [value for value, gradient in zip(values, gradients, strict=False) if gradient is not None]
            for values in lists
        )
        with torch.no_grad():
            self.rule(*learning, lr=lr, **self.settings, maximize=False, fused=True)


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum."""

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float) -> None:
        plain: Any = {"weight_decay": 0.0, "dampening": 0.0, "nesterov": False}
        super().__init__(parameters, sgd, 1, momentum=momentum, **plain)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101)."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        settings: Any = {"weight_decay": weight_decay, "beta1": betas[0], "beta2": betas[1], "eps": eps}
        super().__init__(parameters, adamw, 2, **settings, amsgrad=False)
        # The largest squares, which AMSGrad alone keeps; and the steps that each parameter has taken.
        self.state += [[], [torch.zeros((), device=value.device) for value in self.parameters]]
