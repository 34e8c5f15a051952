"""Models that are only looked at, and models that get their weights from elsewhere: none is initialised for
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pgolf.model.gpt import GPT
from pgolf.model.section import ModelSection


def parameter_shapes(model: ModelSection) -> dict[str, torch.Size]:
    """The shapes of a model's parameters by name; nothing is allocated, however large they are."""
    return {name: parameter.shape for name, parameter in shape_of(model).named_parameters()}


def model_from(model: ModelSection, state: Mapping[str, Tensor]) -> GPT:
    """A model on the CPU with copies of given weights, as float32.

    Args:
        model: the architecture.
        state: a tensor for every name in ``parameter_shapes``, of that shape.
    """
    network = shape_of(model)
    copies = {
        name: value.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    network.load_state_dict(copies, assign=True)
    network.scale_shared_gradients()  # The hooks were on the parameters without values.
    return network


def shape_of(model: ModelSection) -> GPT:
    """A model without values, on the meta device: nothing is allocated, however large it is."""
    with torch.device("meta"), _SkipInitialisers():
        return GPT(model)


class _SkipInitialisers(TorchFunctionMode):
    """Passes by torch's initialisers: on the meta device they do nothing, and import the compiler for it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))
