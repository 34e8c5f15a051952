"""Optimizers from the routing table."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from pgolf.optim.muon import Muon
from pgolf.optim.routing import Route, route
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.team import SOLO, Team


def build_optimizers(network: nn.Module, recipe: Recipe, team: Team = SOLO) -> list[Optimizer]:
    """Muon for the matrices and AdamW for the rest; each group keeps its unscaled rate as ``base_lr``.

    Muon's work is shared by the team; AdamW's, which is next to none, every rank does for itself.
    """
    optim, routes = recipe.optim, route(network, recipe)
    optimizers: list[Optimizer] = []
    if matrices := _groups(routes, "muon"):
        dtype = torch.bfloat16 if optim.muon_update_dtype == "bfloat16" else torch.float32
        steps, method = optim.newton_schulz_steps, optim.newton_schulz
        rows = optim.muon_row_norm, optim.normuon_beta2
        optimizers.append(Muon(matrices, optim.muon_momentum_start, steps, dtype, team, method, *rows))
    if others := _groups(routes, "adamw"):
        betas = (optim.adam_beta1, optim.adam_beta2)
        optimizers.append(AdamW(others, betas=betas, eps=optim.adam_eps, fused=True))
    return optimizers


def set_schedule(
    optimizers: list[Optimizer], scale: float, momentum: float, muon_decay: float | None = None
) -> None:
    """Scale every group's learning rate and set Muon's momentum and, if it is given, its weight decay."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
            if isinstance(optimizer, Muon):
                group["momentum"] = momentum
                if muon_decay is not None:
                    group["weight_decay"] = muon_decay


def _groups(routes: list[Route], optimizer: str) -> list[dict[str, Any]]:
    by_setting: dict[tuple[float, float], list[nn.Parameter]] = {}
    for entry in routes:
        if entry.optimizer == optimizer:
            by_setting.setdefault((entry.lr, entry.weight_decay), []).append(entry.parameter)
    return [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in by_setting.items()
    ]
