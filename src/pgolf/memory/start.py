"""What a memory begins with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint16]
Ngrams = NDArray[np.uint32]


@dataclass(frozen=True)
class Start:
    """What a memory knows before the stream begins; an artifact carries it."""

    leaves: Tokens
    """(V,) uint16: tokens in the alphabetical order of their pieces."""
    levels: NDArray[np.uint8]
    """(V,): how frequent each token is; a level more is a factor of 2."""
    starts: NDArray[np.bool_]
    """(V,): whether a token begins a word."""
    bos: int = 1
    """The token that begins a document."""
    trust: tuple[float, float] = (0.8, 0.3)
    """Weights of the memory and of the model at first, on their log odds."""
    stored: Tokens = field(default_factory=lambda: np.zeros(0, np.uint16))
    """Training text that is read before the stream."""
    ngrams: Ngrams = field(default_factory=lambda: np.zeros((0, 3), np.uint32))
    """(V + n, 3), or empty: counts of n-grams that are known before the text; see ``ngrams``."""

    @property
    def vocab_size(self) -> int:
        return len(self.leaves)
