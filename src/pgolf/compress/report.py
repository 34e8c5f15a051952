"""What packing did: the sizes, and what each tensor costs and loses, as predicted and as measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pgolf.compress.calibrate import Calibration
from pgolf.compress.container import coded_sizes
from pgolf.compress.stored import Quantized, Stored, dequantize
from pgolf.model.gpt import GPT
from pgolf.model.load import model_from
from pgolf.optim.routing import quantizer_group
from pgolf.recipe.recipe import Recipe

if TYPE_CHECKING:
    from pgolf.runtime.progress import Note

TENSOR_COLUMNS = ("tensor", "bits per weight", "bytes", "predicted", "measured")
SPLIT_COLUMNS = ("stored", "tokens of text", "bits per byte", "counts")
# Multiply-adds that measuring may take: a few seconds on two cores.
_WORK = 8.0e10
_FEWEST_TOKENS, _MOST_TOKENS = 256, 2048
# Positions of a forward pass; fewer would spend more time on starting operations than on computing.
_PASS = 4096


@dataclass(frozen=True)
class TensorReport:
    """One tensor of an artifact."""

    name: str
    group: str
    """Its quantizer group."""
    entries: int
    width: int
    """Bits that hold its largest code, or 16 or 32 for floats."""
    bits_per_weight: float
    """Coded bits, steps included, by entry."""
    bytes: int
    """Coded bytes, steps included."""
    predicted: float | None
    """Rise of the loss in nats per token that its errors should cause, on the calibration text."""
    measured: float | None
    """Rise of the loss in nats per token with only this tensor as stored, on (part of) that text."""


@dataclass(frozen=True)
class PackReport:
    """Where the bytes of an artifact went."""

    cap: int
    """Largest total allowed."""
    total_bytes: int
    """Model and code; a tokenizer only if it counts."""
    model_bytes: int
    """Size of the artifact file."""
    code_bytes: int
    """Packed size of the scoring code."""
    raw_code_bytes: int
    """The scoring code as it is; it does not count."""
    scheme: str
    coder: str
    level: int
    """Level of the coder that was used."""
    five_bit_cores: tuple[int, ...]
    """Cores that had to be coded with 5 bits."""
    origin: dict[str, Any] = field(repr=False)
    """What the artifact says about how it was made."""
    tensors: list[TensorReport] = field(repr=False)
    """Their bytes are those of the range coder, whatever coder was used."""
    tokenizer_bytes: int = 0
    """Of the artifact, for the tokenizer that it carries."""
    tokenizer_counts: bool = False
    """Whether these are part of the total."""

    @property
    def groups(self) -> dict[str, dict[str, int]]:
        """Per group of tensors: tensors, entries and coded bytes."""
        groups: dict[str, dict[str, int]] = {}
        for tensor in self.tensors:
            group = groups.setdefault(tensor.group, {"tensors": 0, "entries": 0, "bytes": 0})
            for key, value in (("tensors", 1), ("entries", tensor.entries), ("bytes", tensor.bytes)):
                group[key] += value
        return groups

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"groups": self.groups}

    def rows(self) -> list[tuple[str, str]]:
        """The report as labelled lines."""
        rows = []
        for name, group in self.groups.items():
            bits = 8 * group["bytes"] / max(group["entries"], 1)
            what = f"{group['entries']:,} numbers in {group['tensors']} tensors, {bits:.2f} bits each"
            rows.append((name, f"{group['bytes']:>12,} bytes: {what}"))
        if memory := self.origin.get("memory"):
            what = f"{memory['ngrams']:,} n-grams, " if memory.get("ngrams") else ""
            what += f"{memory['tokens']:,} tokens of training text"
            rows.append(("memory", f"{memory['bytes']:>12,} bytes: {what}"))
        if self.tokenizer_bytes:
            counts = "" if self.tokenizer_counts else ", not counted"
            rows.append(("tokenizer", f"{self.tokenizer_bytes:>12,} bytes in the artifact{counts}"))
        share = f"{100 * self.total_bytes / self.cap:.2f} %"
        rows += [
            ("artifact", f"{self.model_bytes:>12,} bytes"),
            ("code", f"{self.code_bytes:>12,} bytes packed ({self.raw_code_bytes:,} as source)"),
            ("total", f"{self.total_bytes:>12,} of {self.cap:,} bytes ({share})"),
        ]
        if self.five_bit_cores:
            rows.append(("5-bit layers", ", ".join(map(str, self.five_bit_cores))))
        predicted = [tensor.predicted for tensor in self.tensors if tensor.predicted is not None]
        measured = sum(tensor.measured or 0.0 for tensor in self.tensors)
        if predicted:
            what = f"{sum(predicted):+.5f} nats per token predicted, {measured:+.5f} measured by tensor"
            rows.append(("loss", what))
        return rows

    def split_rows(self) -> list[tuple[str, ...]]:
        """Ways to divide the bytes that were tried, under ``SPLIT_COLUMNS``; empty where none was chosen."""
        tried = self.origin.get("memory", {}).get("split", [])
        return [
            (f"{size:,}", f"{tokens:,}", f"{bpb:.4f}", f"{counts[0]:,}" if counts else "0")
            for size, tokens, bpb, *counts in tried[1:] and tried
        ]

    def tensor_rows(self) -> list[tuple[str, ...]]:
        """One row per quantized tensor, under ``TENSOR_COLUMNS``."""
        rows: list[tuple[str, ...]] = []
        for tensor in self.tensors:
            if tensor.width <= 8:
                rises = (
                    "" if rise is None else f"{round(rise, 5) + 0.0:+.5f}"
                    for rise in (tensor.predicted, tensor.measured)
                )
                rows.append((tensor.name, f"{tensor.bits_per_weight:.2f}", f"{tensor.bytes:,}", *rises))
        return rows


def describe(
    state: Mapping[str, Tensor],
    stored: Mapping[str, Stored],
    recipe: Recipe,
    calibration: Calibration | None,
    note: Note,
) -> list[TensorReport]:
    """What each tensor of a state costs and, on the calibration text, loses as it is stored."""
    sizes = {name: sum(parts) for name, parts in coded_sizes(stored).items()}
    predicted = {} if calibration is None else _predicted_rises(state, stored, calibration)
    measured = {} if calibration is None else _measured_rises(state, stored, recipe, calibration, note)
    reports = []
    for name, value in stored.items():
        if isinstance(value, Quantized):
            count, width = value.codes.numel(), value.bits
        else:
            count, width = value.numel(), 8 * value.element_size()
        bits = 8 * sizes[name] / max(count, 1)
        losses = predicted.get(name), measured.get(name)
        reports.append(TensorReport(name, quantizer_group(name), count, width, bits, sizes[name], *losses))
    return reports


def _predicted_rises(
    state: Mapping[str, Tensor], stored: Mapping[str, Stored], calibration: Calibration
) -> dict[str, float]:
    """Predicted rise of the loss in nats per token, by matrix whose sensitivity is known."""
    known = calibration.sensitivities
    return {
        name: known[name].loss(state[name].float() - value.dequantize())
        for name, value in stored.items()
        if isinstance(value, Quantized) and name in known
    }


@torch.no_grad()
def _measured_rises(
    state: Mapping[str, Tensor],
    stored: Mapping[str, Stored],
    recipe: Recipe,
    calibration: Calibration,
    note: Note,
) -> dict[str, float]:
    """Rise of the loss by quantized tensor, in nats per token, when that tensor alone is as stored.

    Measured on the first part of the calibration text, so much of it that the work stays bounded.
    """
    network = model_from(recipe.model, state).eval()
    changed = {name: value for name, value in stored.items() if isinstance(value, Quantized)}
    size = sum(tensor.numel() for tensor in state.values())
    count = min(max(int(_WORK / (size * max(len(changed), 1))), _FEWEST_TOKENS), _MOST_TOKENS)
    length = min(calibration.tokens.size(1) - 1, count)
    tokens = calibration.tokens[: count // length, : length + 1]
    exact = _loss(network, tokens)
    rises = {}
    for done, (name, value) in enumerate(changed.items()):
        note("measuring what each tensor costs", done, len(changed))
        parameter = network.get_parameter(name)
        parameter.copy_(dequantize(value))
        rises[name] = _loss(network, tokens) - exact
        parameter.copy_(state[name])
    return rises


def _loss(network: GPT, tokens: Tensor) -> float:
    batches = tokens.split(max(_PASS // (tokens.size(1) - 1), 1))
    total = sum(float(network(batch[:, :-1], batch[:, 1:]).double().sum()) for batch in batches)
    return total / tokens[:, 1:].numel()
