"""Every coder on the same quantized tensors: bytes, and seconds to encode and to decode.

What is coded are the very arrays of an artifact: codes, steps, factors, kept tensors. Every decoder must
return them to the last bit. Raw arrays go without names and shapes, which favours their coders by a few
hundred bytes beside torch.save and the complete artifact.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from pgolf.compress.coders import CODERS, Array, ByteCoder, Coder, Kind
from pgolf.compress.container import decode_artifact, encode_artifact, read_artifact
from pgolf.compress.inspect import describe_tensors
from pgolf.compress.stored import Quantized, Stored
from pgolf.recipe.recipe import Recipe

Progress = Callable[[int, int], None]
REFERENCE = "torch.save + zstd-22"
BOUND = "order-0 entropy"
ARTIFACT = "range coder"
_WAYS = 7


@dataclass(frozen=True)
class Compared:
    """What one coder makes of the tensors."""

    coder: str
    bytes: int | None = None
    """None: its package is not installed."""
    percent: float | None = None
    """Of the bytes of ``REFERENCE``."""
    encode_seconds: float | None = None
    """Wall-clock time of one encoding; None for a bound."""
    decode_seconds: float | None = None
    """Wall-clock time of one decoding, from bytes to arrays."""
    note: str = ""
    """What else to know of the row."""


def compare_coders(
    stored: Mapping[str, Stored],
    recipe: Recipe | None = None,
    tokenizer_digest: str = "",
    origin: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[Compared]:
    """Code the same tensors in every way.

    Args:
        stored: tensors by name; they need not be those of a pgolf model.
        recipe, tokenizer_digest, origin: for the header of the complete artifact; by default a small one.
        progress: told (coders done, all coders).

    Returns:
        A row per coder. Bytes of raw arrays are without names and shapes; those of torch.save and of the
        artifact with them.
    """
    about = recipe or Recipe(), tokenizer_digest, origin
    report = progress or (lambda done, total: None)
    report(0, _WAYS)
    rows = []
    for row in _compared(stored, *about):
        rows.append(row)
        report(len(rows), _WAYS)
    whole = next(row.bytes for row in rows if row.coder == REFERENCE)
    assert whole
    return [replace(row, percent=100 * row.bytes / whole) if row.bytes is not None else row for row in rows]


def compare_artifact(path: Path, progress: Progress | None = None) -> list[Compared]:
    """``compare_coders`` on what an artifact file holds; PgolfError where it is none."""
    artifact = read_artifact(path)
    about = artifact.recipe, artifact.tokenizer_digest, artifact.origin
    return compare_coders(artifact.stored, *about, progress)


def bound_bytes(stored: Mapping[str, Stored]) -> int:
    """Order-0 entropy of the codes, tensor by tensor, plus steps, factors and kept tensors as they are.

    No coder: the tables that would reach it cost nothing here. A coder that looks further than at one code
    after the other can go below it.
    """
    tensors = list(describe_tensors(stored))
    return math.ceil(sum(tensor.entropy_bits for tensor in tensors) / 8) + sum(t.float_bytes for t in tensors)


def _compared(
    stored: Mapping[str, Stored], recipe: Recipe, tokenizer_digest: str, origin: Mapping[str, Any] | None
) -> Iterator[Compared]:
    arrays = _arrays(stored)
    kinds = [Kind(array.shape, array.dtype.str[1:]) for array in arrays]

    def measure(
        name: str, encode: Callable[[], bytes], decode: Callable[[bytes], Sequence[Array]], note: str = ""
    ) -> Compared:
        started = time.perf_counter()
        content = encode()
        encoded = time.perf_counter()
        back = decode(content)
        decoded = time.perf_counter()
        for one, other in zip(back, arrays, strict=True):
            assert (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes()), name
        return Compared(name, len(content), None, encoded - started, decoded - encoded, note)

    def raw(name: str, coder: Coder) -> Compared:
        pairs = list(zip(kinds, arrays, strict=True))
        return measure(
            f"raw arrays + {name}",
            lambda: coder.encode(pairs, coder.highest_level),
            lambda content: coder.decode(content, kinds),
        )

    for level in (16, 22):
        yield measure(f"torch.save + zstd-{level}", partial(_save, stored, level), _load)
    yield raw("zstd-22", CODERS["zstd"])
    brotli = _brotli()
    missing = Compared("raw arrays + brotli-11", note="not installed: pip install brotli")
    yield missing if brotli is None else raw("brotli-11", brotli)
    yield raw("lzma-9e", CODERS["lzma"])
    yield Compared(BOUND, bound_bytes(stored), note="a bound")
    yield measure(
        ARTIFACT,
        lambda: encode_artifact(stored, recipe, tokenizer_digest, "range", 1, origin),
        lambda content: _arrays(decode_artifact(content, "the compared artifact").stored),
        "whole artifact",
    )


def _tensors(value: Stored) -> list[Tensor]:
    """Codes, steps, factors, the same of a correction's matrices; or the kept tensor."""
    if isinstance(value, Tensor):
        return [value]
    own = [tensor for tensor in (value.codes, value.scale, value.columns) if tensor is not None]
    return own + [tensor for part in value.correction or () for tensor in _tensors(part)]


def _arrays(stored: Mapping[str, Stored]) -> list[Array]:
    return _sorted(tensor for value in stored.values() for tensor in _tensors(value))


def _sorted(tensors: Iterable[Tensor]) -> list[Array]:
    """Codes before floats, as in an artifact: like beside like is what compressors of bytes do well on."""
    arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
    return sorted(arrays, key=lambda array: array.dtype != np.int8)


def _save(stored: Mapping[str, Stored], level: int) -> bytes:
    """What the references write: a dictionary of tensors, pickled and compressed."""
    saved = {}
    for name, value in stored.items():
        # Cloned: torch.save writes all of a storage, even if a tensor shows a part of it.
        parts = tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in _tensors(value))
        saved[name] = parts if isinstance(value, Quantized) else parts[0]
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return zstandard.ZstdCompressor(level=level).compress(buffer.getvalue())


def _load(content: bytes) -> list[Array]:
    loaded = torch.load(io.BytesIO(zstandard.ZstdDecompressor().decompress(content)), weights_only=True)
    parts = [[value] if isinstance(value, Tensor) else value for value in loaded.values()]
    return _sorted(tensor for part in parts for tensor in part)


def _brotli() -> ByteCoder | None:
    """Brotli with its largest standard window, if the package is there."""
    try:
        import brotli
    except ImportError:
        return None
    return ByteCoder(
        11,
        lambda raw, level: brotli.compress(raw, quality=level, lgwin=24),
        lambda packed, limit: brotli.decompress(packed),
    )
