"""The score of saved weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pgolf.compress.weights import Weights
from pgolf.data.dataset import Dataset
from pgolf.data.tokenizer import Tokenizer
from pgolf.evaluate.build import uses_memory
from pgolf.evaluate.evaluate import EvalResult, evaluate
from pgolf.optim.place import place
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.files import sha256_file
from pgolf.runtime.team import SOLO, Team

if TYPE_CHECKING:
    from pgolf.memory.memory import Start


def score_weights(
    weights: Weights,
    recipe: Recipe,
    dataset: Dataset,
    mode: str,
    device: torch.device,
    progress: Callable[[int, int], None],
    *,
    limit_targets: int | None = None,
    strict: bool = False,
    team: Team = SOLO,
) -> EvalResult:
    """Score weights on (the first targets of) a dataset's validation split; see ``evaluate``.

    The ledger's header names the file, the tokenizer and what a memory begins with by their digests.

    Raises:
        PgolfError: the dataset was made with another tokenizer than the weights.
    """
    weights.check_data(dataset)
    text = dataset.validation_text(recipe.evaluation_length, limit_targets)
    network = place(weights.model(), recipe, device)
    known = {"tokenizer": dataset.tokenizer.digest, "artifact": sha256_file(weights.source)}
    memory = memory_for(weights, recipe, mode, dataset.tokenizer)
    if memory is not None:
        known["memory"] = hashlib.sha256(weights.memory).hexdigest()
    team.meet()  # Loading may have taken longer on one rank than on another.
    how: dict[str, Any] = {"strict": strict, "known": known, "team": team, "memory": memory}
    result = evaluate(network, recipe, *text, mode, progress, **how)
    return replace(result, warning=dataset.warning())


def memory_for(weights: Weights, recipe: Recipe, mode: str, tokenizer: Tokenizer) -> Start | None:
    """What the memory of an evaluation of weights begins with; None where it has none."""
    return weights.memory_start(tokenizer) if uses_memory(recipe, mode) else None
