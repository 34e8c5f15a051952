"""What packing did: the sizes, and what each tensor costs and loses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
    """Model and code."""
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
    origin: dict[str, Any]
    """What the artifact says about how it was made."""
    tensors: list[TensorReport]
    """Their bytes are those of the range coder, whatever coder was used."""

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

    def tensor_rows(self) -> list[tuple[str, ...]]:
        """One row per quantized tensor, under ``TENSOR_COLUMNS``."""
        rows: list[tuple[str, ...]] = []
        for tensor in self.tensors:
            if tensor.width <= 8:
                rises = (
                    "" if rise is None else f"{rise:+.5f}" for rise in (tensor.predicted, tensor.measured)
                )
                rows.append((tensor.name, f"{tensor.bits_per_weight:.2f}", f"{tensor.bytes:,}", *rises))
        return rows


TENSOR_COLUMNS = ("tensor", "bits per weight", "bytes", "predicted", "measured")
