"""Text in, token shards out: streaming, in several processes, and whole or not there at all.

    files -> documents -> (train a tokenizer) -> tokens, split -> shards + tokenizer.model + manifest.json

Everything is built in a hidden folder beside the destination and renamed at the end, so a run that is
killed leaves nothing that looks like data. Memory holds a few batches of documents for each process.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pgolf.data.dataset import MANIFEST, TOKENIZER, longer_text, normalisation_of
from pgolf.data.encode import Document, Part, batches, encode_all
from pgolf.data.holdout import NO_DOCUMENTS, HoldOut, choose_held_out
from pgolf.data.readers import Reading, file_kind, read_documents
from pgolf.data.shard_writer import TOKENS_PER_SHARD, ShardWriter
from pgolf.data.shards import shard_length
from pgolf.data.sources import find_sources
from pgolf.data.streams import Advance
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import SAMPLE_BYTES, first_bytes, make_tokenizer, train_tokenizer
from pgolf.errors import PgolfError
from pgolf.runtime.files import sha256_file
from pgolf.runtime.folders import new_folder
from pgolf.runtime.package import VERSION
from pgolf.runtime.processes import machine_memory
from pgolf.runtime.writing import write_json

__all__ = ["prepare", "train_tokenizer", "write_dataset"]

FORMAT = 1
Progress = Callable[[int, int], None]
"""Called with the source bytes that are done, and their total."""

_SMALL_INPUT = 4 << 20
_MEMORY_PER_BYTE = 50
"""Bytes of memory that encoding takes for each byte of a document."""


def prepare(
    text: Sequence[Path],
    out: Path,
    *,
    val_text: Sequence[Path] = (),
    val_fraction: float = 0.0,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    reading: Reading | None = None,
    allow_added_bytes: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    tokens_per_shard: int = TOKENS_PER_SHARD,
) -> dict[str, Any]:
    """Turn text files into a data folder and return its manifest.

    Documents keep their order; each becomes BOS and its tokens, without EOS. Records without text are
    left out and counted. Nothing is de-duplicated.

    Args:
        text: training files and folders, as ``find_sources`` takes them.
        out: the folder to make; it must not exist, or be empty.
        val_text: the same of validation documents.
        val_fraction: instead, the part of the documents of ``text`` held out (see ``choose_held_out``).
        tokenizer: a SentencePiece model to use; it is copied.
        vocab_size: instead, train a tokenizer of this many pieces on the training documents.
        reading: how files become documents.
        allow_added_bytes: take a tokenizer whose normalisation makes the validation text longer by more than
            ``MOST_ADDED``, which makes a score too good.
        workers: processes; default all cores, or this process alone for small inputs.
        progress: called with the source bytes that are done and their total.
        tokens_per_shard: size of a full shard.

    Raises:
        PgolfError: contradictory arguments, bad input, ``out`` is taken, or the disk is full.
    """
    _check_arguments(val_text, val_fraction, workers, tokens_per_shard)
    if not text:
        raise PgolfError("no text given; name at least one file with --text")
    text, val_text = find_sources(text), find_sources(val_text, ("validation", "test"))
    reading, skipped = reading or Reading(), Counter[str]()
    training = "" if val_fraction else "train"
    files = [(path, training) for path in text] + [(path, "val") for path in val_text]
    for path, _ in files:
        _check_memory(path, reading)
    total = sum(path.stat().st_size for path, _ in files)
    if workers is None:
        workers = 1 if total < _SMALL_INPUT else _cores()
    advance = _advance(progress, total)
    documents = (
        (split, document)
        for path, split in files
        for document in read_documents(path, reading, advance=advance, skipped=skipped)
    )
    with new_folder(out) as folder:
        every = (document for path in text for document in read_documents(path, reading))
        holdout = choose_held_out(every, val_fraction, str(text[0]) if len(text) == 1 else "the text")
        make_tokenizer(folder / TOKENIZER, tokenizer, vocab_size, _sample(text, reading, holdout))
        sources = [
            {
                "path": str(path),
                "split": split or "hash",
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
            for path, split in files
        ]
        return write_dataset(
            folder,
            documents,
            holdout=holdout,
            workers=workers,
            tokens_per_shard=tokens_per_shard,
            allow_added_bytes=allow_added_bytes,
            extra={
                "val_fraction": val_fraction,
                "reading": dataclasses.asdict(reading),
                "skipped_documents": skipped,
                "sources": sources,
            },
        )


def _sample(text: Sequence[Path], reading: Reading, holdout: HoldOut) -> Iterator[str]:
    """Training text for the tokenizer: every file contributes alike, whatever their order."""
    for path in text:
        pieces = (
            piece
            for document in read_documents(path, reading)
            if document
            for piece in holdout.pieces(document)
        )
        training = (piece for split, piece in pieces if split == "train")
        yield from first_bytes(training, SAMPLE_BYTES // len(text))


def _advance(progress: Progress | None, total: int) -> Advance:
    done = 0

    def advance(consumed: int) -> None:
        nonlocal done
        done += consumed
        if progress is not None:
            progress(done, total)

    return advance


def _cores() -> int:
    # Not every system can say which cores this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_arguments(
    val_text: Sequence[Path], val_fraction: float, workers: int | None, tokens_per_shard: int
) -> None:
    if not 0 <= val_fraction < 1:
        raise PgolfError(f"--val-fraction {val_fraction} must be at least 0 and below 1")
    if val_fraction and val_text:
        raise PgolfError("--val-text and --val-fraction exclude each other; give one of them")
    if workers is not None and workers < 1:
        raise PgolfError(f"--workers {workers} must be at least 1")
    if tokens_per_shard < 1:
        raise PgolfError(f"tokens per shard {tokens_per_shard} must be at least 1")


def _check_memory(path: Path, reading: Reading) -> None:
    """See that a file that is one document can be encoded; twice the machine's memory is allowed, as a disk
    has some.

    Raises:
        PgolfError: it is too large.
    """
    needed = _MEMORY_PER_BYTE * path.stat().st_size
    there = machine_memory()
    if file_kind(path) == (".txt", "") and reading.split == "files" and needed > 2 * there:
        raise PgolfError(
            f"{path}: is a single document, which takes some {needed / 2**30:,.0f} GiB of memory, and this machine has "
            f"{there / 2**30:,.0f} GiB; give it as several files, or with --split blank-lines"
        )


def write_dataset(
    folder: Path,
    documents: Iterable[Document],
    *,
    holdout: HoldOut | None = None,
    workers: int = 1,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    allow_added_bytes: bool = False,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Encode documents into a folder that holds the tokenizer already; return and write the manifest.

    Raises:
        PgolfError: there are no training documents, or a worker process died.
    """
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    writers = {split: ShardWriter(folder, "text", split, tokens_per_shard) for split in ("train", "val")}
    totals = {split: Part() for split in writers}
    lengths: Counter[int] = Counter()
    empty = 0
    for encoded in encode_all(tokenizer.path, holdout or HoldOut(), batches(documents), workers):
        lengths.update(encoded.lengths)
        empty += encoded.empty
        for split, part in encoded.splits.items():
            for tokens in part.tokens:
                writers[split].add(tokens)
            totals[split].documents += part.documents
            totals[split].bytes_original += part.bytes_original
            totals[split].bytes_normalized += part.bytes_normalized
            totals[split].bytes_added += part.bytes_added
    shards = {split: writer.close() for split, writer in writers.items()}
    change = normalisation_of(vars(totals["val"]))
    if change.makes_longer and not allow_added_bytes:
        raise PgolfError(f"{tokenizer.path.name}: {longer_text(change)}")
    if not totals["train"].documents:
        raise PgolfError(NO_DOCUMENTS)
    manifest = {
        "format": FORMAT,
        "created_by": f"pgolf {VERSION}",
        "tokenizer": {"file": TOKENIZER, "sha256": tokenizer.digest, "vocab_size": tokenizer.vocab_size},
        "splits": {split: _split_entry(totals[split], shards[split]) for split in writers},
        "documents": {"count": lengths.total(), "median_characters": _median(lengths)},
        "empty_documents": empty,
        "added_bytes_allowed": allow_added_bytes,
        **(extra or {}),
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _median(lengths: Counter[int]) -> int:
    """The middle of the lengths; of an even number, the lower of the two in the middle."""
    left = (lengths.total() + 1) // 2
    for length in sorted(lengths):
        left -= lengths[length]
        if left <= 0:
            return length
    return 0


def _split_entry(part: Part, shards: list[Path]) -> dict[str, Any]:
    entries = [
        {
            "name": path.name,
            "tokens": shard_length(path),
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in shards
    ]
    return {
        "documents": part.documents,
        "tokens": sum(entry["tokens"] for entry in entries),
        "bytes_original": part.bytes_original,
        "bytes_normalized": part.bytes_normalized,
        "bytes_added": part.bytes_added,
        "shards": entries,
    }
