"""What is in an artifact: every tensor with its codes' entropy, every section with its bytes, its origin."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.compress.container import MAGIC, MEMORY, TOKENIZER, Artifact, Section, read_artifact
from pgolf.compress.stored import code_range
from pgolf.errors import PgolfError
from pgolf.optim.routing import ROUTES
from pgolf.runtime.files import reading


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of an artifact, or one of the two matrices of a tensor's correction."""

    name: str
    group: str
    """Quantizer group; "other" for a name that the routing table does not claim."""
    shape: tuple[int, ...]
    dtype: str
    """"codes", or the format of a tensor that is kept as it is: "float16", "float32"."""
    bits: int
    """Width of an entry: of the codes' range, or of the float."""
    float_bytes: int
    """Bytes before coding of steps and factors, or of the kept tensor."""
    counts: tuple[int, ...] = ()
    """How often each code of the width's range occurs, from the smallest up; empty for a kept tensor."""
    code_min: int | None = None
    """Smallest code that occurs; None without codes."""
    code_max: int | None = None
    entropy_bits: float = 0.0
    """Order-0 entropy of all codes together, in bits; 0 for a kept tensor."""
    correction: bool = False
    """Part of a correction: its entries are no weights of the model."""

    @property
    def entries(self) -> int:
        """Numbers of the tensor."""
        return math.prod(self.shape)

    @property
    def entropy_per_weight(self) -> float | None:
        """Order-0 entropy in bits per code; None for a kept or an empty tensor."""
        return self.entropy_bits / self.entries if self.counts and self.entries else None

    def to_json(self) -> dict[str, Any]:
        """The fields and derived figures as JSON values."""
        return asdict(self) | {"entries": self.entries, "entropy_per_weight": self.entropy_per_weight}


@dataclass(frozen=True)
class GroupInfo:
    """All tensors of one quantizer group, corrections included."""

    tensors: int
    weights: int
    """Numbers of the model; those of corrections are none."""
    code_bytes: float
    """Share of the section "codes": the coded bytes, divided in proportion to order-0 entropies."""
    float_bytes: float
    """Share of the section "floats", divided in proportion to bytes before coding."""


@dataclass(frozen=True)
class ArtifactInfo:
    """What ``pgolf inspect`` knows of a file."""

    file: str
    artifact: Artifact
    tensors: tuple[TensorInfo, ...]
    stored_tokens: int | None = None
    """Tokens of the text that a memory reads first; None where the file has no memory."""
    stored_ngrams: int = 0
    """N-grams whose counts it knows before."""

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.artifact.header_bytes + sum(section.size for section in self.artifact.sections)

    @property
    def weights(self) -> int:
        """Numbers of the model."""
        return sum(tensor.entries for tensor in self.tensors if not tensor.correction)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file, header included, memory and tokenizer left out, by numbers of the model."""
        beside = self.section(MEMORY).size + self.section(TOKENIZER).size
        return 8 * (self.file_bytes - beside) / max(self.weights, 1)

    @property
    def codes(self) -> int:
        """Codes in the file, those of corrections included."""
        return sum(tensor.entries for tensor in self.tensors if tensor.counts)

    @property
    def entropy_bytes(self) -> float:
        """Sum of the tensors' order-0 entropies, in bytes."""
        return sum(tensor.entropy_bits for tensor in self.tensors) / 8

    def section(self, name: str) -> Section:
        """The section of this name; of no bytes where the file has none."""
        found = (section for section in self.artifact.sections if section.name == name)
        return next(found, Section(name, 0, 0))

    def groups(self) -> dict[str, GroupInfo]:
        """Where the bytes went, by quantizer group, in the order of the tensors.

        A coder that learns over all tensors has no exact answer; see ``GroupInfo`` for how sections are
        divided.
        """
        members: dict[str, list[TensorInfo]] = {}
        for tensor in self.tensors:
            members.setdefault(tensor.group, []).append(tensor)
        codes, floats = self.section("codes"), self.section("floats")
        per_code_byte = codes.size / self.entropy_bytes if self.entropy_bytes else 0.0
        per_float_byte = floats.size / floats.raw if floats.raw else 0.0
        return {
            group: GroupInfo(
                tensors=sum(not tensor.correction for tensor in inside),
                weights=sum(tensor.entries for tensor in inside if not tensor.correction),
                code_bytes=per_code_byte * sum(tensor.entropy_bits for tensor in inside) / 8,
                float_bytes=per_float_byte * sum(tensor.float_bytes for tensor in inside),
            )
            for group, inside in members.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        held = self.artifact
        figures = ("weights", "bits_per_weight", "entropy_bytes", "stored_tokens", "stored_ngrams")
        return {
            "file": self.file,
            "file_bytes": self.file_bytes,
            "format": MAGIC[-1],
            "coder": held.coder,
            "header_bytes": held.header_bytes,
            "sections": {part.name: {"bytes": part.size, "raw": part.raw} for part in held.sections},
            **{name: getattr(self, name) for name in figures},
            "recipe": {"name": held.recipe.name, "sha256": held.recipe.digest()},
            "tokenizer_sha256": held.tokenizer_digest,
            "origin": held.origin,
            "groups": {name: asdict(group) for name, group in self.groups().items()},
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def inspect_artifact(path: Path) -> ArtifactInfo:
    """Read an artifact and describe it.

    A run folder, a weights file or anything else that is no artifact, or a damaged one, is a ``PgolfError``.
    """
    _refuse_weights(path)
    artifact, stored_tokens, stored_ngrams = read_artifact(path), None, 0
    if artifact.memory:
        from pgolf.memory.stored import read_section

        size = artifact.recipe.model.vocab_size
        section = read_section(artifact.memory, size, str(path))
        stored_tokens, stored_ngrams = section.tokens, max(section.ngrams[0] - size, 0)
    tensors = tuple(describe_tensors(artifact.arrays))
    return ArtifactInfo(str(path), artifact, tensors, stored_tokens, stored_ngrams)


def describe_tensors(stored: Mapping[str, Any]) -> Iterator[TensorInfo]:
    """A row per tensor, of torch or of arrays; the two matrices of a correction follow theirs."""
    for name, value in stored.items():
        group = group_or_other(name)
        if not hasattr(value, "codes"):
            kept = np.asarray(value)
            yield TensorInfo(name, group, kept.shape, str(kept.dtype), 8 * kept.itemsize, kept.nbytes)
            continue
        yield _describe_matrix(name, group, value, correction=False)
        if value.correction is not None:
            for side, part in zip(("rows", "columns"), value.correction, strict=True):
                yield _describe_matrix(f"{name}, correction of {side}", group, part, correction=True)


def group_or_other(name: str) -> str:
    """The quantizer group of a tensor of any model; "other" if the routing table does not claim it."""
    claims = [group for pattern, _, group, *_ in ROUTES if re.fullmatch(pattern, name)]
    return claims[0] if len(claims) == 1 else "other"


def _describe_matrix(name: str, group: str, value: Any, correction: bool) -> TensorInfo:
    (low, high), codes = code_range(value.bits), np.asarray(value.codes)
    counts = np.bincount(codes.ravel().astype(np.int64) - low, minlength=high - low + 1)
    used = np.flatnonzero(counts)
    seen = counts[used].astype(np.float64)
    return TensorInfo(
        name=name,
        group=group,
        shape=codes.shape,
        dtype="codes",
        bits=value.bits,
        float_bytes=sum(2 * len(steps) for steps in (value.scale, value.columns) if steps is not None),
        counts=tuple(counts.tolist()),
        code_min=low + int(used[0]) if len(used) else None,
        code_max=low + int(used[-1]) if len(used) else None,
        # What its codes cost at least if each is coded alone, by one table made for them.
        entropy_bits=float((seen * np.log2(seen.sum() / seen)).sum()),
        correction=correction,
    )


def _refuse_weights(path: Path) -> None:
    """Say what to do with what is often confused with an artifact; anything else is left to the reader."""
    if path.is_dir():
        remedy = f"pack it first: pgolf pack {path} --out FILE.pgolf"
        if found := sorted(path.glob("*.pgolf")):
            remedy = f"name one in it: {found[0]}"
        raise PgolfError(f"{path}: is a folder; pgolf inspect reads artifacts, so {remedy}")
    with reading(path) as file:
        start, size = file.read(9), os.fstat(file.fileno()).st_size
    # safetensors: the length of a JSON object, then the object.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size:
        raise PgolfError(
            f"{path}: holds weights; pgolf inspect reads artifacts, so pack them first: "
            f"pgolf pack {path} --out FILE.pgolf"
        )
