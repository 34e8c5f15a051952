"""What is in a data folder: counts, damaged files, documents in both splits, and whether its bytes are right.

The bytes that a score is divided by have to be those of the text. Inspecting, auditing and verifying a ledger
look from the other side, by decoding; preparing has the documents themselves to compare with.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.data.dataset import SPLITS, Dataset, Normalisation, Split, Text, open_dataset
from pgolf.data.shards import Tokens, read_shard
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.runtime.doctor import OK, PROBLEM, WARNING, Check

# So many tokens of a text are decoded.
_LOOKED_AT = 1 << 22


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

    Of "train" and "val" it returns shards, tokens, documents (beginnings), bytes of text and bytes per token,
    and, where the manifest knows the original text, the bytes that normalisation added and lost.
    "byte_counts" says who counts the bytes of the validation text, and what the counts were held against.
    "errors" names unusable and missing files with the reason; "overlap" counts validation documents that are
    token for token also training documents. A document that runs into an unusable file is left out of that
    comparison. One shard is looked at at a time; beyond that, memory grows only with the number of training
    documents (a digest of 16 bytes each). What is no data folder at all is a ``PgolfError``.
    """
    dataset = open_dataset(folder, tokenizer)
    model = dataset.tokenizer
    errors: dict[str, str] = {}
    about = {"vocab_size": model.vocab_size, "sha256": model.digest, "transform": model.transform}
    found: dict[str, Any] = {"tokenizer": about}
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
    size = int(text.byte_counts.sum(dtype=np.int64))
    return {"source": found.source, "evidence": found.evidence, "bytes": size}


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


@dataclass(frozen=True)
class ByteCheck:
    """What was found."""

    source: str
    """Who says what a target stands for: "tokenizer" or "byte files" (side-cars)."""
    evidence: str
    """What was compared."""
    problem: str | None
    """What is wrong; None if nothing is."""
    normalisation: Normalisation | None
    """What normalisation did to the validation text; None where it is not recorded or does not count."""

    def rows(self) -> list[tuple[str, str]]:
        """As labelled lines."""
        unknown = "not recorded" if self.source == "tokenizer" else "the side-cars count the text before it"
        return [("bytes per target", self.evidence), ("normalisation", str(self.normalisation or unknown))]


def check_bytes(dataset: Dataset, text: Text) -> ByteCheck:
    """Hold the byte counts of the whole validation split against what its documents are decoded to.

    Side-cars count another text than the one that tokens are decoded to; of them only the sum is looked at,
    when they are read.
    """
    if names := dataset.val_byte_files:
        what = names[0].name if len(names) == 1 else f"{names[0].name} and {len(names) - 1} more"
        evidence = f"{what}: an entry for every token, no more bytes together than they spell"
        return ByteCheck("byte files", evidence, None, None)
    checked, problem = check_documents(dataset.tokenizer, text)
    compared = (
        f"as many as the documents decode to (compared: {checked:,})"
        if checked
        else "no document could be decoded"
    )
    evidence = f"counted by {dataset.tokenizer.path.name}, {compared}"
    return ByteCheck("tokenizer", problem or evidence, problem, dataset.normalisation("val"))


def check_documents(tokenizer: Tokenizer, text: Text) -> tuple[int, str | None]:
    """How many documents of a split, from its beginning on, have the bytes they decode to; what is wrong."""
    tokens = text.tokens[:_LOOKED_AT]
    edges = np.flatnonzero(tokens == tokenizer.bos_id).tolist()
    if edges and len(tokens) == len(text.tokens):
        edges.append(len(tokens))
    plain = plain_token(tokenizer)
    if len(edges) < 2 or plain is None:
        return 0, None
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        counted = int(text.byte_counts[begin : end - 1].sum(dtype=np.int64))
        decoded = decoded_bytes(tokenizer, tokens[begin:end], plain)
        if counted != decoded:
            return number, (
                f"{tokenizer.path}: document {number} counts {counted:,} bytes, but decodes to {decoded:,}; "
                "no score in these tokens is exact, use another tokenizer"
            )
    return len(edges) - 1, None


def decoded_bytes(tokenizer: Tokenizer, tokens: NDArray[np.integer], plain: int) -> int:
    """UTF-8 length of the text that a library decodes a whole document (n,) to, unknown pieces left out.

    It owes nothing to the byte table, so one can be held against the other. ``plain`` is ``plain_token``'s.
    """
    ids, unknown = tokens.tolist(), tokenizer.unknown_id
    known = [plain if token == unknown else token for token in ids if token != tokenizer.bos_id]
    # The decoder takes off spaces at the beginning of a text, so a character is put there.
    text = tokenizer.decode([plain, *known])[1:]
    return len(tokenizer.own_text(text).encode()) - ids.count(unknown) * int(tokenizer.byte_table.base[plain])


def plain_token(tokenizer: Tokenizer) -> int | None:
    """A token that is always decoded to one and the same character, no space; None if there is none."""
    table = tokenizer.byte_table
    if not tokenizer.decodes:
        return None
    for token in np.flatnonzero((table.base > 0) & ~table.leading_space).tolist():
        text = tokenizer.decode([token])
        # Half a character decodes to U+FFFD, which is longer; of a piece with a space only the rest is shown.
        whole = len(text.encode()) == table.base[token]
        if whole and len(text) == 1 and text.isprintable() and text != " ":
            return int(token)
    return None
