"""The score of saved weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from pgolf.compress.weights import Weights
from pgolf.data.dataset import Dataset
from pgolf.evaluate.evaluate import EvalResult, evaluate
from pgolf.optim.place import place
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.files import sha256_file
from pgolf.runtime.team import SOLO, Team


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

    The ledger's header names the file and the tokenizer by their digests.

    Raises:
        PgolfError: the dataset was made with another tokenizer than the weights.
    """
    weights.check_data(dataset)
    text = dataset.validation_text(recipe.evaluation_length, limit_targets)
    network = place(weights.model(), recipe, device)
    known = {"tokenizer": dataset.tokenizer.digest, "artifact": sha256_file(weights.source)}
    team.meet()  # Loading may have taken longer on one rank than on another.
    result = evaluate(network, recipe, *text, mode, progress, strict=strict, known=known, team=team)
    return replace(result, warning=dataset.warning())
