"""How windows are read: how many of them in one pass, and by compiled code where that pays."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pgolf.model.gpt import GPT
from pgolf.model.section import ModelSection
from pgolf.model.shape import schedule
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.device import compiled, free_memory, pays_to_compile
from pgolf.runtime.team import SOLO, Team

Reading = Callable[[GPT, Tensor, int | None, int], Tensor]
"""``GPT.hidden`` with all of its arguments, or something that does the same."""

# More positions in a pass gain nothing: a CPU's caches are full, a GPU's processors busy.
_MOST_POSITIONS = {"cpu": 8192, "mps": 8192, "cuda": 131072}


def with_batch(recipe: Recipe, device: torch.device, team: Team = SOLO) -> Recipe:
    """The recipe with a number of windows per pass: its own, or for 0 the one that suits this device.

    Ledger entries are a pass each, so the number belongs to the settings that a ledger's header records. All
    ranks of a team get the smallest of theirs, and one process the same number at every call.
    """
    if recipe.evaluate.batch:
        return recipe
    fits = _batch_here(recipe.model, recipe.evaluation_length, device)
    settings = recipe.evaluate.model_copy(update={"batch": min(team.gather(fits))})
    return recipe.model_copy(update={"evaluate": settings})


def fitting_batch(model: ModelSection, length: int, free: int, device_type: str = "cuda") -> int:
    """How many windows to read in one pass: a power of two, at least 1.

    Half of the free memory may be used. Per position a pass holds at most, in float32, the kept early layers'
    outputs and eight streams of the model's width, three of the MLP's, and three rows of logits where it is
    scored.

    Args:
        model: the architecture.
        length: inputs per window.
        free: bytes of memory.
        device_type: bounds the positions of a pass: 8,192 on "cpu" and "mps", 131,072 on "cuda".
    """
    widths = model.width * (len(schedule(model)) // 2 + 8) + 3 * model.mlp_hidden + 3 * model.vocab_size
    positions = min(free // 2 // (4 * widths), _MOST_POSITIONS[device_type])
    windows: int = max(positions // length, 1)
    return 1 << (windows.bit_length() - 1)


@functools.cache
def _batch_here(model: ModelSection, length: int, device: torch.device) -> int:
    # Where the system does not tell, there is enough for a CPU's small passes.
    return fitting_batch(model, length, free_memory(device) or 1 << 32, device.type)


def compiled_reading(
    batch: int, length: int, stride: int, device: torch.device, positions: int, how: bool | str = True
) -> Reading | None:
    """The pass over ``batch`` whole windows that score ``stride`` targets each, compiled; None where it does
    not pay.

    Groups of any other shape, such as a stream's first and last, are read as without it: so there is one
    graph, and weights that change in place between two passes do not ask for another.

    Args:
        batch: windows per pass.
        length: inputs per window.
        stride: targets scored per window.
        device: where the model is.
        positions: inputs of all windows of the stream together.
        how: True, or the name of a mode of torch's compiler.
    """
    if not pays_to_compile(device, positions):
        return None
    fast = compiled(GPT.hidden, device, how)

    def read(network: GPT, tokens: Tensor, window: int | None, last: int) -> Tensor:
        usual = tokens.shape == (batch, length) and last == stride
        return (fast if usual else GPT.hidden)(network, tokens, window, last)

    return read
