"""Packing: from weights to an artifact under a byte cap, verified by reading it back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.compress.code_size import code_bytes, raw_code_bytes
from pgolf.compress.container import decode_artifact, encode_artifact
from pgolf.compress.quantize import Quantized, code_range
from pgolf.compress.scheme import Stored, quantize_state, stored_bits
from pgolf.errors import PgolfError
from pgolf.files import write_bytes
from pgolf.model.gpt import GPT
from pgolf.optim.routing import quantizer_group
from pgolf.recipe import Recipe

_HEADER_ESTIMATE = 3000
_TRAINED_RMS = 0.14


@dataclass(frozen=True)
class PackReport:
    """Where the bytes of an artifact went."""

    cap: int
    """Largest total allowed."""
    total_bytes: int
    """Model and code."""
    model_bytes: int
    """Size of the artifact file."""
    code_bytes: int
    """Packed size of the scoring code."""
    raw_code_bytes: int
    """The scoring code as it is; it does not count."""
    level: int
    """Level of the codec that was used."""
    five_bit_cores: list[int]
    """Cores that had to be coded with 5 bits."""
    groups: dict[str, dict[str, int]]
    """Per group of tensors: tensors, entries, and bytes before the codec (codes at their width)."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """The report as labelled lines."""
        rows = [
            (
                name,
                f"{group['bytes']:>12,} bytes before coding: {group['entries']:,} numbers, {group['tensors']} tensors",
            )
            for name, group in self.groups.items()
        ]
        rows += [
            ("artifact", f"{self.model_bytes:>12,} bytes"),
            ("code", f"{self.code_bytes:>12,} bytes packed ({self.raw_code_bytes:,} as source)"),
            ("total", f"{self.total_bytes:>12,} of {self.cap:,} bytes"),
        ]
        if self.five_bit_cores:
            rows.append(("5-bit layers", ", ".join(map(str, self.five_bit_cores))))
        return rows


def pack(
    state: Mapping[str, Tensor], recipe: Recipe, tokenizer_digest: str, out: Path, cap: int | None = None
) -> PackReport:
    """Quantize and code weights, verify the result, and write it.

    Tries the recipe's codec levels in order, then, if the recipe allows it, 5 bits for one layer after the
    other from the middle outward, until the artifact and the code fit.

    Args:
        state: named float32 tensors.
        recipe: goes into the artifact; its compress section says how to pack.
        tokenizer_digest: goes into the artifact.
        out: file to write.
        cap: largest total in bytes; the recipe's by default.

    Raises:
        PgolfError: nothing tried fits; the message says the smallest total reached. Nothing is written.
    """
    limit, code = cap or recipe.compress.cap, code_bytes()
    smallest = None
    for five_bit in _fallbacks(recipe):
        stored = quantize_state(state, recipe.compress, frozenset(five_bit))
        for level in recipe.compress.level:
            content = encode_artifact(stored, recipe, tokenizer_digest, recipe.compress.codec, level)
            total = len(content) + code
            smallest = total if smallest is None else min(smallest, total)
            if total <= limit:
                _verify(content, stored, recipe)
                write_bytes(out, content)
                groups = _group_sizes(stored)
                return PackReport(limit, total, len(content), code, raw_code_bytes(), level, sorted(five_bit), groups)
    raise PgolfError(
        f"{out}: does not fit the cap of {limit:,} bytes; the smallest total reached is {smallest:,} "
        f"(code {code:,}); raise --cap, lower compress.bits or shrink the model"
    )


def middle_out(count: int) -> list[int]:
    """0 to count - 1 from the middle outward: for 11 that is 5, 6, 4, 7, 3, ..."""
    middle = count // 2
    order = [layer for offset in range(count) for layer in (middle + offset, middle - offset)]
    return [layer for layer in dict.fromkeys(order) if 0 <= layer < count]


def predicted_bytes(recipe: Recipe) -> int:
    """Estimate of the artifact's size before training.

    Rows of trained weights are close to normal, so the codes cost about the entropy of a normal variable
    in units of the step: log2(rms * sqrt(2 pi e) / step). An absmax step follows from the expected largest
    of a row's entries; where a scale floor sets the step, the rows' rms is taken as 0.14, which is what the
    published artifacts of #644 and #1232 imply. The codec is taken to spend 2 % more than the entropy.
    """
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in GPT(recipe.model).named_parameters()}
    bits = 8.0 * _HEADER_ESTIMATE
    for name, shape in shapes.items():
        width = stored_bits(name, shape, recipe.compress)
        bits += shape.numel() * (width if width > 8 else _expected_code_bits(width, shape[1], recipe))
        bits += 16 * shape[0] if width <= 8 else 0
    return int(bits / 8)


def _expected_code_bits(width: int, columns: int, recipe: Recipe) -> float:
    highest = code_range(width)[1]
    step = math.sqrt(2 * math.log(max(columns, 2))) / highest  # in units of the rms
    floor = recipe.compress.int8_scale_floor if width == 8 else recipe.compress.scale_floor
    if floor:
        step = max(step, floor / highest / _TRAINED_RMS)
    entropy = math.log2(math.sqrt(2 * math.pi * math.e) / step)
    return min(max(1.02 * entropy, 0.1), width)


def _fallbacks(recipe: Recipe) -> Iterator[list[int]]:
    yield []
    if recipe.compress.fallback == "int5_middle_out":
        order = middle_out(recipe.model.cores)
        for count in range(1, len(order) + 1):
            yield order[:count]


def _verify(content: bytes, stored: Mapping[str, Stored], recipe: Recipe) -> None:
    """Read the bytes back; anything but the very same tensors is a bug of ours, not of the user."""
    artifact = decode_artifact(content, "the packed artifact")
    assert artifact.recipe == recipe
    assert artifact.stored.keys() == stored.keys()
    for name, value in stored.items():
        back = artifact.stored[name]
        if isinstance(value, Quantized):
            assert isinstance(back, Quantized)
            assert torch.equal(back.codes, value.codes), name
            assert torch.equal(back.scale, value.scale), name
        else:
            assert isinstance(back, Tensor)
            assert torch.equal(back, value), name


def _group_sizes(stored: Mapping[str, Stored]) -> dict[str, dict[str, int]]:
    groups: dict[str, dict[str, int]] = {}
    for name, value in stored.items():
        group = groups.setdefault(quantizer_group(name), {"tensors": 0, "entries": 0, "bytes": 0})
        if isinstance(value, Quantized):
            entries, size = value.codes.numel(), value.codes.numel() * value.bits // 8 + value.scale.numel() * 2
        else:
            entries, size = value.numel(), value.numel() * value.element_size()
        group["tensors"] += 1
        group["entries"] += entries
        group["bytes"] += size
    return groups
