"""A data folder: training shards, validation shards and the tokenizer they were made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pgolf.data.shards import (
    HEADER_BYTES,
    Tokens,
    TokenStream,
    byte_files,
    read_byte_counts,
    read_shard,
    shard_length,
    token_shards,
)
from pgolf.data.tokenizer import ByteCounts, Tokenizer, check_usable
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.model"

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
MOST_ADDED = 1e-4
"""A score on text that normalisation makes longer by more than this share is refused: it is too good."""


class Text(NamedTuple):
    """Text to be scored."""

    tokens: Tokens
    """(n + 1,); all but the first are targets."""
    byte_counts: ByteCounts
    """Bytes of text that each target stands for (n,)."""

    def first(self, targets: int) -> Text:
        """The first targets of it."""
        return Text(self.tokens[: targets + 1], self.byte_counts[:targets])


class Normalisation(NamedTuple):
    """What the tokenizer's normalisation does to the documents of a split, in bytes."""

    original: int
    """Of the text as it was given."""
    added: int
    """By which documents became longer."""
    lost: int
    """By which documents became shorter, with what no piece spells."""
    changed: int = 0
    """Documents that do not come back from their tokens as they were; 0 if that is not recorded."""

    def __str__(self) -> str:
        if not self.added and not self.lost:
            return (
                f"changes {self.changed:,} documents, but not their length"
                if self.changed
                else "changes nothing"
            )
        return f"adds {self._share(self.added)} and loses {self._share(self.lost)} of the text's bytes"

    @property
    def makes_longer(self) -> bool:
        """Whether it adds more than ``MOST_ADDED``."""
        return self.added > MOST_ADDED * self.original

    def _share(self, count: int) -> str:
        share = 100 * count / self.original if self.original else 0.0
        return f"{share:.4f} %" if share < 1 else f"{share:,.1f} %"


@dataclass(frozen=True)
class Dataset:
    """Shards of both splits, in order, with their tokenizer."""

    folder: Path
    train_shards: list[Path]
    val_shards: list[Path]
    tokenizer: Tokenizer
    manifest: dict[str, Any] | None
    val_byte_files: list[Path] = field(default_factory=list)
    """Side-cars of the validation shards; where there are none the tokenizer counts bytes."""

    def train_stream(self) -> TokenStream:
        """The training tokens as an endless stream; every id is checked."""
        return TokenStream(self.train_shards, self.tokenizer.vocab_size)

    def validation_text(self, length: int, limit_targets: int | None = None) -> Text:
        """The tokens of ``validation_tokens``, with the bytes of each target.

        It is a ``PgolfError`` if a side-car does not fit, or normalisation makes the text longer and nobody
        allowed it.
        """
        tokens = self.validation_tokens(length, limit_targets)
        if self.val_byte_files:
            return Text(tokens, self._byte_file_counts(tokens))
        found = self.normalisation("val")
        if found is not None and found.makes_longer and not (self.manifest or {}).get("added_bytes_allowed"):
            raise PgolfError(f"{self.folder}: {longer_text(found)}")
        return Text(tokens, self.tokenizer.byte_table.count_stream(tokens))

    def _byte_file_counts(self, tokens: Tokens) -> ByteCounts:
        """What the side-cars say of every target among the first tokens of the validation split."""
        bos, pairs = self.tokenizer.bos_id, zip(self.val_byte_files, self.val_shards, strict=True)
        counts = np.concatenate([read_byte_counts(path, shard, bos) for path, shard in pairs])
        counts = counts[1 : len(tokens)]
        # Of what is scored: elsewhere they might count fewer instead.
        text = self.tokenizer.byte_table.count_stream(tokens).sum(dtype=np.int64)
        said = counts.sum(dtype=np.int64)
        if not said:
            raise PgolfError(f"{self.val_byte_files[0]}: counts no bytes at all; fetch the data again")
        if said > (1 + MOST_ADDED) * text:
            raise PgolfError(
                f"{self.val_byte_files[0]}: says that the scored text has {said:,} bytes, but its tokens "
                f"spell no more than {text:,}, so a score would be too good; fetch the data again "
                "(transforms that make the text shorter are not supported)"
            )
        return counts

    def normalisation(self, split: Split) -> Normalisation | None:
        """What normalisation did to a split's text; None where that is not recorded or does not count."""
        if self.manifest is None or (split == "val" and self.val_byte_files):
            return None
        return normalisation_of(self.manifest["splits"][split])

    def warning(self) -> str:
        """What to say beside every score on the validation text; empty if there is nothing."""
        found = self.normalisation("val")
        if found is None or not found.makes_longer:
            return ""
        return f"the score is too good: normalisation {found} of validation"

    def validation_tokens(self, length: int, limit_targets: int | None = None) -> Tokens:
        """The validation tokens that are scored, uint16; at most the first ``limit_targets`` (1 or more).

        As in the references the stream is cut to a multiple of the window's ``length``: ((n - 1) // length) *
        length + 1 tokens; a stream shorter than one window is kept whole. Fewer than two tokens, or a bad or
        missing shard, are a ``PgolfError``.
        """
        assert limit_targets is None or limit_targets > 0
        # One shard after the other: each is a file that stays open as long as it is in use.
        tokens = np.empty(sum(map(shard_length, self.val_shards)), dtype=np.uint16)
        end = 0
        for path in self.val_shards:
            shard = read_shard(path, self.tokenizer.vocab_size)
            start, end = end, end + len(shard)
            tokens[start:end] = shard
        targets = len(tokens) - 1
        if targets < 1:
            remedy = "prepare it with --val-fraction"
            raise PgolfError(f"{self.folder}: holds no validation tokens (*_val_*.bin); {remedy}")
        if missing := self.missing_shards("val"):
            # A score on part of the validation text would pass for one on all of it.
            path = self.folder / missing[0]
            raise PgolfError(f"{path}: absent, but {MANIFEST} lists it; prepare the data again")
        if targets >= length:
            targets -= targets % length
        return tokens[: min(targets, limit_targets or targets) + 1]

    def missing_shards(self, split: Split) -> list[str]:
        """Names of the shards of a split that the manifest lists and the folder lacks."""
        if self.manifest is None:
            return []
        present = {path.name for path in (self.train_shards if split == "train" else self.val_shards)}
        listed = (shard["name"] for shard in self.manifest["splits"][split]["shards"])
        return [name for name in listed if name not in present]

    def fingerprint(self) -> str:
        """A quick digest of the training data: names, sizes, and both ends of every shard."""
        digest = hashlib.sha256(self.tokenizer.digest.encode())
        for path in self.train_shards:
            digest.update(f"{path.name}:{path.stat().st_size};".encode())
            with path.open("rb") as file:
                digest.update(file.read(HEADER_BYTES + 65536))
                file.seek(-min(65536, path.stat().st_size), 2)
                digest.update(file.read())
        return digest.hexdigest()


def check_folder(folder: Path) -> None:
    """Raise a ``PgolfError`` if there is no such folder."""
    if not folder.is_dir():
        raise PgolfError(f"{folder}: no such data folder; make one with `pgolf data prepare`")


def open_dataset(folder: Path, tokenizer: Path | None = None, vocab_size: int | None = None) -> Dataset:
    """Open a prepared folder, or a bare folder of ``*_train_*.bin`` and ``*_val_*.bin`` shards.

    A tokenizer has to be named where the folder holds none; ``vocab_size`` is what it must have.
    What is missing, wrong or damaged is a ``PgolfError``.
    """
    check_folder(folder)
    train, val = (token_shards(folder, split) for split in SPLITS)
    if not train and not val:
        raise PgolfError(f"{folder}: holds no shards (NAME_train_000000.bin, NAME_val_000000.bin)")
    manifest = _own_manifest(folder / MANIFEST)
    model = tokenizer or find_tokenizer(folder)
    if model is None:
        remedy = "pass --tokenizer MODEL, the one the shards were made with"
        raise PgolfError(f"{folder}: holds no {TOKENIZER}; {remedy}")
    opened = Tokenizer.load(model)
    if vocab_size is not None and opened.vocab_size != vocab_size:
        raise PgolfError(
            f"{opened.path}: has {opened.vocab_size} pieces, but the recipe's model.vocab_size is "
            f"{vocab_size}; train with --set model.vocab_size={opened.vocab_size} (a trained model needs "
            "data of its own vocabulary)"
        )
    check_usable(opened)
    if manifest is not None and opened.digest != manifest["tokenizer"]["sha256"]:
        raise PgolfError(f"{opened.path}: is not the tokenizer that {folder} was prepared with")
    return Dataset(folder, train, val, opened, manifest, byte_files(folder, val, "val"))


def normalisation_of(split: Mapping[str, Any]) -> Normalisation:
    """What a manifest's entry of a split says about normalisation."""
    change = split["bytes_normalized"] - split["bytes_original"]
    # Manifests of earlier versions hold the sum alone.
    added = split.get("bytes_added", max(change, 0))
    return Normalisation(split["bytes_original"], added, added - change, split.get("documents_changed", 0))


def longer_text(found: Normalisation) -> str:
    """Why text that normalisation makes longer is refused, and what to do."""
    return (
        f"the tokenizer's normalisation {found} of validation, and bits per byte of longer text are too "
        "good; use a tokenizer with identity normalisation, or prepare the data with --allow-added-bytes"
    )


def _own_manifest(path: Path) -> dict[str, Any] | None:
    """What `data prepare` wrote, with the parts that are read later; another program's file is ignored."""
    found = read_json(path) if path.is_file() else None
    if not isinstance(found, dict) or "format" not in found:
        return None
    try:
        sound = isinstance(found["tokenizer"]["sha256"], str)
        for split in (found["splits"][name] for name in SPLITS):
            sound &= all(isinstance(shard["name"], str) for shard in split["shards"])
            later = (split.get(name, 0) for name in ("bytes_added", "documents_changed"))
            counts = split["bytes_original"], split["bytes_normalized"], *later
            sound &= all(isinstance(count, int) for count in counts)
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise PgolfError(f"{path}: a damaged manifest; prepare the data again")
    return found


def find_tokenizer(folder: Path) -> Path | None:
    """The tokenizer in a data folder, or in the official tree beside it; None if that is not clear."""
    if (folder / TOKENIZER).is_file():
        return folder / TOKENIZER
    # The official tree keeps tokenizers beside the data sets: datasets/NAME/*.bin, tokenizers/*.model. A
    # folder that is a link may lie in such a tree, or lead into one.
    for place in (folder.absolute(), folder.resolve()):
        beside = sorted(place.parent.parent.glob("tokenizers/*.model"))
        if beside:
            manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
            named = [path for path in beside if path.stem in json.dumps(manifest)] if manifest else beside
            return named[0] if len(named) == 1 else None
    return None
