"""Stand-ins for the tests of low-rank test-time training: recipes, streams of documents, what changed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import Recipe
from tests.unit.stand_ins import random_tokens, small_recipe

BOS = 1
Tokens = NDArray[np.uint16]
_SETTINGS = [
    *("model.layers=1", "ttt.lora.rank=2", "ttt.lora.chunk_tokens=12", "ttt.lora.lr=0.02"),
    *("ttt.frozen_blocks=0", "ttt.epochs=1"),
]
_LOOP = ("model.layers=2", "model.loop.first=0", "model.loop.last=1", "model.loop.passes=2")
_BESIDE = 'ttt.lora.targets=["key", "beside_attention", "beside_mlp", "head"]'
# Settings of lora_document, by what they turn on.
FORMS: dict[str, tuple[str, ...]] = {
    "head": ('ttt.lora.targets=["head"]',),
    "beside": (_BESIDE, "ttt.lora.beta1=0", "ttt.lora.beta2=0.99", "ttt.lora.eps=1e-10"),
    "vectors": ('ttt.lora.targets=["vectors"]', "ttt.lora.lr=0.05"),
    "per pass": (*_LOOP, "ttt.lora.per_pass=true"),
    "by position": ("ttt.lora.chunk_schedule=[[4, 8], [7, 30], [13, 0]]",),
    "scoring": ('ttt.lora.gradient="scoring"',),
    "all": (
        *(*_LOOP, "ttt.lora.per_pass=true", 'ttt.lora.gradient="scoring"', "ttt.lora.beta1=0"),
        'ttt.lora.targets=["query", "value", "beside_attention", "beside_mlp", "head", "vectors"]',
        *("ttt.lora.chunk_schedule=[[4, 8], [7, 30], [13, 0]]", "ttt.lora.weight_decay=0.5"),
    ),
}


def lora_recipe(method: str, *settings: str) -> Recipe:
    return small_recipe(f'ttt.method="{method}"', *_SETTINGS, *settings)


def documents(*sizes: int, seed: int = 0) -> Tokens:
    """Random documents of so many tokens, BOS included, which stands at their beginning and nowhere else."""
    parts = [random_tokens(size, seed=seed + index) for index, size in enumerate(sizes)]
    for part in parts:
        part[part == BOS] = 2
        part[0] = BOS
    return np.concatenate(parts)


def weights(network: GPT) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def changed(before: dict[str, Tensor], network: GPT) -> set[str]:
    return {name for name, value in network.named_parameters() if not torch.equal(before[name], value)}
