"""Training batches from shards, in the order of the references, without state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pgolf.data.shards import TokenStream
from pgolf.errors import PgolfError
from pgolf.recipe.sections import TrainSection


class BatchLoader:
    """The micro-batches of a step, as a function of the step: resuming needs no saved position.

    A step takes ``train.micro_batches`` consecutive spans of n + 1 tokens, n = batch_tokens / micro_batches.
    With ``world`` ranks, part p of rank r is span p * world + r, so the data of a step is the same for
    every number of ranks. Within a span the inputs are all tokens but the last, the targets all but the
    first.
    """

    def __init__(self, stream: TokenStream, train: TrainSection, rank: int = 0, world: int = 1) -> None:
        if train.micro_batches % world:
            raise PgolfError(
                f"train.micro_batches {train.micro_batches} (of train.batch_tokens {train.batch_tokens}) "
                f"cannot be shared by {world} ranks; start a number of ranks that divides it, or set "
                f"train.micro_batches to a multiple of {world}"
            )
        self.stream, self.rank, self.world = stream, rank, world
        self.length, self.micro_batches = train.sequence_length, train.micro_batches
        self.span = train.batch_tokens // train.micro_batches + 1

    def batch(self, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (sequences, length) int64 of one micro-batch of this rank."""
        index = step * self.micro_batches + part * self.world + self.rank
        tokens = torch.from_numpy(self.stream.take(index * self.span, self.span).astype(np.int64))
        return tokens[:-1].view(-1, self.length), tokens[1:].view(-1, self.length)
