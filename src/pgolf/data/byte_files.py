"""Byte side-cars: files beside token shards that say how many bytes of text each token stands for.

``NAME_val_bytes_000000.bin`` belongs to ``NAME_val_000000.bin`` and has its layout: the same header, then one
uint16 for each token, 0 for the token that begins a document. Data sets whose tokens do not tell their bytes
by themselves have them (CaseOps); where they exist they are the authority, and the tokenizer is not asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pgolf.data.shards import read_shard
from pgolf.data.tokenizer import ByteCounts
from pgolf.errors import PgolfError


def token_shards(folder: Path, split: str) -> list[Path]:
    """The token shards ``NAME_SPLIT_000000.bin`` of a folder, in order; other files beside them are none."""
    name = re.compile(rf".+_{split}_\d+\.bin")
    return sorted(path for path in folder.glob(f"*_{split}_*.bin") if name.fullmatch(path.name))


def byte_files(folder: Path, shards: Sequence[Path], split: str) -> list[Path]:
    """The side-cars of a folder's shards of a split, one each; empty where there are none.

    Raises:
        PgolfError: a shard has none though others have, or one belongs to no shard.
    """
    found = set(token_shards(folder, f"{split}_bytes"))
    expected = [path.with_name(re.sub(r"(_\d+\.bin)$", r"_bytes\1", path.name)) for path in shards]
    remedy = "fetch the data again, or remove all such files to have the tokenizer count bytes"
    for path in expected if found else ():
        if path not in found:
            raise PgolfError(f"{path}: absent, but there are files of bytes per token for others; {remedy}")
    if alone := sorted(found.difference(expected)):
        raise PgolfError(f"{alone[0]}: holds bytes per token of a shard that is not there; {remedy}")
    return expected if found else []


def read_byte_counts(path: Path, shard: Path, bos: int) -> ByteCounts:
    """Bytes of each token of a shard (n,).

    Raises:
        PgolfError: damaged, of another length than the shard, or it counts bytes for the token that begins
            documents.
    """
    counts, tokens = read_shard(path), read_shard(shard)
    if len(counts) != len(tokens):
        raise PgolfError(
            f"{path}: has {len(counts)} entries, {shard.name} has {len(tokens)} tokens; fetch both again"
        )
    wrong = np.flatnonzero((tokens == bos) & (counts != 0))
    if len(wrong):
        raise PgolfError(
            f"{path}: counts {counts[wrong[0]]} bytes for token {wrong[0]}, which begins a document and has "
            f"none; it does not belong to {shard.name}"
        )
    return np.asarray(counts)
