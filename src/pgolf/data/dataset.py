"""A data folder: training shards, validation shards and the tokenizer they were made with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pgolf.data.loader import TokenStream
from pgolf.data.shards import HEADER_BYTES, Tokens, read_shard, shard_length
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.files import read_json

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.model"

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True)
class Dataset:
    """Shards of both splits, in order, with their tokenizer."""

    folder: Path
    train_shards: list[Path]
    val_shards: list[Path]
    tokenizer: Tokenizer
    manifest: dict[str, Any] | None

    def train_stream(self) -> TokenStream:
        """The training tokens as an endless stream; every id is checked."""
        return TokenStream(self.train_shards, self.tokenizer.vocab_size)

    def validation_tokens(self, length: int, limit_targets: int | None = None) -> Tokens:
        """The validation tokens that are scored, uint16.

        As in the references the stream is cut to a multiple of the window: ((n - 1) // length) * length + 1
        tokens; a stream shorter than one window is kept whole.

        Args:
            length: targets per evaluation window.
            limit_targets: if given, keep at most this many targets (1 or more), the first ones.

        Raises:
            PgolfError: fewer than two tokens, or a bad or missing shard.
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
            raise PgolfError(f"{self.folder}: holds no validation tokens (*_val_*.bin); prepare it with --val-fraction")
        if missing := self.missing_shards("val"):
            # A score on part of the validation text would pass for one on all of it.
            raise PgolfError(f"{self.folder / missing[0]}: absent, but {MANIFEST} lists it; prepare the data again")
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
        """A digest of the training data that is quick to compute: names, sizes, and both ends of every shard."""
        digest = hashlib.sha256(self.tokenizer.digest.encode())
        for path in self.train_shards:
            digest.update(f"{path.name}:{path.stat().st_size};".encode())
            with path.open("rb") as file:
                digest.update(file.read(HEADER_BYTES + 65536))
                file.seek(-min(65536, path.stat().st_size), 2)
                digest.update(file.read())
        return digest.hexdigest()


def open_dataset(folder: Path, tokenizer: Path | None = None, vocab_size: int | None = None) -> Dataset:
    """Open a prepared folder, or a bare folder of ``*_train_*.bin`` and ``*_val_*.bin`` shards.

    Args:
        folder: the data.
        tokenizer: the SentencePiece model, needed where the folder holds none.
        vocab_size: the model's; a tokenizer of another size is an error.

    Raises:
        PgolfError: no shards, no tokenizer, one of another size or than the manifest says, or a damaged manifest.
    """
    if not folder.is_dir():
        raise PgolfError(f"{folder}: no such data folder; make one with `pgolf data prepare`")
    train, val = sorted(folder.glob("*_train_*.bin")), sorted(folder.glob("*_val_*.bin"))
    if not train and not val:
        raise PgolfError(f"{folder}: holds no shards (*_train_*.bin, *_val_*.bin)")
    found = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    manifest = _own_manifest(folder / MANIFEST, found)
    opened = Tokenizer.load(tokenizer or _tokenizer_of(folder, found))
    if vocab_size is not None and opened.vocab_size != vocab_size:
        raise PgolfError(
            f"{opened.path}: has {opened.vocab_size} pieces, but the recipe's model.vocab_size is {vocab_size}; train "
            f"with --set model.vocab_size={opened.vocab_size} (a trained model needs data of its own vocabulary)"
        )
    if manifest is not None and opened.digest != manifest["tokenizer"]["sha256"]:
        raise PgolfError(f"{opened.path}: is not the tokenizer that {folder} was prepared with")
    return Dataset(folder, train, val, opened, manifest)


def _own_manifest(path: Path, found: Any) -> dict[str, Any] | None:
    """What `data prepare` wrote, with the parts that are read later present; another program's file is ignored."""
    if not isinstance(found, dict) or "format" not in found:
        return None
    try:
        splits = [found["splits"][split] for split in SPLITS]
        texts = [found["tokenizer"]["sha256"], *(shard["name"] for split in splits for shard in split["shards"])]
        counts = [split[key] for split in splits for key in ("bytes_original", "bytes_normalized")]
        whole = all(isinstance(text, str) for text in texts) and all(isinstance(count, int) for count in counts)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise PgolfError(f"{path}: a damaged manifest; prepare the data again")
    return found


def _tokenizer_of(folder: Path, manifest: Any) -> Path:
    if (folder / TOKENIZER).is_file():
        return folder / TOKENIZER
    # The official tree keeps tokenizers beside the data sets: datasets/NAME/*.bin, tokenizers/*.model.
    beside = sorted(folder.parent.parent.glob("tokenizers/*.model"))
    named = [path for path in beside if path.stem in json.dumps(manifest)] if manifest else beside
    if len(named) == 1:
        return named[0]
    raise PgolfError(f"{folder}: holds no {TOKENIZER}; pass --tokenizer MODEL, the one the shards were made with")
