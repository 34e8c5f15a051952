"""Stand-ins for tests of the memory: what one begins with, small ones, texts, models, what one holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.memory.memory import Memory, Probabilities, Start, Tokens
from pgolf.memory.mixing import BANDS, REFINED
from pgolf.recipe.sections import MemorySection

BOS = 1
_FIXED = 8 * BANDS * REFINED  # what the tables that refine the result take


def start(vocab_size: int = 16, seed: int = 0, **changes: Any) -> Start:
    """Leaves, levels and beginnings of words at random."""
    generator = np.random.default_rng(seed)
    leaves = generator.permutation(vocab_size).astype(np.uint16)
    levels = generator.integers(0, 12, vocab_size).astype(np.uint8)
    return Start(leaves, levels, generator.random(vocab_size) < 0.4, BOS, **changes)


def section(**changes: Any) -> MemorySection:
    return MemorySection(order=3).model_copy(update=changes)


def cramped(**changes: Any) -> MemorySection:
    """Contexts have to make room for others after some ten tokens, and the arena gets full."""
    return section(max_bytes=_FIXED + 18_000, **changes)


def text(count: int, seed: int = 0, vocab_size: int = 16) -> Tokens:
    """A text (count,) that repeats itself in part."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, vocab_size, count)
    for _ in range(count // 20):
        source, target = generator.integers(0, max(count - 12, 1), 2)
        tokens[target : target + 12] = tokens[source : source + 12][: len(tokens[target : target + 12])]
    return tokens.astype(np.uint16)


def model_rows(previous: Tokens, seed: int = 0, vocab_size: int = 16) -> Probabilities:
    """A model's probabilities (n, V) after each of these tokens (n,)."""
    logits = 2 * np.random.default_rng(seed).standard_normal((vocab_size, vocab_size))
    rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return rows[previous].astype(np.float32)


def held(memory: Memory) -> list[bytes]:
    """Every bit of what a memory has learned."""
    arrays, history = memory.snapshot()
    return [*(array.tobytes() for array in arrays), history.digest()]


def sums(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the probabilities of each row add up to."""
    found: NDArray[np.float64] = np.exp(rows.astype(np.float64)).sum(1)
    return found
