"""Muon: momentum whose matrix update is orthogonalised (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pgolf.optim.newton_schulz import Method, orthogonalise
from pgolf.runtime.team import SOLO, Team

RowNorm = Literal["none", "before", "after", "normuon"]


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, times sqrt(max(1, rows / columns)), with decoupled weight decay.

    Args:
        groups: dicts with ``params`` (matrices), ``lr`` and ``weight_decay``.
        momentum: of the gradient sum; set ``group["momentum"]`` to schedule it.
        steps: Newton-Schulz iterations.
        method: their polynomials; see ``orthogonalise``.
        update_dtype: format each update is rounded to before it is applied.
        team: ranks with equal weights and gradients, which share the work.
        row_norm: makes the rows of an update, one per output, equally large. "before": each is divided by its
            norm before the orthogonalisation (MuonEq-R, arXiv:2603.28254; #1855). "after": the same after it
            (Muon+, arXiv:2602.21545). "normuon": after it by the root of v <- beta2 v + (1 - beta2) mean of
            the row's squares (NorMuon, arXiv:2510.05491). Both of the latter keep the update's Frobenius
            norm, so rates mean what they mean without; so v needs no correction for its start at 0.
        beta2: of "normuon".

    Matrices of one shape are orthogonalised as one stack: each rank takes its part of it, and while the
    results travel it works on the next stack. Momentum is kept whole on every rank: any number of ranks can
    go on from a checkpoint.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float,
        steps: int,
        update_dtype: torch.dtype,
        team: Team = SOLO,
        method: Method = "quintic",
        row_norm: RowNorm = "none",
        beta2: float = 0.95,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum})
        self.steps, self.method = steps, method
        self.row_norm, self.beta2 = row_norm, beta2
        self.update_dtype = update_dtype
        self.team = team

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply one update to every matrix that has a gradient; closures are not supported."""
        assert closure is None, "Muon evaluates no closures"
        finish: Callable[[], None] | None = None
        for parameters, group in self._stacks():
            updates = self._updates(parameters, group["momentum"])
            if finish is not None:
                finish()
            finish = partial(self._apply, parameters, group, updates)
        if finish is not None:
            finish()

    def _stacks(self) -> Iterator[tuple[list[Tensor], dict[str, Any]]]:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                yield parameters, group

    def _updates(self, parameters: list[Tensor], momentum: float) -> Callable[[], Tensor]:
        """Begin to compute the updates of matrices of one shape; returns what waits for all of them."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self._state(parameter, "momentum", parameter) for parameter in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        each = -(-len(parameters) // self.team.size)
        own = slice(self.team.rank * each, (self.team.rank + 1) * each)
        updates = parameters[0].new_empty((0, *parameters[0].shape), dtype=self.update_dtype)
        if gradients[own]:
            looked_ahead = torch.stack(torch._foreach_add(gradients[own], buffers[own], alpha=momentum))
            if self.row_norm == "before":
                looked_ahead /= looked_ahead.norm(dim=-1, keepdim=True).clamp_min(1e-7)
            updates = self._orthogonalise(looked_ahead)
        if len(updates) < each:
            # Ranks beyond the last matrix send zeros, so that all send the same amount.
            updates = torch.cat((updates, updates.new_zeros((each - len(updates), *updates.shape[1:]))))
        return self.team.collect(updates)

    def _orthogonalise(self, matrices: Tensor) -> Tensor:
        rows, columns = matrices.shape[1:]
        updates = orthogonalise(matrices, self.steps, self.method)
        if rows > columns:
            updates = updates * (rows / columns) ** 0.5
        return updates.to(self.update_dtype).contiguous()

    def _with_even_rows(self, updates: Tensor, parameters: list[Tensor]) -> Tensor:
        # On every rank for all matrices, as the momentum: next to no work, and any rank has the whole state.
        squares = updates.square().mean(dim=-1)
        if self.row_norm == "normuon":
            means = [self._state(parameter, "row_squares", parameter[:, 0]) for parameter in parameters]
            torch._foreach_lerp_(means, list(squares.unbind()), 1 - self.beta2)
            squares = torch.stack(means)
        even = updates / (squares.sqrt()[..., None] + 1e-8)
        return even * (updates.norm(dim=(1, 2)) / even.norm(dim=(1, 2)).clamp_min(1e-30))[:, None, None]

    def _apply(self, parameters: list[Tensor], group: dict[str, Any], updates: Callable[[], Tensor]) -> None:
        lr = group["lr"]
        every = updates()[: len(parameters)].to(parameters[0].dtype)
        if self.row_norm in ("after", "normuon"):
            every = self._with_even_rows(every, parameters)
        torch._foreach_mul_(parameters, 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, list(every.unbind()), alpha=-lr)

    def _state(self, parameter: Tensor, name: str, like: Tensor) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(like)
        return state[name]
