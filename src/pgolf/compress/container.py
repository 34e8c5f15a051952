"""The artifact file: a small checked container for quantized tensors. No pickle, no code.

    magic        8 bytes  "PGOLF\\x00\\x00\\x03" (the last byte is the format version)
    length       4 bytes  little-endian size of the packed header
    digest      16 bytes  first half of SHA-256 over the packed header
    header                JSON, zstd: recipe and its digest, tokenizer digest, origin, coder, sections,
                          tensors
    sections              one after the other; the header has their sizes and digests, packed and decoded

There are two sections: "codes" (int8, one per entry of a quantized matrix) and "floats" (step sizes, factors
of columns, and tensors that are kept). Where the recipe has a memory there is a third, "memory": what it
begins with (``pgolf.memory.stored``), as it is. The last may be "tokenizer": the tokenizer's file, zstd,
which is left as it is here; its entry in the header ends with its name. The reader checks every size against
the file, the shapes and a limit before it allocates, every digest, and every value it decodes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zstandard

from pgolf.compress.coders import CODERS, Array, Kind, bounded_zstd, code_array
from pgolf.compress.stored import Quantized, Stored, as_tensors, code_range, dequantize_state
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe, recipe_from_tree
from pgolf.runtime.files import read_bytes

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"PGOLF\x00\x00\x03"
SECTIONS = ("codes", "floats")
MEMORY, TOKENIZER = "memory", "tokenizer"
_PREFIX = len(MAGIC) + 4 + 16
_MAX_HEADER = 1 << 20
# Numbers; more than any model this library is for. A header that asks for more is hostile.
MAX_ENTRIES = 1 << 28
_MAX_TENSORS = 1 << 11
_MAX_DIMENSIONS = 8
# Numbers to decode or multiply that any file may ask for, and more for each byte it has. An honest file,
# whose numbers cost bits, stays far below; a hostile one of a few hundred bytes could keep its reader busy
# for minutes.
_FREE_WORK, _WORK_PER_BYTE = 1 << 22, 1 << 10
_FLOATS = ("f2", "f4")


@dataclass(frozen=True)
class Section:
    """Where a section of an artifact lies and what it is worth."""

    name: str
    size: int
    """Bytes in the file."""
    raw: int
    """Bytes of its arrays as they are."""
    digest: bytes = b""
    """Of its arrays."""


@dataclass(frozen=True)
class Artifact:
    """What an artifact file holds."""

    where: str
    """Names the file in errors."""
    tensors: list[Entry]
    parts: dict[str, bytes]
    """The sections by name, as they are in the file."""
    recipe: Recipe
    tokenizer_digest: str
    origin: dict[str, Any]
    """How it was packed: version, scheme, source of the calibration text, ..."""
    coder: str
    header_bytes: int
    sections: tuple[Section, ...]

    @property
    def memory(self) -> bytes:
        """What ``memory.stored.write_start`` has made, empty where there is none."""
        return self.parts.get(MEMORY, b"")

    @property
    def tokenizer(self) -> bytes:
        """The tokenizer's file, zstd; empty where it is not in the file."""
        return self.parts.get(TOKENIZER, b"")

    @functools.cached_property
    def arrays(self) -> dict[str, Any]:
        """Tensors by name: codes and step sizes (a ``Quantized`` of arrays), or an array of small floats.

        PgolfError where a section does not hold what the header says.
        """
        found = []
        for section, wanted in zip(self.sections, _kinds(self.tensors), strict=False):
            what = f"{self.where}: section {section.name}"
            try:
                decoded = CODERS[self.coder].decode(self.parts[section.name], wanted)
            except ValueError as error:
                raise PgolfError(f"{what} cannot be decoded ({error})") from error
            if _digest(b"".join(array.tobytes() for array in decoded)) != section.digest:
                raise PgolfError(f"{what} decodes to something else than was encoded")
            found.append(decoded)
        return _assemble(self.tensors, found, self.where)

    @functools.cached_property
    def stored(self) -> dict[str, Stored]:
        """The same as tensors."""
        return {name: as_tensors(value) for name, value in self.arrays.items()}

    @functools.cached_property
    def state(self) -> dict[str, Tensor]:
        """Float32 tensors."""
        return dequantize_state(self.stored)


def encode_artifact(
    stored: Mapping[str, Stored],
    recipe: Recipe,
    tokenizer_digest: str,
    codec: str,
    level: int,
    origin: Mapping[str, Any] | None = None,
    memory: bytes = b"",
    tokenizer: bytes = b"",
) -> bytes:
    """The bytes of an artifact file.

    Args:
        stored: tensors by name.
        recipe, tokenizer_digest: go into the header.
        codec: name of a coder.
        level: its level.
        origin: JSON values that say how the tensors were made; go into the header.
        memory: the section of this name; empty for none.
        tokenizer: the same, the tokenizer's file, of the digest, zstd.
    """
    packed, sections = [], []
    for arrays in _arrays(stored):
        content = CODERS[codec].encode(arrays, level)
        raw = b"".join(array.tobytes() for _, array in arrays)
        packed.append(content)
        sections.append([len(content), len(raw), _digest(content).hex(), _digest(raw).hex()])
    for more, name in ((memory, []), (tokenizer, [TOKENIZER])):
        if more:
            packed.append(more)
            sections.append([len(more), len(more), *[_digest(more).hex()] * 2, *name])
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
    return MAGIC + len(text).to_bytes(4, "little") + _digest(text) + text + b"".join(packed)


def coded_sizes(stored: Mapping[str, Any]) -> dict[str, list[int]]:
    """Bytes of each tensor in each section under the range coder, coded in this order; tensors or arrays."""
    from pgolf.compress.entropy import Stream

    sizes: dict[str, list[int]] = {name: [] for name in stored}
    for section in range(len(SECTIONS)):
        stream = Stream(entries=sum(map(_entries, stored.values())))
        for name, value in stored.items():
            before = stream.size()
            for kind, array in _arrays({name: value})[section]:
                code_array(stream, kind, array)
            sizes[name].append(stream.size() - before)
    return sizes


def read_artifact(path: Path) -> Artifact:
    """Open an artifact file; PgolfError where it is absent, foreign, of another version, damaged or
    inconsistent.
    """
    return decode_artifact(read_bytes(path), str(path))


def decode_artifact(content: bytes, where: str) -> Artifact:
    """Parse the bytes of an artifact; ``where`` names them in errors, those of ``read_artifact``."""
    artifact = parse_artifact(content, where)
    _ = artifact.arrays
    return artifact


def parse_artifact(content: bytes, where: str) -> Artifact:
    """The same before its tensors are decoded: nothing is known to be damaged but what sections hold."""
    header, start = _read_header(content, where)
    try:
        named = [(str(name), tuple(shape), kind) for name, shape, kind in header["tensors"]]
        listed = header["sections"]
        sections = [(int(a), int(b), bytes.fromhex(c), bytes.fromhex(d)) for a, b, c, d, *_ in listed]
        more = [entry[4] if len(entry) > 4 else MEMORY for entry in listed[len(SECTIONS) :]]
        tokenizer, tree, digest = str(header["tokenizer"]), dict(header["recipe"]), str(header["digest"])
        codec, origin = str(header["codec"]), dict(header["origin"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PgolfError(f"{where}: damaged header ({error})") from error
    tensors = _checked(named, len(content), where)
    if codec not in CODERS:
        raise PgolfError(f"{where}: uses coder {codec!r}, which this version of pgolf does not know")
    expected = [sum(kind.nbytes for kind in section) for section in _kinds(tensors)]
    expected += [size for size, *_ in sections[len(SECTIONS) :]]
    fits = [raw for _, raw, _, _ in sections] == expected and all(size >= 0 for size, *_ in sections)
    fits &= more in ([], [MEMORY], [TOKENIZER], [MEMORY, TOKENIZER])
    if not fits or start + sum(size for size, *_ in sections) != len(content):
        raise PgolfError(f"{where}: damaged (section sizes do not fit the tensors or the file)")
    position, parts, found = start, {}, []
    for name, (size, raw, packed_digest, raw_digest) in zip((*SECTIONS, *more), sections, strict=True):
        parts[name] = content[position : position + size]
        position += size
        if _digest(parts[name]) != packed_digest:
            raise PgolfError(f"{where}: section {name} is damaged (its checksum does not match)")
        found.append(Section(name, size, raw, raw_digest))
    recipe = recipe_from_tree(tree, where)
    if recipe.digest() != digest:
        raise PgolfError(f"{where}: damaged (its recipe does not match the recipe's digest)")
    return Artifact(where, tensors, parts, recipe, tokenizer, origin, codec, start, tuple(found))


def _entries(value: Any) -> int:
    shape, size = (value.codes.shape, 1) if isinstance(value, Quantized) else (value.shape, 4)
    return size * math.prod(shape)


def _describe(value: Stored) -> list[Any]:
    if not isinstance(value, Quantized):
        return [list(value.shape), _float_kind(value).dtype]
    rank = 0 if value.correction is None else len(value.correction[0].codes)
    extras = [int(value.columns is not None), rank, *([1] if value.trellis else [])]
    kind = [value.bits, *extras] if any(extras) else value.bits
    return [list(value.codes.shape), kind]


def _arrays(stored: Mapping[str, Stored]) -> tuple[list[tuple[Kind, Array]], list[tuple[Kind, Array]]]:
    """The arrays of both sections, in the order in which ``_kinds`` expects and ``_assemble`` takes them."""
    codes: list[tuple[Kind, Array]] = []
    floats: list[tuple[Kind, Array]] = []

    def keep(value: Tensor) -> None:
        floats.append((_float_kind(value), np.asarray(value, order="C")))

    def add(value: Quantized) -> None:
        kind = _code_kind(tuple(value.codes.shape), value.bits, value.trellis)
        codes.append((kind, np.asarray(value.codes, order="C")))
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


def _float_kind(value: Tensor) -> Kind:
    kind = np.asarray(value).dtype.str[1:]
    assert kind in _FLOATS, kind
    return Kind(tuple(value.shape), kind)


def _code_kind(shape: tuple[int, ...], bits: int, trellis: bool = False) -> Kind:
    return Kind(shape, "i1", *code_range(bits), trellis)


class Entry(NamedTuple):
    """A tensor in the header: a kept one, of a dtype ("f2", "f4"), or a quantized one, of so many bits."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    columns: int
    """1 if columns have factors, else 0."""
    rank: int
    """Of the correction."""
    trellis: int
    """1 if codes are a walk through a trellis, else 0."""


def _checked(named: Sequence[tuple[str, tuple[Any, ...], Any]], size: int, where: str) -> list[Entry]:
    """The tensors of a header that may be hostile, of a file of ``size`` bytes."""
    entries: dict[str, Entry] = {}
    numbers = work = 0
    if len(named) > _MAX_TENSORS:
        raise PgolfError(f"{where}: claims more than {_MAX_TENSORS:,} tensors; refused")
    for name, shape, kind in named:
        sound = len(shape) <= _MAX_DIMENSIONS and all(type(n) is int and 0 <= n <= MAX_ENTRIES for n in shape)
        # max(n, 1): an empty tensor must not carry dimensions that no array can have.
        if not sound or math.prod(max(n, 1) for n in shape) > MAX_ENTRIES:
            raise PgolfError(f"{where}: damaged header (shape of tensor {name!r})")
        parts = (kind, 0, 0, 0, 0) if isinstance(kind, str) and kind in _FLOATS else _quantized(kind, shape)
        if name in entries or parts is None:
            raise PgolfError(f"{where}: damaged header (tensor {name!r})")
        entry = entries[name] = Entry(name, shape, *parts)
        count = math.prod(shape) + (sum(shape) * (entry.rank + 2) if entry.bits else 0)
        numbers += count
        work += count + math.prod(shape) * entry.rank
        if numbers > MAX_ENTRIES:
            raise PgolfError(f"{where}: claims more than {MAX_ENTRIES:,} numbers; refused")
        if work > _FREE_WORK + size * _WORK_PER_BYTE:
            raise PgolfError(f"{where}: claims more numbers than its {size:,} bytes can mean; refused")
    return list(entries.values())


def _quantized(kind: Any, shape: tuple[int, ...]) -> tuple[str, int, int, int, int] | None:
    parts = [kind, 0, 0] if type(kind) is int else kind
    if len(shape) != 2 or not isinstance(parts, list):
        return None
    parts = [*parts, 0] if len(parts) == 3 else parts
    if [type(part) for part in parts] != [int] * 4:
        return None
    bits, columns, rank, trellis = parts
    sound = 2 <= bits <= 8 and columns in (0, 1) and 0 <= rank <= 1024 and trellis in (0, 1)
    return ("", bits, columns, rank, trellis) if sound else None


def _kinds(tensors: Sequence[Entry]) -> tuple[list[Kind], list[Kind]]:
    """What the sections must hold."""
    codes: list[Kind] = []
    floats: list[Kind] = []
    for tensor in tensors:
        if not tensor.bits:
            floats.append(Kind(tensor.shape, tensor.dtype))
            continue
        codes.append(_code_kind(tensor.shape, tensor.bits, bool(tensor.trellis)))
        floats.append(Kind(tensor.shape[:1], "f2"))
        floats += [Kind(tensor.shape[1:], "f2")] * tensor.columns
        for side in tensor.shape if tensor.rank else ():
            codes.append(_code_kind((tensor.rank, side), 8))
            floats.append(Kind((tensor.rank,), "f2"))
    return codes, floats


def _assemble(tensors: Sequence[Entry], arrays: Sequence[Sequence[Any]], where: str) -> dict[str, Any]:
    codes, floats = (iter(section) for section in arrays)

    def matrix(name: str, bits: int, columns: int) -> Quantized:
        found, (low, high) = next(codes), code_range(bits)
        if found.size and not low <= int(found.min()) <= int(found.max()) <= high:
            raise PgolfError(f"{where}: tensor {name} holds a code outside its {bits} bits")
        scale, factors = next(floats), next(floats) if columns else None
        for steps in (scale, factors):
            if steps is not None and not (np.isfinite(steps) & (steps >= 0)).all():
                raise PgolfError(f"{where}: tensor {name} holds a step size that is negative or not finite")
        return Quantized(found, scale, bits, factors)

    held: dict[str, Any] = {}
    for name, _, _, bits, columns, rank, trellis in tensors:
        if bits:
            whole = matrix(name, bits, columns)
            correction = (matrix(name, 8, 0), matrix(name, 8, 0)) if rank else None
            held[name] = whole._replace(correction=correction, trellis=bool(trellis))
            continue
        held[name] = next(floats)
        if not np.isfinite(held[name]).all():
            raise PgolfError(f"{where}: tensor {name} holds a value that is not finite")
    return held


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
        header = json.loads(bounded_zstd(text, _MAX_HEADER))
    except (ValueError, RecursionError) as error:
        raise PgolfError(f"{where}: damaged header ({error})") from error
    if not isinstance(header, dict):
        raise PgolfError(f"{where}: damaged header (not an object)")
    return header, _PREFIX + length


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]
