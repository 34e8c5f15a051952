"""What is in a data folder: counts, bytes, damaged files, and documents that are in both splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.data.dataset import Dataset, open_dataset
from pgolf.data.shards import Tokens, read_shard
from pgolf.errors import PgolfError

_BLOCK = 1 << 22


def inspect_dataset(folder: Path, tokenizer: Path | None = None) -> dict[str, Any]:
    """Count what a data folder holds.

    Returns:
        For "train" and "val": shards, tokens, documents (beginnings), bytes of text and bytes per token, and,
        where the manifest knows the original text, the bytes that normalisation changed. "errors" names
        unusable files with the reason; "overlap" counts validation documents that are token for token also
        training documents. Memory does not grow with the shards, only with the number of documents (16
        bytes each).

    Raises:
        PgolfError: the folder is no data folder at all.
    """
    dataset = open_dataset(folder, tokenizer)
    errors: dict[str, str] = {}
    digests: dict[str, set[bytes]] = {}
    found: dict[str, Any] = {
        "tokenizer": {"vocab_size": dataset.tokenizer.vocab_size, "sha256": dataset.tokenizer.digest}
    }
    for split, paths in (("train", dataset.train_shards), ("val", dataset.val_shards)):
        shards = list(_usable(paths, dataset.tokenizer.vocab_size, errors))
        found[split] = _count(shards, dataset)
        found[split] |= _normalisation(dataset, split)
        digests[split] = set(_document_digests(shards, dataset.tokenizer.bos_id))
    shared = len(digests["train"] & digests["val"])
    found["overlap"] = {"documents": shared, "share_of_validation": shared / max(len(digests["val"]), 1)}
    found["errors"] = errors
    return found


def _usable(paths: list[Path], vocab_size: int, errors: dict[str, str]) -> Iterator[Tokens]:
    for path in paths:
        try:
            yield read_shard(path, vocab_size)
        except PgolfError as error:
            errors[path.name] = str(error)


def _count(shards: list[Tokens], dataset: Dataset) -> dict[str, Any]:
    tokens = documents = size = 0
    # Nothing precedes the first token of a split, so it counts as if it followed a BOS.
    previous = dataset.tokenizer.bos_id
    for shard in shards:
        for start in range(0, len(shard), _BLOCK):
            block = np.asarray(shard[start : start + _BLOCK], dtype=np.int64)
            before = np.concatenate(([previous], block[:-1]))
            size += int(dataset.tokenizer.byte_table.count(before, block).sum())
            documents += int((block == dataset.tokenizer.bos_id).sum())
            tokens += len(block)
            previous = int(block[-1])
    return {
        "shards": len(shards),
        "tokens": tokens,
        "documents": documents,
        "bytes": size,
        "bytes_per_token": size / tokens if tokens else 0.0,
    }


def _normalisation(dataset: Dataset, split: str) -> dict[str, Any]:
    recorded = (dataset.manifest or {}).get("splits", {}).get(split, {})
    if "bytes_original" not in recorded:
        return {}
    original, normalized = recorded["bytes_original"], recorded["bytes_normalized"]
    return {"bytes_original": original, "bytes_lost_by_normalisation": original - normalized}


def _document_digests(shards: list[Tokens], bos: int) -> Iterator[bytes]:
    """A digest of each document's tokens; documents may run from one shard into the next."""
    current = None
    for shard in shards:
        starts = np.flatnonzero(shard == bos)
        pieces = np.split(shard, starts)
        for index, piece in enumerate(pieces):
            if index > 0:
                if current is not None:
                    yield current.digest()
                current = hashlib.blake2b(digest_size=16)
            if current is not None:
                current.update(piece.tobytes())
    if current is not None:
        yield current.digest()
