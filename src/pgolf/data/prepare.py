"""Text in, token shards out: streaming, in several processes, and whole or not there at all.

    files -> documents -> (train a tokenizer) -> tokens, split -> shards + tokenizer.model + manifest.json

Everything is built in a hidden folder beside the destination and renamed at the end, so a run that is
killed leaves nothing that looks like data. Memory holds a few batches of documents for each process.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from pgolf.data.dataset import MANIFEST, TOKENIZER, longer_text, normalisation_of
from pgolf.data.encode import COUNTS, NO_DOCUMENTS, Document, HoldOut, batches, choose_held_out, encode_all
from pgolf.data.operators import TRANSFORMS, Transform
from pgolf.data.readers import Reading, file_kind, find_sources, read_documents
from pgolf.data.shards import MAGIC, Tokens, shard_length
from pgolf.data.shards import VERSION as SHARD_VERSION
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import SAMPLE_BYTES, first_bytes, make_tokenizer
from pgolf.errors import PgolfError
from pgolf.runtime.environment import VERSION
from pgolf.runtime.files import sha256_file
from pgolf.runtime.processes import cores, machine_memory
from pgolf.runtime.writing import flush_to_disk, new_folder, write_json

FORMAT = 1
TOKENS_PER_SHARD = 100_000_000
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
    transform: Transform = "none",
    reading: Reading | None = None,
    allow_added_bytes: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    origin: dict[str, Any] | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Turn text files into a data folder and return its manifest.

    Documents keep their order; each becomes BOS and its tokens, without EOS. Records without text are
    left out and counted. Nothing is de-duplicated.

    Args:
        text: training files and folders, as ``find_sources`` takes them.
        out: the folder to make; it must not exist, or be empty.
        val_text: the same of validation documents.
        val_fraction: instead, the part of the documents of ``text`` held out (see ``choose_held_out``).
        tokenizer: the file of one to use, of any kind; it is copied.
        vocab_size: instead, train a tokenizer of this many pieces on the training documents.
        transform: what is done to the text first, "caseops" or "none": it is kept with the tokenizer that is
            trained. One that is used brings its own; it is a mistake to ask for another.
        reading: how files become documents.
        allow_added_bytes: take a tokenizer whose normalisation makes the validation text longer by more than
            ``MOST_ADDED``, which makes a score too good.
        workers: processes; default all cores, or this process alone for small inputs.
        progress: see ``Progress``.
        origin: what the manifest says of the folder under "corpus": for folders that jobs make themselves.
        replace: take the place of an existing ``out`` once the new folder is complete.

    PgolfError where arguments contradict, the input is bad, ``out`` is taken, or the disk is full.
    """
    for wrong, message in (
        (not 0 <= val_fraction < 1, f"--val-fraction {val_fraction} must be at least 0 and below 1"),
        (val_fraction and val_text, "--val-text and --val-fraction exclude each other; give one of them"),
        (workers is not None and workers < 1, f"--workers {workers} must be at least 1"),
        (transform not in TRANSFORMS, f"--transform {transform}: unknown; use {' or '.join(TRANSFORMS)}"),
        (not text, "no text given; name at least one file with --text"),
    ):
        if wrong:
            raise PgolfError(message)
    text, val_text = find_sources(text), find_sources(val_text, ("validation", "test"))
    reading, skipped = reading or Reading(), Counter[str]()
    files = [(path, "" if val_fraction else "train") for path in text] + [(path, "val") for path in val_text]
    for path, _ in files:
        _check_memory(path, reading)
    total = sum(path.stat().st_size for path, _ in files)
    if workers is None:
        workers = 1 if total < _SMALL_INPUT else cores()
    done = 0

    def advance(consumed: int) -> None:
        nonlocal done
        done += consumed
        if progress is not None:
            progress(done, total)

    documents = (
        (split, document)
        for path, split in files
        for document in read_documents(path, reading, advance=advance, skipped=skipped)
    )
    with new_folder(out, replace=replace) as folder:
        every = (document for path in text for document in read_documents(path, reading))
        holdout = choose_held_out(every, val_fraction, str(text[0]) if len(text) == 1 else "the text")
        sample = _sample(text, reading, holdout)
        make_tokenizer(folder / TOKENIZER, tokenizer, vocab_size, sample, transform)
        sources = [{"path": str(path), "split": split or "hash", **_stamp(path)} for path, split in files]
        return write_dataset(
            folder,
            documents,
            holdout=holdout,
            workers=workers,
            allow_added_bytes=allow_added_bytes,
            extra={
                "val_fraction": val_fraction,
                "reading": dataclasses.asdict(reading),
                "skipped_documents": skipped,
                "sources": sources,
                **({} if origin is None else {"corpus": origin}),
            },
        )


def _sample(text: Sequence[Path], reading: Reading, holdout: HoldOut) -> Iterator[str]:
    """Training text for the tokenizer: every file contributes alike, whatever their order."""
    for path in text:
        documents = filter(None, read_documents(path, reading))
        pieces = (piece for document in documents for piece in holdout.pieces(document))
        training = (piece for split, piece in pieces if split == "train")
        yield from first_bytes(training, SAMPLE_BYTES // len(text))


def _check_memory(path: Path, reading: Reading) -> None:
    """Refuse a document too large to encode; twice the machine's memory is allowed, as a disk has some."""
    needed, there = _MEMORY_PER_BYTE * path.stat().st_size, machine_memory()
    if file_kind(path) == (".txt", "") and reading.split == "files" and needed > 2 * there:
        raise PgolfError(
            f"{path}: is a single document, which takes some {needed / 2**30:,.0f} GiB of memory, and this "
            f"machine has {there / 2**30:,.0f} GiB; give it as several files, or with --split blank-lines"
        )


def write_dataset(
    folder: Path,
    documents: Iterable[Document],
    *,
    holdout: HoldOut | None = None,
    workers: int = 1,
    allow_added_bytes: bool = False,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Encode documents into a folder that holds the tokenizer already; return and write the manifest.

    No training documents, or a worker process that died, are a ``PgolfError``.
    """
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    writers = {split: ShardWriter(folder, "text", split, TOKENS_PER_SHARD) for split in ("train", "val")}
    totals, lengths = {split: Counter[str]() for split in writers}, Counter[int]()
    for encoded in encode_all(tokenizer.path, holdout or HoldOut(), batches(documents), workers):
        lengths.update(encoded.lengths)
        for split, parts in encoded.tokens.items():
            totals[split].update(encoded.counts[split])
            for tokens in parts:
                writers[split].add(tokens)
    empty = lengths.pop(0, 0)
    median = statistics.median_low(lengths.elements()) if lengths else 0
    splits = {split: _split_entry(totals[split], writer.close()) for split, writer in writers.items()}
    change = normalisation_of(splits["val"])
    if change.makes_longer and not allow_added_bytes:
        raise PgolfError(f"{tokenizer.path.name}: {longer_text(change)}")
    if not totals["train"]["documents"]:
        raise PgolfError(NO_DOCUMENTS)
    manifest = {
        "format": FORMAT,
        "created_by": f"pgolf {VERSION}",
        "tokenizer": {
            "file": TOKENIZER,
            "sha256": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
            "transform": tokenizer.transform,
        },
        "splits": splits,
        "documents": {"count": lengths.total(), "median_characters": median},
        "empty_documents": empty,
        "added_bytes_allowed": allow_added_bytes,
        **(extra or {}),
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _split_entry(counts: Counter[str], shards: list[Path]) -> dict[str, Any]:
    entries = [{"name": path.name, "tokens": shard_length(path), **_stamp(path)} for path in shards]
    sizes = {name: counts[name] for name in COUNTS[1:]}
    tokens = sum(entry["tokens"] for entry in entries)
    return {"documents": counts["documents"], "tokens": tokens, **sizes, "shards": entries}


def _stamp(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def shard_header(count: int) -> bytes:
    """The 1,024 bytes that precede ``count`` tokens."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, SHARD_VERSION, count
    return header.tobytes()


class ShardWriter:
    """Streams tokens into numbered shards ``PREFIX_SPLIT_000000.bin`` of bounded size.

    Files are not atomic one by one: write into a temporary folder and rename that when ``close`` is over.
    """

    def __init__(self, folder: Path, prefix: str, split: str, tokens_per_shard: int) -> None:
        self.folder, self.stem, self.limit = folder, f"{prefix}_{split}", tokens_per_shard
        self.paths: list[Path] = []
        self._file: IO[bytes] | None = None
        self._count = 0

    def add(self, tokens: Tokens) -> None:
        """Append tokens, opening new shards as they fill up."""
        while len(tokens):
            if self._file is None:
                self.paths.append(self.folder / f"{self.stem}_{len(self.paths):06d}.bin")
                self._file, self._count = self.paths[-1].open("wb"), 0
                self._file.write(shard_header(0))
            part = tokens[: self.limit - self._count]
            self._file.write(part.astype("<u2").tobytes())
            self._count += len(part)
            tokens = tokens[len(part) :]
            if self._count == self.limit:
                self._finish_shard()

    def close(self) -> list[Path]:
        """Finish the last shard and return all paths in order."""
        self._finish_shard()
        return self.paths

    def _finish_shard(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.write(shard_header(self._count))
            self._file.flush()
            flush_to_disk(self._file.fileno())
            self._file.close()
            self._file = None
