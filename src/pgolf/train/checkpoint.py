"""Checkpoints: the whole state of a training run in one file, written atomically."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pgolf.compress.grid import Grid
from pgolf.compress.weights import (
    CHECKPOINT_FORMAT,
    grid_entries,
    load_tensors,
    save_tensors,
    sound,
    take_grid,
)
from pgolf.data.dataset import Dataset
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.optim.averaging import Averager
from pgolf.recipe.recipe import Recipe, recipe_from_tree
from pgolf.runtime.run_files import SNAPSHOTS


def snapshot(folder: Path, step: int) -> Path:
    """Where a run folder keeps the checkpoint after ``step`` steps, if it was asked to."""
    return folder / SNAPSHOTS / f"step-{step:06d}.safetensors"


@dataclass
class Clock:
    """Where a run stands."""

    step: int = 0
    """Finished steps."""
    seconds: float = 0.0
    """Training time so far, validation and checkpoints left out."""
    fake_quant_from: int = -1
    """First step with fake quantization; -1 while it has not been reached."""
    length: int = 0
    """Targets per sequence of the last step; 0 before the first one."""
    length_from: int = 0
    """Step in which that became so; 0 where it never changed."""
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the loss scale as of the last checkpoint; empty where the loss is not scaled."""


def save_checkpoint(
    path: Path,
    network: GPT,
    optimizers: list[Optimizer],
    averager: Averager,
    clock: Clock,
    recipe: Recipe,
    dataset: Dataset,
    grid: Grid | None = None,
) -> None:
    """Write everything that a resumed run needs to end with the same weights."""
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in averager.state().items()}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                tensors[f"optimizer.{names[id(parameter)]}.{key}"] = value
    metadata = {
        "format": CHECKPOINT_FORMAT,
        "clock": vars(clock),
        "recipe": recipe.model_dump(mode="json"),
        "tokenizer": dataset.tokenizer.digest,
        "data": dataset.fingerprint(),
    }
    extra, about = grid_entries(grid)
    save_tensors(path, tensors | extra, metadata | about)


def load_checkpoint(
    path: Path,
    network: GPT,
    optimizers: list[Optimizer],
    averager: Averager,
    recipe: Recipe,
    dataset: Dataset,
) -> tuple[Clock, Grid | None]:
    """Put a checkpoint's state into the given objects, in place.

    Returns:
        Where the run stands, and the grid it rounds on if one is frozen.

    Raises:
        PgolfError: the file is damaged, or belongs to another recipe or other data.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != CHECKPOINT_FORMAT:
        raise PgolfError(f"{path}: not a training checkpoint")
    with sound(path):
        if recipe_from_tree(metadata["recipe"], str(path)) != recipe:
            remedy = "resume with the run's own, or start a new --out"
            raise PgolfError(f"{path}: was written with another recipe; {remedy}")
        if metadata["data"] != dataset.fingerprint():
            raise PgolfError(f"{path}: was trained on other data; give the same --data, or start a new --out")
        network.load_state_dict(_part(tensors, "model."))
        device = next(network.parameters()).device
        averager.load({name: tensor.to(device) for name, tensor in _part(tensors, "average.").items()})
        _load_optimizers(_part(tensors, "optimizer."), network, optimizers)
        return Clock(**metadata["clock"]), take_grid(tensors, metadata)


def set_aside(network: nn.Module, optimizers: Sequence[Optimizer]) -> Callable[[], None]:
    """Copy weights and optimizer state; what is returned puts them back, bit for bit.

    The copies are on the CPU: training may fill the memory of its device.
    """
    weights = {name: value.to("cpu", copy=True) for name, value in network.state_dict().items()}
    states = [
        (optimizer, parameter, key, value.to("cpu", copy=True))
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    ]

    def put_back() -> None:
        network.load_state_dict(weights)
        for optimizer in optimizers:
            optimizer.state.clear()
        for optimizer, parameter, key, value in states:
            optimizer.state[parameter][key] = value.to(parameter.device)

    return put_back


def _load_optimizers(state: dict[str, Tensor], network: GPT, optimizers: list[Optimizer]) -> None:
    owners = {
        id(parameter): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, tensor in state.items():
        parameter_name, _, key = name.rpartition(".")
        parameter = network.get_parameter(parameter_name)
        owners[id(parameter)].state[parameter][key] = tensor.to(parameter.device)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: torch.clone(t) for name, t in tensors.items() if name.startswith(prefix)}
