"""Small stand-ins: a recipe, a model that is not trivial, bytes, tokens, a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pgolf.data.dataset import Dataset, open_dataset
from pgolf.evaluate.score import window_logits
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT, build_model
from pgolf.recipe.recipe import Recipe, load_recipe
from tests.shards import write_shard

LENGTH, VOCABULARY = 16, 64
_SETTINGS = [
    f"model.vocab_size={VOCABULARY}",
    "model.layers=4",
    "model.width=16",
    "model.heads=2",
    "model.kv_heads=1",
    "model.mlp_hidden=24",
    "model.xsa_last=1",
    "model.bigram.buckets=32",
    "model.bigram.width=8",
    f"train.sequence_length={LENGTH}",
    f"train.batch_tokens={8 * LENGTH}",
    "evaluate.stride=4",
    "evaluate.batch=3",
    "ttt.chunk_tokens=32",
    "ttt.batch_sequences=2",
    "ttt.lr=0.05",
]


def small_recipe(*settings: str) -> Recipe:
    return load_recipe("seed_456", [*_SETTINGS, *settings])


def small_model(recipe: Recipe, seed: int = 0, spread: float = 0.2) -> GPT:
    """A model none of whose weights is zero, so that every part matters."""
    network = build_model(recipe.model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return network


def random_tokens(count: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.uint16)


def window_losses(network: GPT, tokens: NDArray[np.uint16], windows: Sequence[Window]) -> Tensor:
    """What the targets of windows of one length cost (nats), in their order."""
    targets = np.concatenate([tokens[window.first + 1 : window.end + 1] for window in windows])
    with torch.inference_mode():
        logits = window_logits(network, tokens, windows)
        return F.cross_entropy(logits, torch.from_numpy(targets.astype(np.int64)), reduction="none")


def byte_counts(tokens: NDArray[np.integer]) -> NDArray[np.uint16]:
    """Bytes of a stream's targets that depend on the target and on the token before it, like real ones."""
    return (tokens[1:] % 3 + 1 + (tokens[:-1] % 5 == 0)).astype(np.uint16)


def random_dataset(folder: Path) -> Dataset:
    """2,000 random training tokens, the first 200 for validation, beside a tokenizer of 300 pieces."""
    write_tokenizer(folder)
    tokens = np.random.RandomState(0).randint(4, 300, size=2000).astype(np.uint16)
    write_shard(folder / "t_train_000000.bin", tokens)
    write_shard(folder / "t_val_000000.bin", tokens[:200])
    return open_dataset(folder)


def write_tokenizer(folder: Path) -> list[str]:
    """Train a tokenizer of 300 pieces into ``folder/tokenizer.model``; returns its lines of text."""
    lines = [f"word{n} is number {n * 7 % 50} of many words, and {'so' * (n % 5)} on" for n in range(1200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return lines
