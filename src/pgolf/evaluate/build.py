"""The scorer of each mode of evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgolf.errors import PgolfError
from pgolf.evaluate.lora_scorer import LORA_SCORERS
from pgolf.evaluate.passes import with_batch
from pgolf.evaluate.protocol import Scorer
from pgolf.evaluate.scorer import FrozenScorer, TttScorer
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.team import SOLO, Team

if TYPE_CHECKING:
    from pgolf.memory.memory import Start

MODES = ("standard", "sliding", "ttt")


def uses_memory(recipe: Recipe, mode: str) -> bool:
    """Whether evaluations in this mode have the recipe's memory beside the model."""
    return mode == "ttt" and recipe.memory.enabled


def without_memory(recipe: Recipe) -> Recipe:
    """The recipe with its memory turned off."""
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"enabled": False})})


def build_scorer(
    network: GPT,
    recipe: Recipe,
    mode: str,
    document_start: int | None = None,
    team: Team = SOLO,
    memory: Start | None = None,
) -> Scorer:
    """The scorer of a mode: standard, sliding, or ttt with the recipe's method and its memory.

    Args:
        network: the model on its device; it stays as it is.
        recipe: windows and test-time training.
        mode: one of ``MODES``.
        document_start: the token (BOS) that begins a document, for methods that forget there; None takes the
            stream's first token, which it is in prepared data.
        team: ranks that learn together.
        memory: what the recipe's memory begins with; without it there is none.
    """
    if mode not in MODES:
        raise PgolfError(f"mode {mode}: unknown; use {', '.join(MODES)}")
    if uses_memory(recipe, mode) and memory is not None:
        # Imported here, for its code counts only where there is a memory (``compress.code_size``).
        from pgolf.evaluate.memory_scorer import MemoryScorer

        base = build_scorer(network, without_memory(recipe), mode, document_start, team)
        return MemoryScorer(base, recipe.memory, memory)
    settled = with_batch(recipe, next(network.parameters()).device, team)
    length = recipe.evaluation_length
    stride = length if mode == "standard" else recipe.evaluate.stride
    if mode == "ttt" and recipe.ttt.method != "full":
        return LORA_SCORERS[recipe.ttt.method](network, settled, document_start, team)
    if mode == "ttt":
        return TttScorer(network, settled, team)
    return FrozenScorer(network, length, stride, settled.evaluate.batch, recipe.evaluate.compile)
