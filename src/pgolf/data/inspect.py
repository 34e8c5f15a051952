"""What is in a data folder: counts, bytes, damaged files, and documents that are in both splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.data.byte_check import check_bytes
from pgolf.data.dataset import SPLITS, Dataset, Split, open_dataset
from pgolf.data.shards import Tokens, read_shard
from pgolf.errors import PgolfError
from pgolf.runtime.doctor import OK, PROBLEM, WARNING, Check


def examine_data(folder: Path, tokenizer: Path | None = None) -> Iterator[Check]:
    """The part of `pgolf doctor` that looks at a data folder."""
    try:
        dataset = open_dataset(folder, tokenizer)
        scored = dataset.validation_text(1).tokens
        dataset.train_stream()  # Reads the headers of all shards.
    except PgolfError as error:
        yield Check("data", PROBLEM, str(error), "see `pgolf data --help`")
        return
    shards, pieces = len(dataset.train_shards), dataset.tokenizer.vocab_size
    text = f"{shards} training shards, {len(scored):,} validation tokens, {pieces:,} pieces"
    if missing := dataset.missing_shards("train"):
        absent = f"{text}; {len(missing)} listed shards are absent"
        yield Check("data", WARNING, absent, "fetch or prepare them again")
    else:
        yield Check("data", OK, text)


def inspect_dataset(folder: Path, tokenizer: Path | None = None) -> dict[str, Any]:
    """Count what a data folder holds.

    Returns:
        For "train" and "val": shards, tokens, documents (beginnings), bytes of text and bytes per token, and,
        where the manifest knows the original text, the bytes that normalisation added and lost. "byte_counts"
        says who counts the bytes of the validation text, and what the counts were held against. "errors"
        names unusable and missing files with the reason; "overlap" counts validation documents that are token
        for token also training documents. A document that runs into an unusable file is left out of that
        comparison. One shard is looked at at a time; beyond that, memory grows only with the number of
        training documents (a digest of 16 bytes each).

    Raises:
        PgolfError: the folder is no data folder at all.
    """
    dataset = open_dataset(folder, tokenizer)
    model = dataset.tokenizer
    errors: dict[str, str] = {}
    found: dict[str, Any] = {"tokenizer": {"vocab_size": model.vocab_size, "sha256": model.digest}}
    shards = {split: _usable(dataset, split, errors) for split in SPLITS}
    for split in SPLITS:
        found[split] = _count(_opened(shards[split]), dataset) | _normalisation(dataset, split)
    found["byte_counts"] = _byte_counts(dataset, errors)
    if "bytes" in found["byte_counts"]:
        size, tokens = found["byte_counts"]["bytes"], found["val"]["tokens"]
        found["val"] |= {"bytes": size, "bytes_per_token": size / tokens}
    train, val = (_document_digests(_opened(shards[split]), model.bos_id) for split in SPLITS)
    seen = set(train)
    also = [digest in seen for digest in val]
    found["overlap"] = {"documents": sum(also), "share_of_validation": sum(also) / len(also) if also else 0.0}
    found["errors"] = errors
    return found


def _usable(dataset: Dataset, split: Split, errors: dict[str, str]) -> list[Path | None]:
    """The shards of a split, None in place of each that cannot be used; the reasons go into ``errors``."""
    missing = dataset.missing_shards(split)
    present = dataset.train_shards if split == "train" else dataset.val_shards
    shards: list[Path | None] = []
    for path in sorted([*present, *(dataset.folder / name for name in missing)]):
        try:
            read_shard(path, dataset.tokenizer.vocab_size)
            shards.append(path)
        except PgolfError as error:
            absent = f"{path}: absent, but the manifest lists it; prepare the data again"
            errors[path.name] = absent if path.name in missing else str(error)
            shards.append(None)
    return shards


def _opened(shards: list[Path | None]) -> Iterator[Tokens | None]:
    # One after the other: an open shard keeps a file descriptor.
    return (None if path is None else read_shard(path) for path in shards)


def _count(shards: Iterator[Tokens | None], dataset: Dataset) -> dict[str, Any]:
    used = tokens = documents = size = counted = 0
    # Nothing precedes the first token of a split, so it counts as if it followed a BOS.
    bos = dataset.tokenizer.bos_id
    before = start = np.array([bos], dtype=np.uint16)
    for shard in shards:
        if shard is None:
            before, counted = start, 0
            continue
        used += 1
        # What a token counts may depend on the two after it, so the end of a shard is counted again with the
        # next one.
        stream = np.concatenate((before, shard))
        counts = dataset.tokenizer.byte_table.count_stream(stream)
        size += int(counts.sum(dtype=np.int64)) - counted
        before, counted = stream[-4:], int(counts[-3:].sum(dtype=np.int64))
        documents += int((shard == bos).sum())
        tokens += len(shard)
    per_token = size / tokens if tokens else 0.0
    found = {"shards": used, "tokens": tokens, "documents": documents}
    return found | {"bytes": size, "bytes_per_token": per_token}


def _byte_counts(dataset: Dataset, errors: dict[str, str]) -> dict[str, Any]:
    """Who counts the bytes of the validation text, and whether they are right."""
    if not dataset.val_shards or errors:
        return {}
    try:
        text = dataset.validation_text(1)
        found = check_bytes(dataset, text)
    except PgolfError as error:
        errors["validation text"] = str(error)
        return {}
    if found.problem is not None:
        errors["validation text"] = found.problem
    return found.to_json() | {"bytes": int(text.byte_counts.sum(dtype=np.int64))}


def _normalisation(dataset: Dataset, split: Split) -> dict[str, Any]:
    found = dataset.normalisation(split)
    if found is None:
        return {}
    return {
        "bytes_original": found.original,
        "bytes_added_by_normalisation": found.added,
        "bytes_lost_by_normalisation": found.lost,
        "normalisation": str(found),
    }


def _document_digests(shards: Iterator[Tokens | None], bos: int) -> Iterator[bytes]:
    """A digest of each whole document's tokens; documents may run from one shard into the next."""
    current = None
    for shard in shards:
        # What cannot be read takes the open document with it.
        for index, piece in enumerate([] if shard is None else np.split(shard, np.flatnonzero(shard == bos))):
            if index > 0:
                if current is not None:
                    yield current.digest()
                current = hashlib.blake2b(digest_size=16)
            if current is not None:
                current.update(piece.tobytes())
        current = None if shard is None else current
    if current is not None:
        yield current.digest()
