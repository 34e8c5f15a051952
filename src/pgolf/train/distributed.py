"""What the ranks of a training run tell each other: when to stop, and the grid to round on."""

from __future__ import annotations

import json
from collections.abc import Callable

import safetensors.torch

from pgolf.compress.grid import Grid, grid_from
from pgolf.runtime.team import Team


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
