"""Documents to tokens, in order, in as many processes as wanted; and which text is held out for validation.

The processes that encode import this module and little else: in particular not torch. What is held out is
decided by the text alone, whatever its order.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
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

from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.runtime.processes import end_with

Document = tuple[str, str]
"""Split ("train", "val", or "" to let the text itself decide) and text."""

COUNTS = ("documents", "documents_changed", "bytes_original", "bytes_normalized", "bytes_added")
"""What is counted of a split. Changed documents are those that do not come back from their tokens as they
were. Normalised bytes are those of the text as the tokenizer normalises it, without what no piece spells;
added ones those by which single documents became longer."""

NO_DOCUMENTS = (
    "the text holds no documents that can be used; give other files, or ask why with --bad-documents error"
)

_BATCH_CHARACTERS = 1 << 19
_NEAR = 64


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
    if not hasattr(signal, "pthread_sigmask"):  # Windows.
        yield
        return
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
    """Tokens and counts of a batch; a ``PgolfError`` where tokens do not stand for a text's bytes.

    Where the text is transformed, they have to give it back too.
    """
    found = Encoded()
    for split, text in batch:
        found.lengths[len(text)] += 1
        if not text:
            continue
        for chosen, piece in [(split, text)] if split else holdout.pieces(text):
            tokens = np.array([tokenizer.bos_id, *tokenizer.encode(piece)], dtype=np.uint16)
            counted = int(tokenizer.byte_table.count_stream(tokens).sum(dtype=np.int64))
            seen, unknown = tokenizer.normalize(piece), tokenizer.unknown_id in tokens
            original, normalized = len(piece.encode()), len(seen.encode())
            # What no piece spells is lost; how much that was, the text itself does not say.
            if counted != normalized and not (counted < normalized and unknown):
                raise PgolfError(
                    f"{tokenizer.path}: the pieces of a document count {counted:,} bytes, its normalised "
                    f"text has {normalized:,} (it begins {piece[:40]!r}); no score in these tokens is exact, "
                    "use another tokenizer"
                )
            if tokenizer.transform != "none" and tokenizer.decode(tokens[1:].tolist()) != piece:
                raise PgolfError(
                    f"{tokenizer.path}: a document does not come back from its tokens (it begins "
                    f"{piece[:40]!r}); have a tokenizer trained, with --transform {tokenizer.transform}"
                )
            found.tokens.setdefault(chosen, []).append(tokens)
            counts = 1, int(unknown or seen != piece), original, counted, max(counted - original, 0)
            found.counts.setdefault(chosen, Counter()).update(dict(zip(COUNTS, counts, strict=True)))
    # One array of each split, so that fewer objects go from one process to another.
    found.tokens = {split: [np.concatenate(parts)] for split, parts in found.tokens.items()}
    return found


def document_number(text: str) -> int:
    """The first 8 bytes of the SHA-256 of a text's UTF-8, as a big-endian number: 0 to 2**64 - 1.

    So the side that a document falls on depends on nothing but its text, in any corpus and any order.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class HoldOut:
    """How documents are shared between training and validation; by default all of them are training text."""

    below: float = 0
    """A document whose number is below this one is validation text."""
    tail: float = 0.0
    """Instead, of every document this part of its bytes, from its end."""

    def pieces(self, text: str) -> list[tuple[str, str]]:
        """Split ("train" or "val") and text of what a document becomes; together they are the document."""
        if self.tail:
            return list(zip(("train", "val"), cut_end(text, self.tail), strict=True))
        return [("val" if self.below and document_number(text) < self.below else "train", text)]


def choose_held_out(documents: Iterable[str], fraction: float, name: str = "the text") -> HoldOut:
    """The rule that holds out ``fraction`` of the documents, and leaves neither side empty.

    Usually documents whose number is below ``fraction * 2**64``. Where that is none of them, the one with the
    smallest number; where it is all, all but the one with the largest. A single document (or copies of one)
    is cut: see ``cut_end``. Empty documents do not count. Reads on only until both sides have a document. No
    text, or a document that cannot be cut, is a ``PgolfError``.
    """
    if not fraction:
        return HoldOut()
    below = fraction * 2**64
    smallest, largest, text = 2**64, -1, ""
    for text in filter(None, documents):
        number = document_number(text)
        smallest, largest = min(smallest, number), max(largest, number)
        if smallest < below <= largest:
            return HoldOut(below)
    if largest < 0:
        raise PgolfError(NO_DOCUMENTS)
    if smallest == largest:
        cut_end(text, fraction, name)
        return HoldOut(tail=fraction)
    return HoldOut(smallest + 1 if below <= smallest else largest)


def cut_end(text: str, fraction: float, name: str = "the text") -> tuple[str, str]:
    """Cut a document so that its second part has ``fraction`` (0 to 1) of its bytes, or a little more.

    The cut is where a line begins. Where that is not near the wanted place, as lines are long, it is after
    white space. Near means that the second part has at least half of what is wanted and at most twice that or
    ``_NEAR`` bytes more, and the first part at least half of the rest. Both keep at least one line or word
    that is not blank. A text (called ``name``) without such a place is a ``PgolfError``.
    """
    data = text.encode()
    first, last = len(data) - len(text.lstrip().encode()), len(text.rstrip().encode())
    size, wanted = len(data), math.ceil(fraction * len(data))
    start = _last_start(data, b"\n", first, last, size - wanted)
    if not start:
        raise PgolfError(
            f"{name}: is a single document of one line, of which --val-fraction can hold out nothing; "
            "name validation text with --val-text"
        )
    if not _near(start, wanted, size):
        start = _last_start(data, b"\n\r\t ", first, last, size - wanted)
    if not _near(start, wanted, size):
        raise PgolfError(
            f"{name}: is a single document with no line end or white space near the last {wanted:,} of its "
            f"{size:,} bytes, which --val-fraction {fraction:g} holds out; name validation text with "
            "--val-text"
        )
    return data[:start].decode(), data[start:].decode()


def _last_start(data: bytes, ends: bytes, first: int, last: int, wanted: int) -> int:
    """The last place up to ``wanted`` that follows one of the bytes ``ends``, with text before and after it.

    If there is none, the first place after it, or 0. The text of ``data`` is ``data[first:last]``, with white
    space around it.
    """
    before = max(data.rfind(end, first, max(first, min(wanted, last))) for end in ends)
    after = min((place for end in ends if (place := data.find(end, first, last)) >= 0), default=-1)
    return (before if before >= 0 else after) + 1


def _near(start: int, wanted: int, size: int) -> bool:
    tail = size - start
    return wanted <= 2 * tail and tail - wanted <= max(wanted, _NEAR) and 2 * start >= size - wanted
