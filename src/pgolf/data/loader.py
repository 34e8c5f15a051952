"""Training batches from shards, in the order of the references, without state; the next ones in advance."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

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


Batch = tuple[Tensor, Tensor]


class Prefetcher:
    """Answers as its loader does, and has a thread prepare what will be asked for next.

    A batch stays a function of step and part: any order gives the same batches, and only the order of
    training finds them ready. A mistake in the data is raised where its batch is asked for, not before. A
    context: its end ends the thread; what is asked for afterwards starts a new one. ``ahead`` batches are
    kept ready (0: without a thread); ``pin`` puts them into page-locked memory, from which copies to a CUDA
    device run beside everything.
    """

    def __init__(self, loader: BatchLoader, ahead: int, pin: bool = False) -> None:
        self.loader, self.ahead, self.pin = loader, ahead, pin
        self._parts = loader.micro_batches // loader.world
        self._ready: deque[tuple[int, Future[Batch]]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *error: object) -> None:
        self._ready.clear()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def batch(self, step: int, part: int) -> Batch:
        """As ``BatchLoader.batch``; a token beyond the vocabulary is a ``PgolfError`` of its batch."""
        index = step * self._parts + part
        if not self.ahead:
            return self._prepare(index)
        if self._ready and self._ready[0][0] != index:
            for _, unwanted in self._ready:
                unwanted.cancel()
            self._ready.clear()
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="batches")
        for coming in range(index + len(self._ready), index + self.ahead + 1):
            self._ready.append((coming, self._thread.submit(self._prepare, coming)))
        return self._ready.popleft()[1].result()

    def _prepare(self, index: int) -> Batch:
        inputs, targets = self.loader.batch(*divmod(index, self._parts))
        return (inputs.pin_memory(), targets.pin_memory()) if self.pin else (inputs, targets)


def prefetcher(loader: BatchLoader, device: torch.device) -> Prefetcher:
    """For CUDA two batches ahead in page-locked memory; for the CPU none: the thread would take its time."""
    on_device = device.type == "cuda"
    return Prefetcher(loader, ahead=2 if on_device else 0, pin=on_device)
