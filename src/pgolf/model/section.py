"""The model's section of a recipe, and the list of its features."""

from __future__ import annotations

from typing import TypeVar

import pydantic
from torch import nn

from pgolf.model.features.asymmetric_cap import AsymmetricCap, AsymmetricCapKeys
from pgolf.model.features.bigram import Bigram, BigramKeys
from pgolf.model.features.dense import Dense, DenseKeys
from pgolf.model.features.exclusive import Exclusive, ExclusiveKeys
from pgolf.model.features.gated_attention import GatedAttention, GatedAttentionKeys
from pgolf.model.features.lanes import Lanes, LanesKeys
from pgolf.model.features.loop import Loop
from pgolf.model.features.refiner import FlowRefiner, RefinerKeys
from pgolf.model.features.skips import SkipKeys, Skips
from pgolf.model.features.smear import Smear, SmearKeys
from pgolf.model.features.value_embedding import ValueEmbedding, ValueEmbeddingKeys
from pgolf.model.features.value_residual import ValueResidual, ValueResidualKeys
from pgolf.model.features.window_gate import WindowGate, WindowGateKeys
from pgolf.model.features.window_smear import WindowSmear, WindowSmearKeys
from pgolf.model.linear import FakeQuant
from pgolf.model.slots import Part

Slot = TypeVar("Slot", bound=Part)

# A new feature is named here, with its module and with its keys. Those of one slot act in this order.
FEATURES: tuple[type[Part], ...] = (
    *(Bigram, WindowSmear, Smear, ValueEmbedding),
    *(ValueResidual, Exclusive, GatedAttention, WindowGate),
    *(Loop, Skips, Dense, Lanes, FlowRefiner, AsymmetricCap),
)


class ModelSection(  # pydantic lists the keys of the last base first.
    WindowGateKeys,
    AsymmetricCapKeys,
    RefinerKeys,
    LanesKeys,
    DenseKeys,
    SkipKeys,
    GatedAttentionKeys,
    ValueResidualKeys,
    ValueEmbeddingKeys,
    BigramKeys,
    WindowSmearKeys,
    SmearKeys,
    ExclusiveKeys,
):
    """The architecture."""

    qk_gain: float = pydantic.Field(1.5, gt=0)
    """Initial value of the per-head gain on the normalised queries."""
    softcap: float = pydantic.Field(30.0, gt=0)
    """Logits are softcap * tanh(z / softcap)."""
    document_mask: bool = False
    """A document (BOS begins one) sees nothing of those before it, in training and in every evaluation."""
    embedding_init_std: float = pydantic.Field(0.005, gt=0)
    """Standard deviation of the initial token embedding."""


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
