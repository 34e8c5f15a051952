"""What fuzzing does to an artifact: damage that leaves the checksums, forgery that makes them right again."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import lzma
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
import zstandard
from torch import Tensor

from pgolf.compress.coders import CODERS, Array, Kind
from pgolf.compress.container import MAGIC, Artifact, decode_artifact, encode_artifact
from pgolf.compress.stored import Quantized, Stored, code_range
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe, recipe_from_tree

WHERE = "fuzzed.pgolf"
_PREFIX = len(MAGIC) + 4 + 16
# Bytes and number of arrays up to which a mutation itself decodes or encodes what it asks of the reader.
_FEW_BYTES, _FEW_ARRAYS = 1 << 17, 6000
_ZEROS = bytes(1 << 24)
_BOMBS = {"zstd": zstandard.ZstdCompressor(level=1).compress(_ZEROS), "lzma": lzma.compress(_ZEROS, preset=0)}
_SIZES = (0, 1, 2, 3, 8, 64, 1000, 2048, 4096, *(1 << bits for bits in (16, 20, 27, 28, 31, 40, 64)), -1)
_NUMBERS = (0, -1, 1, 7, 255, 1 << 31, 1 << 63, 1 << 64, 10**4000, 1.5, -0.0, 1e308, np.nan, np.inf)
_WORDS = ("", "x", "\ud800", "\n", "range", "zstd", "none", "f2", "f4", "1" * 5000, "0" * 32)
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, *_NUMBERS, *_WORDS),
    *([], {}, [[]], [[1, 2]], [[[], 1]], [["a", 1]], {"": 0}, [0] * 70, [6, 1, 4], [8, 0, 1 << 40]),
)


class Sample(NamedTuple):
    """A valid artifact, in parts."""

    coder: str
    content: bytes
    header: dict[str, Any]
    sections: list[bytes]
    arrays: list[list[tuple[Kind, Array]]]
    artifact: Artifact


Mutation = Callable[[Random, Sample], bytes]


def make_samples(recipe: Recipe) -> list[Sample]:
    """One artifact for each coder, all of the same tensors: each width, factors, corrections, kept floats."""
    generator = np.random.RandomState(0)

    def steps(count: int) -> Tensor:
        return torch.tensor(generator.rand(count), dtype=torch.float16)

    def codes(rows: int, columns: int, bits: int) -> Quantized:
        low, high = code_range(bits)
        values = np.clip(np.rint(generator.normal(0, high / 2.5, (rows, columns))), low, high)
        return Quantized(torch.tensor(values, dtype=torch.int8), steps(rows), bits)

    stored: dict[str, Stored] = {f"matrix.{b}": codes(9 - b, 5 + 4 * b, b) for b in range(2, 9)}
    stored["columns"] = codes(7, 11, 6)._replace(columns=steps(11))
    stored["correction"] = codes(6, 8, 4)._replace(correction=(codes(3, 6, 8), codes(3, 8, 8)))
    stored["both"] = codes(5, 4, 5)._replace(columns=steps(4), correction=(codes(1, 5, 8), codes(1, 4, 8)))
    stored["kept"] = torch.tensor(generator.normal(size=(2, 3, 4)), dtype=torch.float16)
    stored["exact"] = torch.tensor(generator.normal(size=9), dtype=torch.float32)
    stored["scalar"], stored["none"] = torch.tensor(0.25), torch.zeros(0, 3)
    stored["no.rows"] = codes(0, 4, 6)
    return [_sample(coder, encode_artifact(stored, recipe, "0" * 64, coder, 1)) for coder in CODERS]


def _sample(coder: str, content: bytes) -> Sample:
    header, sections = split(content)
    both = zip(sections, _asked(header), strict=True)
    arrays = [list(zip(kinds, CODERS[coder].decode(part, kinds), strict=True)) for part, kinds in both]
    return Sample(coder, content, header, sections, arrays, decode_artifact(content, WHERE))


def split(content: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the sections of an artifact that is known to be readable."""
    end = _PREFIX + int.from_bytes(content[len(MAGIC) : len(MAGIC) + 4], "little")
    header = json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(content[_PREFIX:end]))
    middle = end + int(header["sections"][0][0])
    return header, [content[end:middle], content[middle:]]


def _asked(header: dict[str, Any]) -> tuple[list[Kind], list[Kind]]:
    """The arrays of both sections that a header asks for, written apart from the reader so as to check it."""
    codes: list[Kind] = []
    floats: list[Kind] = []
    for _, shape, kind in header["tensors"]:
        if isinstance(kind, str):
            floats.append(Kind(tuple(shape), kind))
            continue
        bits, columns, rank = [kind, 0, 0] if isinstance(kind, int) else kind
        sides = [(rank, side) for side in shape] if rank else []
        for (rows, width), high_bits, extra in [(shape, bits, columns), *((side, 8, 0) for side in sides)]:
            codes.append(Kind((rows, width), "i1", *code_range(high_bits)))
            floats += [Kind((rows,), "f2")] + [Kind((width,), "f2")] * extra
    return codes, floats


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]


def _compressed(header: Any) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(json.dumps(header).encode())


def _file(packed_header: bytes, sections: list[bytes]) -> bytes:
    """A file around a packed header, with the header's checksum."""
    size = len(packed_header).to_bytes(4, "little")
    return MAGIC + size + _digest(packed_header) + packed_header + b"".join(sections)


def _repaired(header: dict[str, Any], sections: list[bytes] | None, decoded: bool = True) -> bytes:
    """A file with right sizes and checksums of packed sections, and of ``decoded`` bytes if those are few.
    The ``header`` is changed; without sections they are the zeros that it asks for, or nothing if too many.
    """
    kinds, coder = _asked(header), CODERS[header["codec"]]
    # A matrix without rows still has factors of its columns.
    sizes = [kind.nbytes + max(kind.shape, default=0) for part in kinds for kind in part]
    few = len(sizes) <= _FEW_ARRAYS and min(sizes, default=0) >= 0 and sum(sizes) < _FEW_BYTES
    if sections is None:
        zeros = [[(kind, np.zeros(kind.shape, f"<{kind.dtype}")) for kind in part] for part in kinds if few]
        sections = [coder.encode(part, 1) for part in zeros] or [b"", b""]
    for row, packed, part in zip(header["sections"], sections, kinds, strict=True):
        row[:3] = [len(packed), sum(kind.nbytes for kind in part), _digest(packed).hex()]
        if decoded and few:
            # What the coder raises here it raises again in the reader, where it counts.
            with suppress(Exception):
                row[3] = _digest(b"".join(array.tobytes() for array in coder.decode(packed, part))).hex()
    return _file(_compressed(header), sections)


EDITS = (
    *("bits flipped", "bytes changed", "cut", "bytes inserted"),
    *("region doubled", "regions swapped", "region zeroed", "noise"),
)


def _edit(name: str, choice: Random, content: bytes) -> bytes:
    """The content changed in one of the ways of ``EDITS``."""
    start = choice.randrange(len(content) + 1)
    end = start + choice.choice((1, 2, 4, 16, 100, len(content)))
    before, region, after = content[:start], content[start:end], content[end:]
    match name:
        case "cut":
            return before + after
        case "bytes inserted":
            return before + choice.randbytes(choice.choice((1, 4, 64))) + region + after
        case "region doubled":
            return before + region + region + after
        case "regions swapped":
            a, b, c, d = sorted(choice.randrange(len(content) + 1) for _ in range(4))
            return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]
        case "region zeroed":
            return before + bytes(len(region)) + after
        case "noise":
            return content[: choice.choice((0, 8, 12, _PREFIX))] + choice.randbytes(start)
    changed, flips = bytearray(content), name == "bits flipped"
    for _ in range(choice.choice((1, 1, 2, 8) if flips else (1, 2, 16, 200)) if content else 0):
        place = choice.randrange(len(changed))
        other = choice.choice((0, 255, choice.randrange(256)))
        changed[place] = changed[place] ^ 1 << choice.randrange(8) if flips else other
    return bytes(changed)


def _edited(choice: Random, content: bytes) -> bytes:
    return _edit(choice.choice(EDITS), choice, content)


def _header_text(choice: Random, sample: Sample) -> bytes:
    """Changed characters of the JSON text, or a text made to exhaust its reader."""
    text = _edited(choice, json.dumps(sample.header).encode())
    if choice.random() < 0.2:
        hostile = (b"", b"null", b"[" * 200_000, b"1" * 5000, b'{"a":' * 5000, _ZEROS, b"\xff\xfe{")
        text = choice.choice(hostile)
    return _file(zstandard.ZstdCompressor(level=1).compress(text), sample.sections)


def _header_values(choice: Random, sample: Sample) -> bytes:
    """A value of the header replaced, removed, doubled or wrapped."""
    header = copy.deepcopy(sample.header)
    for _ in range(choice.choice((1, 1, 2, 4))):
        if not (places := _places(header)):
            break
        holder, key = choice.choice(places)
        action = choice.randrange(6)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif action == 2:
            holder[key] = choice.choice(([holder[key]], {"a": holder[key]}, str(holder[key])[:1000]))
        elif action == 3:
            other, index = choice.choice(places)
            holder[key] = copy.deepcopy(other[index])
        else:
            holder[key] = copy.deepcopy(choice.choice(_ODD_VALUES))
    with suppress(PgolfError, KeyError, TypeError, ValueError, AttributeError):
        header["digest"] = recipe_from_tree(header["recipe"], WHERE).digest()
    return _file(_compressed(header), sample.sections)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    pairs: list[Any] = []
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            pairs += [(value, key), *_places(inner)]
    return pairs


def _claims(choice: Random, sample: Sample) -> bytes:
    """Other names, shapes, widths or extras of tensors, with sizes and checksums to match."""
    header = copy.deepcopy(sample.header)
    tensors = header["tensors"]
    for _ in range(choice.choice((1, 1, 2, 5))):
        entry, action = choice.choice(tensors), choice.randrange(8)
        shape = entry[1]
        if action == 0:
            shape[:] = [choice.choice(_SIZES) for _ in range(choice.choice((0, 1, 2, 2, 2, 3, 9)))]
        elif action == 1 and shape:
            shape[choice.randrange(len(shape))] = choice.choice(_SIZES)
        elif action == 2:
            shape.reverse()
        elif action == 3:
            bits = choice.randint(1, 9)
            extras = [bits, choice.randint(0, 2), choice.choice((-1, 0, 1, 2, 3, 64, 1000, 1024, 1025))]
            entry[2] = choice.choice((bits, extras, "f2", "f4"))
        elif action == 4:
            count = choice.choice((1, 2, 10, 50, 50, 300, 2000, 20_000))
            tensors += [[f"more.{i}", list(shape), entry[2]] for i in range(count)]
        elif action == 5 and len(tensors) > 1:
            tensors.remove(entry)
        elif action == 6:
            choice.shuffle(tensors)
        else:
            entry[0] = choice.choice(("", "kept", "a b", "\ud800", "x" * 1000))
    sections = [choice.choice((part, part, b"", choice.randbytes(64))) for part in sample.sections]
    try:
        return _repaired(header, None if choice.random() < 0.3 else sections)
    except (ValueError, KeyError):
        # Codes that are no matrix, or of a width that there is not: nothing to match.
        return _file(_compressed(header), sections)


def _section(decoded: bool, choice: Random, sample: Sample) -> bytes:
    """Changed bytes of a section."""
    sections, which = list(sample.sections), choice.randrange(2)
    sections[which] = _edited(choice, sections[which])
    return _repaired(copy.deepcopy(sample.header), sections, decoded)


def _foreign_coder(choice: Random, sample: Sample) -> bytes:
    """Sections under the name of another coder."""
    other = choice.choice([name for name in CODERS if name != sample.coder])
    return _repaired(copy.deepcopy(sample.header) | {"codec": other}, sample.sections)


def _bomb(choice: Random, sample: Sample) -> bytes:
    """A short section that expands to far more than it should."""
    sections, coder = list(sample.sections), choice.choice(("zstd", "lzma"))
    sections[choice.randrange(2)] = _BOMBS[coder]
    return _repaired(copy.deepcopy(sample.header) | {"codec": coder}, sections, decoded=False)


def _bad_value(choice: Random, sample: Sample) -> bytes:
    """A code outside its width, a negative step or a number that is not finite, with checksums to match."""
    arrays = [[(kind, array.copy()) for kind, array in part] for part in sample.arrays]
    # The range coder has no way to write a code outside its width.
    which = 1 if sample.coder == "range" else choice.randrange(2)
    kind, array = choice.choice([pair for pair in arrays[which] if pair[1].size])
    bad: list[Any] = [np.nan, np.inf, -np.inf]
    if kind.dtype == "i1":
        bad = [code for code in range(-128, 128) if not kind.low <= code <= kind.high]
    elif kind.dtype == "f2" and len(kind.shape) == 1:
        # In the samples these are step sizes and factors.
        bad.append(-1.0)
    array.flat[choice.randrange(array.size)] = choice.choice(bad)
    sections = list(sample.sections)
    sections[which] = CODERS[sample.coder].encode(arrays[which], 1)
    return _repaired(copy.deepcopy(sample.header), sections)


def _damage(name: str, choice: Random, sample: Sample) -> bytes:
    return _edit(name, choice, sample.content)


DAMAGE: dict[str, Mutation] = {name: functools.partial(_damage, name) for name in EDITS}
FORGERY: dict[str, Mutation] = {
    "header bytes, repaired": lambda choice, s: _file(_edited(choice, _compressed(s.header)), s.sections),
    "header text, repaired": _header_text,
    "header values, repaired": _header_values,
    "claims, repaired": _claims,
    "section, repaired": functools.partial(_section, False),
    "section, all repaired": functools.partial(_section, True),
    "other coder, repaired": _foreign_coder,
    "bomb, repaired": _bomb,
    "bad value, repaired": _bad_value,
}
KINDS: dict[str, Mutation] = DAMAGE | FORGERY
# The checksum of the decoded bytes is still the original's.
SAME_OR_REFUSED = {*DAMAGE, "section, repaired"}
MUST_REFUSE = {"bad value, repaired", "bomb, repaired"}
