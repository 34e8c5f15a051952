"""Training batches from shards, in the order of the references, without state."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pgolf.data.shards import Tokens, check_ids, read_shard
from pgolf.errors import PgolfError
from pgolf.recipe.sections import TrainSection

if TYPE_CHECKING:  # Data can be prepared without torch, which takes seconds to import.
    from torch import Tensor

_CHECKED_FIRST = 1 << 22
# Each open shard keeps a file descriptor, of which a process has 1,024 by default.
_OPEN_SHARDS = 32


class TokenStream:
    """Shards in order as one endless stream: after the last token comes the first again.

    With ``vocab_size`` the beginning of every shard is checked at once, the rest as it is taken:
    reading terabytes before the first step would be no service. Only the shards used last stay open.
    """

    def __init__(self, paths: Sequence[Path], vocab_size: int = 1 << 16) -> None:
        self._paths, self._vocab_size = paths, vocab_size
        self._open = functools.lru_cache(maxsize=_OPEN_SHARDS)(read_shard)
        lengths = []
        for path in paths:
            shard = self._open(path)
            check_ids(path, shard[:_CHECKED_FIRST], vocab_size)
            lengths.append(len(shard))
        self._ends = np.cumsum(lengths)
        if not lengths or not self._ends[-1]:
            raise PgolfError(f"{paths[0].parent if paths else 'the data'}: holds no training tokens")

    @property
    def total(self) -> int:
        """Tokens before the stream repeats."""
        return int(self._ends[-1])

    def take(self, position: int, count: int) -> Tokens:
        """``count`` tokens (uint16) from any position of the stream on."""
        position %= self.total
        index = int(np.searchsorted(self._ends, position, side="right"))
        offset = position - (int(self._ends[index - 1]) if index else 0)
        parts = []
        while count:
            shard = self._open(self._paths[index])
            part = shard[offset : offset + count]
            if part.size and part.max() >= self._vocab_size:
                check_ids(self._paths[index], shard, self._vocab_size)
            parts.append(part)
            count -= len(part)
            index, offset = (index + 1) % len(self._paths), 0
        return np.concatenate(parts)


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
                f"train.micro_batches {train.micro_batches} (of train.batch_tokens {train.batch_tokens}) cannot be "
                f"shared by {world} ranks; start a number of ranks that divides it, or set train.micro_batches to a "
                f"multiple of {world}"
            )
        self.stream, self.rank, self.world = stream, rank, world
        self.length, self.micro_batches = train.sequence_length, train.micro_batches
        self.span = train.batch_tokens // train.micro_batches + 1

    def batch(self, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (sequences, length) int64 of one micro-batch of this rank."""
        import torch

        index = step * self.micro_batches + part * self.world + self.rank
        tokens = torch.from_numpy(self.stream.take(index * self.span, self.span).astype(np.int64))
        return tokens[:-1].view(-1, self.length), tokens[1:].view(-1, self.length)
