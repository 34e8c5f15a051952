"""The features, and how a model gets those that it asks for."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from pgolf.model.features.asymmetric_cap import AsymmetricCap
from pgolf.model.features.bigram import Bigram
from pgolf.model.features.dense import Dense
from pgolf.model.features.exclusive import Exclusive
from pgolf.model.features.gated_attention import GatedAttention
from pgolf.model.features.lanes import Lanes
from pgolf.model.features.loop import Loop
from pgolf.model.features.refiner import FlowRefiner
from pgolf.model.features.skips import Skips
from pgolf.model.features.smear import Smear
from pgolf.model.features.value_embedding import ValueEmbedding
from pgolf.model.features.value_residual import ValueResidual
from pgolf.model.features.window_gate import WindowGate
from pgolf.model.features.window_smear import WindowSmear
from pgolf.model.linear import FakeQuant
from pgolf.model.section import ModelSection
from pgolf.model.slots import Part

Slot = TypeVar("Slot", bound=Part)

# Those of one slot act in this order.
FEATURES: tuple[type[Part], ...] = (
    *(Bigram, WindowSmear, Smear, ValueEmbedding),
    *(ValueResidual, Exclusive, GatedAttention, WindowGate),
    *(Loop, Skips, Dense, Lanes, FlowRefiner, AsymmetricCap),
)


def build_parts(
    slot: type[Slot], owner: nn.Module, model: ModelSection, fake_quant: FakeQuant, core: int = 0
) -> tuple[Slot, ...]:
    """Make the features of a slot that a model asks for, and hang them on what they belong to.

    Args:
        slot: one of the classes of ``slots.py``.
        owner: the model, or an attention.
        model: what is asked for.
        fake_quant: the model's switch.
        core: which one the attention is of.
    """
    wanted = [part for part in FEATURES if issubclass(part, slot) and part.wanted(model, core)]
    parts = tuple(part(model, fake_quant) for part in wanted)
    for part in parts:
        part.attach(owner)
    return parts
