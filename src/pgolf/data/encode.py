"""Documents to tokens, in order, in as many processes as wanted.

The processes that encode import this module and little else: in particular not torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pgolf.data.holdout import HoldOut
from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.runtime.processes import end_with

Document = tuple[str, str]
"""Split ("train", "val", or "" to let the text itself decide) and text."""

COUNTS = ("documents", "bytes_original", "bytes_normalized", "bytes_added")
"""What is counted of a split. Normalised bytes are those of the text as the tokenizer normalises it, without
what no piece spells; added ones those by which single documents became longer."""

_BATCH_CHARACTERS = 1 << 19


@dataclass
class Encoded:
    """A batch of documents as tokens."""

    tokens: dict[str, list[Tokens]] = field(default_factory=dict)
    """Of each split: uint16, BOS first in each document."""
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Of each split: ``COUNTS``."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Number of documents by their length in characters, empty ones too."""


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents so that a batch is worth sending to another process."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[1]) + 1
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_all(
    model: Path, holdout: HoldOut, batches: Iterable[list[Document]], workers: int
) -> Iterator[Encoded]:
    """Encode batches in their order, with at most two batches per process under way.

    Whatever ends this early, an interruption too, ends the processes at once. A process that died, or wrong
    counts of a document's bytes, are a ``PgolfError``.
    """
    if workers == 1:
        tokenizer = Tokenizer.load(model)
        for batch in batches:
            yield encode_batch(tokenizer, batch, holdout)
        return
    spawn, arguments = multiprocessing.get_context("spawn"), (model, holdout, os.getpid())
    pool = ProcessPoolExecutor(workers, spawn, initializer=_start_worker, initargs=arguments)
    pending: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            with _without_interrupts():
                pending.append(pool.submit(_work, batch))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise PgolfError(
            "a worker process died, perhaps for lack of memory; try fewer --workers, and give large text as "
            "several files or with --split blank-lines"
        ) from error
    except BaseException:
        # Nobody waits for what they are at, and a large document takes long.
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that start here never see Ctrl-C, which a terminal sends to all: this one ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: tuple[Tokenizer, HoldOut]


def _start_worker(model: Path, holdout: HoldOut, parent: int) -> None:
    global _worker
    end_with(parent)
    _worker = Tokenizer.load(model), holdout


def _work(batch: list[Document]) -> Encoded:
    tokenizer, holdout = _worker
    return encode_batch(tokenizer, batch, holdout)


def encode_batch(tokenizer: Tokenizer, batch: Sequence[Document], holdout: HoldOut) -> Encoded:
    """Tokens and counts of a batch; a ``PgolfError`` where tokens do not stand for a text's bytes."""
    found = Encoded()
    for split, text in batch:
        found.lengths[len(text)] += 1
        if not text:
            continue
        for chosen, piece in [(split, text)] if split else holdout.pieces(text):
            tokens = np.array([tokenizer.bos_id, *tokenizer.encode(piece)], dtype=np.uint16)
            counted = int(tokenizer.byte_table.count_stream(tokens).sum(dtype=np.int64))
            original, normalized = len(piece.encode()), len(tokenizer.normalize(piece).encode())
            # What no piece spells is lost; how much that was, the text itself does not say.
            if counted != normalized and not (counted < normalized and tokenizer.unknown_id in tokens):
                raise PgolfError(
                    f"{tokenizer.path}: the pieces of a document count {counted:,} bytes, its normalised "
                    f"text has {normalized:,} (it begins {piece[:40]!r}); no score in these tokens is exact, "
                    "use another tokenizer"
                )
            found.tokens.setdefault(chosen, []).append(tokens)
            counts = 1, original, counted, max(counted - original, 0)
            found.counts.setdefault(chosen, Counter()).update(dict(zip(COUNTS, counts, strict=True)))
    # One array of each split, so that fewer objects go from one process to another.
    found.tokens = {split: [np.concatenate(parts)] for split, parts in found.tokens.items()}
    return found
