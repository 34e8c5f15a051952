"""The artifact file, whose format is in ``format.py``, from tensors and to tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor

from pgolf.compress.coders import CODERS, Array, Kind, code_array
from pgolf.compress.entropy import Model, Writer
from pgolf.compress.format import MAGIC, SECTIONS, Contents, Matrix, code_kind, digest_of, read_contents
from pgolf.compress.quantize import Quantized, Stored, dequantize_state
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.files import read_bytes

_NAMES = {torch.float16: "f2", torch.float32: "f4"}


@dataclass(frozen=True, kw_only=True)
class Artifact(Contents):
    """What an artifact file holds, as tensors."""

    stored: dict[str, Stored]
    """Tensors by name: codes and step sizes, or small floats."""
    state: dict[str, Tensor]
    """The same as float32."""


def encode_artifact(
    stored: Mapping[str, Stored],
    recipe: Recipe,
    tokenizer_digest: str,
    codec: str,
    level: int,
    origin: Mapping[str, Any] | None = None,
    memory: bytes = b"",
) -> bytes:
    """The bytes of an artifact file.

    Args:
        stored: tensors by name.
        recipe, tokenizer_digest: go into the header.
        codec: name of a coder.
        level: its level.
        origin: JSON values that say how the tensors were made; go into the header.
        memory: the section of this name; empty for none.
    """
    packed, sections = [], []
    for arrays in _arrays(stored):
        content = CODERS[codec].encode(arrays, level)
        raw = b"".join(array.tobytes() for _, array in arrays)
        packed.append(content)
        sections.append([len(content), len(raw), digest_of(content).hex(), digest_of(raw).hex()])
    if memory:
        packed.append(memory)
        sections.append([len(memory), len(memory), *[digest_of(memory).hex()] * 2])
    header = {
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        "digest": recipe.digest(),
        "tokenizer": tokenizer_digest,
        "origin": dict(origin or {}),
        "codec": codec,
        "sections": sections,
        "tensors": [[name, *_describe(value)] for name, value in stored.items()],
    }
    text = zstandard.ZstdCompressor(level=19).compress(json.dumps(header, separators=(",", ":")).encode())
    return MAGIC + len(text).to_bytes(4, "little") + digest_of(text) + text + b"".join(packed)


def coded_sizes(stored: Mapping[str, Stored]) -> dict[str, int]:
    """Bytes that each tensor takes under the range coder, steps included, coded in this order."""
    sizes = dict.fromkeys(stored, 0)
    for section in range(len(SECTIONS)):
        writer = Writer()
        model = Model(writer)
        before = 0
        for name, value in stored.items():
            for kind, array in _arrays({name: value})[section]:
                code_array(model, kind, array)
            after = writer.size()
            sizes[name] += after - before
            before = after
    return sizes


def read_artifact(path: Path) -> Artifact:
    """Open an artifact file.

    Raises:
        PgolfError: absent, foreign, of another version, cut short, damaged or inconsistent.
    """
    return decode_artifact(read_bytes(path), str(path))


def decode_artifact(content: bytes, where: str) -> Artifact:
    """Parse the bytes of an artifact; ``where`` names them in errors.

    Raises:
        PgolfError: see ``read_artifact``.
    """
    found = read_contents(content, where)
    stored = {name: _as_tensors(value) for name, value in found.stored.items()}
    return Artifact(**(vars(found) | {"stored": stored, "state": dequantize_state(stored)}))


def _as_tensors(value: Matrix | Array) -> Stored:
    return _quantized(value) if isinstance(value, Matrix) else torch.from_numpy(value)


def _quantized(matrix: Matrix) -> Quantized:
    codes, scale, bits, columns, correction = matrix
    factors = None if columns is None else torch.from_numpy(columns)
    both = None if correction is None else (_quantized(correction[0]), _quantized(correction[1]))
    return Quantized(torch.from_numpy(codes), torch.from_numpy(scale), bits, factors, both)


def _describe(value: Stored) -> list[Any]:
    if isinstance(value, Tensor):
        return [list(value.shape), _NAMES[value.dtype]]
    rank = 0 if value.correction is None else len(value.correction[0].codes)
    extras = value.columns is not None or rank
    kind = [value.bits, int(value.columns is not None), rank] if extras else value.bits
    return [list(value.codes.shape), kind]


def _arrays(stored: Mapping[str, Stored]) -> tuple[list[tuple[Kind, Array]], list[tuple[Kind, Array]]]:
    """The arrays of both sections, in the order in which ``_kinds`` expects and ``_assemble`` takes them."""
    codes: list[tuple[Kind, Array]] = []
    floats: list[tuple[Kind, Array]] = []

    def keep(value: Tensor) -> None:
        floats.append((Kind(tuple(value.shape), _NAMES[value.dtype]), value.contiguous().numpy()))

    def add(value: Quantized) -> None:
        codes.append((code_kind(tuple(value.codes.shape), value.bits), value.codes.contiguous().numpy()))
        keep(value.scale)
        if value.columns is not None:
            keep(value.columns)
        for part in value.correction or ():
            assert part.bits == 8
            add(part)

    for value in stored.values():
        if isinstance(value, Quantized):
            add(value)
        else:
            keep(value)
    return codes, floats
