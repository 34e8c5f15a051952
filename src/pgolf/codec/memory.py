"""What a memory beside a model begins with."""

from __future__ import annotations

import numpy as np

from pgolf.compress.weights import Weights
from pgolf.data.tokenizer import Tokenizer
from pgolf.memory.memory import Start
from pgolf.memory.stored import start_of

# Weights of a memory that has read nothing and of the model, on their log odds.
_TRUST = (0.2, 0.9)


def memory_start(weights: Weights, tokenizer: Tokenizer) -> Start:
    """What the artifact carries for it, or nothing but the tokenizer's pieces."""
    if hasattr(weights, "memory_start"):
        found: Start = weights.memory_start(tokenizer)
        return found
    return start_of(tokenizer.pieces, tokenizer.bos_id, np.zeros(0, np.uint16), _TRUST)
