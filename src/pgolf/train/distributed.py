"""What the ranks of a training run tell each other: gradients, when to stop, the grid to round on."""

from __future__ import annotations

import json
from collections.abc import Callable

import safetensors.torch
from torch import Tensor, nn

from pgolf.compress.grid import Grid, grid_from
from pgolf.runtime.team import Team


def share_gradients(team: Team, network: nn.Module, loss: Tensor) -> None:
    """Add up the ranks' gradients and their losses (a scalar), in place, once per step.

    Where every rank has divided by the parts of the whole step, the sums are means over the step.
    """
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    team.add_up([*gradients, loss])


def agree(team: Team, seconds: float, stop: bool) -> tuple[float, bool]:
    """The first rank's clock (s), and whether any rank was asked to stop.

    Signals reach the ranks at different moments, and clocks differ; what depends on them must not.
    """
    seconds, stops = team.totals([seconds if team.is_first else 0.0, float(stop)])
    return seconds, stops > 0


def shared_grid(team: Team, choose: Callable[[], Grid]) -> Grid:
    """The grid that the first rank chooses, on every rank.

    Raises:
        PgolfError: there is none.
    """
    grid = team.first(choose)
    if team.size == 1 and grid is not None:
        return grid
    sent = None if grid is None else safetensors.torch.save(grid.tensors())
    about = None if grid is None else json.dumps(grid.about()).encode()
    tensors = safetensors.torch.load(team.bytes_of_first(sent))
    return grid_from(tensors, json.loads(team.bytes_of_first(about)))
