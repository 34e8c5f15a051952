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

_BATCH_CHARACTERS = 1 << 19


@dataclass
class Part:
    """What a split has received: counts, and in a batch also the tokens."""

    documents: int = 0
    bytes_original: int = 0
    bytes_normalized: int = 0
    """Bytes that are counted: those of the text as the tokenizer normalises it, without what no piece spells.
    """
    bytes_added: int = 0
    """By which documents became longer."""
    tokens: list[Tokens] = field(default_factory=list)

    def add(self, tokens: Tokens, original: int, counted: int) -> None:
        """Take a document."""
        self.documents += 1
        self.bytes_original += original
        self.bytes_normalized += counted
        self.bytes_added += max(counted - original, 0)
        self.tokens.append(tokens)


@dataclass
class Encoded:
    """A batch of documents as tokens, by split."""

    splits: dict[str, Part]
    lengths: Counter[int]
    """Number of documents by their length in characters; empty ones do not count."""
    empty: int


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

    Whatever ends this early, an interruption too, ends the processes at once.

    Raises:
        PgolfError: a process died, or the counts of a document's bytes are wrong.
    """
    if workers == 1:
        tokenizer = Tokenizer.load(model)
        for batch in batches:
            yield encode_batch(tokenizer, batch, holdout)
        return
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(model, holdout, os.getpid()),
    )
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
            "a worker process died, perhaps for lack of memory; try fewer --workers, and give large text as several "
            "files or with --split blank-lines"
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
    """Tokens (uint16, BOS first in each document) and counts of a batch, by split."""
    splits: dict[str, Part] = {}
    lengths: Counter[int] = Counter()
    empty = 0
    for split, text in batch:
        if not text:
            empty += 1
            continue
        lengths[len(text)] += 1
        for chosen, piece in [(split, text)] if split else holdout.pieces(text):
            tokens = np.array([tokenizer.bos_id, *tokenizer.encode(piece)], dtype=np.uint16)
            counted = _counted(tokenizer, piece, tokens)
            splits.setdefault(chosen, Part()).add(tokens, len(piece.encode()), counted)
    for part in splits.values():
        part.tokens = [np.concatenate(part.tokens)]
    return Encoded(splits, lengths, empty)


def _counted(tokenizer: Tokenizer, text: str, tokens: Tokens) -> int:
    """Bytes that a document's tokens stand for.

    Raises:
        PgolfError: they are not those of its normalised text.
    """
    counted = int(tokenizer.byte_table.count_stream(tokens).sum(dtype=np.int64))
    normalized = len(tokenizer.normalize(text).encode())
    # What no piece spells is lost; how much that was, the text itself does not say.
    if counted != normalized and not (counted < normalized and tokenizer.unknown_id in tokens):
        raise PgolfError(
            f"{tokenizer.path}: the pieces of a document count {counted:,} bytes, its normalised text has "
            f"{normalized:,} (it begins {text[:40]!r}); no score in these tokens is exact, use another tokenizer"
        )
    return counted
