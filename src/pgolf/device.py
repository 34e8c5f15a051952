"""Where and in which number format the model runs: bf16 autocast on CUDA, float32 on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.optim.routing import groups_of
from pgolf.recipe import Recipe

# Read in some minutes by a model of 27 million parameters on one data-centre GPU.
_MANY_POSITIONS = 100_000_000


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or CUDA where there is one, else the CPU.

    Raises:
        PgolfError: the name is unknown or the device is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PgolfError(f"--device {name}: unknown; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise PgolfError(f"--device {name}: not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PgolfError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in bfloat16 on CUDA; nothing on the CPU, where everything is float32."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def place(network: GPT, recipe: Recipe, device: torch.device) -> GPT:
    """Move the model to its device, in place, in the formats the references use there.

    On CUDA the embedding tables and the refiner's matrices are stored in bfloat16; matrices that Muon
    updates and all vectors stay float32.
    """
    network.to(device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        for name, parameter in network.named_parameters():
            group = groups_of(name)[0]
            is_table = group == "embedding" or (
                group == "bigram_table" and recipe.optim.bigram_table_group == "embedding"
            )
            if is_table or (name.startswith("refiner.") and parameter.ndim == 2):
                parameter.data = parameter.data.bfloat16()
    return network


def compiled(forward: Callable[..., torch.Tensor], device: torch.device, enabled: bool) -> Callable[..., torch.Tensor]:
    """A model or a function of one, compiled on CUDA if ``enabled``, as it is elsewhere."""
    if device.type == "cuda" and enabled:
        return torch.compile(forward, dynamic=False)
    return forward


def pays_to_compile(device: torch.device, positions: int) -> bool:
    """Whether reading so many positions takes so long that compiling, about a minute, is worth it: on CUDA, minutes."""
    return device.type == "cuda" and positions >= _MANY_POSITIONS
