"""The artifact file: a small checked container for quantized tensors. No pickle, no code.

    magic        8 bytes  "PGOLF\\x00\\x00\\x01" (the last byte is the format version)
    length       4 bytes  little-endian size of the packed header
    digest      16 bytes  first half of SHA-256 over the packed header
    header                JSON, zstd: recipe, tokenizer digest, codec, sections, tensors
    sections              one after the other, each with its size, raw size and digest in the header

There are two sections: "codes" (int8, one byte per code, tensor after tensor) and "floats" (step sizes and
kept tensors). The reader checks every size against the file, the shapes and a limit before it allocates.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from pgolf.compress.quantize import Quantized
from pgolf.compress.scheme import Stored, dequantize_state
from pgolf.errors import PgolfError
from pgolf.recipe import Recipe, recipe_from_tree

MAGIC = b"PGOLF\x00\x00\x01"
_PREFIX = len(MAGIC) + 4 + 16
_MAX_HEADER = 16 << 20
# Larger than any model this library is for; a header that asks for more is hostile.
_MAX_RAW = 1 << 30
_MAX_DIMENSIONS = 8
_BLOCK = 1 << 20
_LZMA_MEMORY = 256 << 20
_DTYPES = {"f2": torch.float16, "f4": torch.float32}


@dataclass(frozen=True)
class Artifact:
    """What an artifact file holds."""

    state: dict[str, Tensor]
    """Float32 tensors."""
    stored: dict[str, Stored]
    """The same as stored: codes and step sizes, or small floats."""
    recipe: Recipe
    tokenizer_digest: str


def encode_artifact(
    stored: Mapping[str, Stored], recipe: Recipe, tokenizer_digest: str, codec: str, level: int
) -> bytes:
    """The bytes of an artifact file."""
    tensors, codes, floats = [], [], []
    for name, value in stored.items():
        if isinstance(value, Quantized):
            tensors.append([name, list(value.codes.shape), value.bits])
            codes.append(value.codes.contiguous().numpy().tobytes())
            floats.append(value.scale.contiguous().numpy().tobytes())
        else:
            kind = {dtype: key for key, dtype in _DTYPES.items()}[value.dtype]
            tensors.append([name, list(value.shape), kind])
            floats.append(value.contiguous().numpy().tobytes())
    raw = [b"".join(codes), b"".join(floats)]
    packed = [_compress(part, codec, level) for part in raw]
    header = {
        "recipe": recipe.model_dump(mode="json"),
        "tokenizer": tokenizer_digest,
        "codec": codec,
        "sections": [[len(p), len(r), _digest(p).hex()] for p, r in zip(packed, raw, strict=True)],
        "tensors": tensors,
    }
    text = zstandard.ZstdCompressor(level=19).compress(json.dumps(header, separators=(",", ":")).encode())
    return MAGIC + len(text).to_bytes(4, "little") + _digest(text) + text + b"".join(packed)


def read_artifact(path: Path) -> Artifact:
    """Open an artifact file.

    Raises:
        PgolfError: absent, foreign, of another version, cut short, damaged or inconsistent.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PgolfError(f"{path}: cannot be read ({error.strerror or error})") from error
    return decode_artifact(content, str(path))


def decode_artifact(content: bytes, where: str) -> Artifact:
    """Parse the bytes of an artifact; ``where`` names them in errors."""
    header, position = _read_header(content, where)
    try:
        sections, tensors, codec = header["sections"], header["tensors"], header["codec"]
        plan = [(str(name), tuple(shape), kind) for name, shape, kind in tensors]
        sizes = [(int(size), int(raw), bytes.fromhex(digest)) for size, raw, digest in sections]
        tokenizer, recipe_tree = str(header["tokenizer"]), dict(header["recipe"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PgolfError(f"{where}: damaged header ({error})") from error
    expected = _planned_sizes(plan, where)
    fits = [raw for _, raw, _ in sizes] == expected and all(size >= 0 for size, _, _ in sizes)
    if not fits or position + sum(size for size, _, _ in sizes) != len(content):
        raise PgolfError(f"{where}: damaged (section sizes do not fit the tensors or the file)")
    raw_sections: list[bytes] = []
    for label, (size, raw, digest) in zip(("codes", "floats"), sizes, strict=True):
        packed = content[position : position + size]
        position += size
        if _digest(packed) != digest:
            raise PgolfError(f"{where}: section {label} is damaged (its checksum does not match)")
        raw_sections.append(_decompress(packed, raw, codec, f"{where}: section {label}"))
    stored = _cut_tensors(plan, raw_sections[0], raw_sections[1])
    recipe = recipe_from_tree(recipe_tree, where)
    return Artifact(dequantize_state(stored), stored, recipe, tokenizer)


def _read_header(content: bytes, where: str) -> tuple[dict[str, Any], int]:
    if content[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise PgolfError(f"{where}: not a pgolf artifact")
    if content[len(MAGIC) - 1 : len(MAGIC)] != MAGIC[-1:]:
        raise PgolfError(f"{where}: has an artifact format that this version of pgolf does not know")
    length = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 4], "little")
    text = content[_PREFIX : _PREFIX + length]
    if len(content) < _PREFIX or len(text) != length:
        raise PgolfError(f"{where}: cut short inside the header")
    if _digest(text) != content[len(MAGIC) + 4 : _PREFIX]:
        raise PgolfError(f"{where}: the header is damaged (its checksum does not match)")
    try:
        header = json.loads(_bounded_zstd(text, _MAX_HEADER))
    except (ValueError, zstandard.ZstdError, RecursionError) as error:
        raise PgolfError(f"{where}: damaged header ({error})") from error
    if not isinstance(header, dict):
        raise PgolfError(f"{where}: damaged header (not an object)")
    return header, _PREFIX + length


def _planned_sizes(plan: list[tuple[str, tuple[int, ...], Any]], where: str) -> list[int]:
    codes = floats = 0
    seen: set[str] = set()
    for name, shape, kind in plan:
        # max(n, 1): an empty tensor must not carry dimensions that no array can have.
        sound = len(shape) <= _MAX_DIMENSIONS and all(type(n) is int and 0 <= n <= _MAX_RAW for n in shape)
        if not sound or math.prod(max(n, 1) for n in shape) > _MAX_RAW:
            raise PgolfError(f"{where}: damaged header (shape of tensor {name!r})")
        entries = math.prod(shape)
        quantized = isinstance(kind, int) and 2 <= kind <= 8 and len(shape) == 2
        kept = isinstance(kind, str) and kind in _DTYPES
        if name in seen or not (quantized or kept):
            raise PgolfError(f"{where}: damaged header (tensor {name!r})")
        seen.add(name)
        codes += entries if quantized else 0
        floats += shape[0] * 2 if quantized else entries * _DTYPES[kind].itemsize
    if codes + floats > _MAX_RAW:
        raise PgolfError(f"{where}: claims {codes + floats} bytes of tensors; refused")
    return [codes, floats]


def _cut_tensors(plan: list[tuple[str, tuple[int, ...], Any]], codes: bytes, floats: bytes) -> dict[str, Stored]:
    stored: dict[str, Stored] = {}
    code_at = float_at = 0
    for name, shape, kind in plan:
        if isinstance(kind, int):
            flat = np.frombuffer(codes, np.int8, math.prod(shape), code_at)
            code_at += flat.nbytes
            scale = np.frombuffer(floats, np.float16, shape[0], float_at)
            float_at += scale.nbytes
            stored[name] = Quantized(torch.from_numpy(flat.copy().reshape(shape)), torch.from_numpy(scale.copy()), kind)
        else:
            kept = np.frombuffer(floats, np.dtype(f"<{kind}"), math.prod(shape), float_at)
            float_at += kept.nbytes
            stored[name] = torch.from_numpy(kept.copy().reshape(shape))
    return stored


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]


def _compress(raw: bytes, codec: str, level: int) -> bytes:
    if codec == "zstd":
        return zstandard.ZstdCompressor(level=level).compress(raw)
    if codec == "lzma":
        return lzma.compress(raw, preset=level | lzma.PRESET_EXTREME)
    return raw


def _decompress(packed: bytes, size: int, codec: str, where: str) -> bytes:
    try:
        if codec == "zstd":
            raw = _bounded_zstd(packed, size)
        elif codec == "lzma":
            raw = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY).decompress(packed, max_length=size + 1)
        elif codec == "none":
            raw = packed
        else:
            raise PgolfError(f"{where} uses codec {codec!r}, which this version of pgolf does not know")
    except (zstandard.ZstdError, lzma.LZMAError, EOFError) as error:
        raise PgolfError(f"{where} cannot be decompressed ({error})") from error
    if len(raw) != size:
        raise PgolfError(f"{where} has {len(raw)} bytes instead of {size}")
    return raw


def _bounded_zstd(packed: bytes, limit: int) -> bytes:
    # Never trust the size that a frame claims: read at most one byte more than allowed.
    blocks, size = [], 0
    with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
        while size <= limit and (block := reader.read(min(_BLOCK, limit + 1 - size))):
            blocks.append(block)
            size += len(block)
    return b"".join(blocks)
