"""What is in an artifact: tensors, sections, origin; where codes are decoded, their entropy and bytes too."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.compress.container import (
    MAGIC,
    MEMORY,
    TOKENIZER,
    Artifact,
    Entry,
    Section,
    coded_sizes,
    parse_artifact,
)
from pgolf.compress.stored import code_range
from pgolf.errors import PgolfError
from pgolf.optim.routing import ROUTES
from pgolf.runtime.files import read_bytes, reading


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
    """How often each code of the width's range occurs, from the smallest up; empty for a kept tensor, and
    where nothing was decoded.
    """
    code_min: int | None = None
    """Smallest code that occurs; None without codes."""
    code_max: int | None = None
    entropy_bits: float = 0.0
    """Order-0 entropy of all codes together, in bits; 0 without codes."""
    correction: bool = False
    """Part of a correction: its entries are no weights of the model."""

    @property
    def entries(self) -> int:
        """Numbers of the tensor."""
        return math.prod(self.shape)

    @property
    def entropy_per_weight(self) -> float | None:
        """Order-0 entropy in bits per code; None without codes."""
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
    """Of the section "codes"; those of another coder are divided as the range coder's would be."""
    float_bytes: float
    """The same of the section "floats"."""


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
    coded: Mapping[str, list[int]] | None = None
    """``coded_sizes``; None where nothing was decoded."""

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
        return sum(tensor.entries for tensor in self.tensors if tensor.dtype == "codes")

    @property
    def entropy_bytes(self) -> float | None:
        """Sum of the tensors' order-0 entropies, in bytes; None where nothing was decoded."""
        return None if self.coded is None else sum(tensor.entropy_bits for tensor in self.tensors) / 8

    def section(self, name: str) -> Section:
        """The section of this name; of no bytes where the file has none."""
        found = (section for section in self.artifact.sections if section.name == name)
        return next(found, Section(name, 0, 0))

    def groups(self) -> dict[str, GroupInfo]:
        """Where the bytes went, by quantizer group, in the order of the tensors; {} without codes."""
        if (coded := self.coded) is None:
            return {}
        members: dict[str, list[TensorInfo]] = {}
        for tensor in self.tensors:
            members.setdefault(tensor.group, []).append(tensor)

        def share(section: int, inside: list[TensorInfo]) -> float:
            sizes = {name: parts[section] for name, parts in coded.items()}
            part = sum(sizes.get(tensor.name, 0) for tensor in inside) / max(sum(sizes.values()), 1)
            return part * self.artifact.sections[section].size

        return {
            group: GroupInfo(
                tensors=sum(not tensor.correction for tensor in inside),
                weights=sum(tensor.entries for tensor in inside if not tensor.correction),
                code_bytes=share(0, inside),
                float_bytes=share(1, inside),
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


def inspect_artifact(path: Path, codes: bool = False) -> ArtifactInfo:
    """Read an artifact and describe it; ``codes``: decode them too, which takes half a second longer.

    A run folder, a weights file or anything else that is no artifact, or a damaged one, is a ``PgolfError``.
    """
    _refuse_weights(path)
    artifact, stored_tokens, stored_ngrams = parse_artifact(read_bytes(path), str(path)), None, 0
    if artifact.memory:
        from pgolf.memory.stored import read_section

        size = artifact.recipe.model.vocab_size
        section = read_section(artifact.memory, size, str(path))
        stored_tokens, stored_ngrams = section.tokens, max(section.ngrams[0] - size, 0)
    tensors = tuple(describe_tensors(artifact.arrays) if codes else _described(artifact.tensors))
    coded = coded_sizes(artifact.arrays) if codes else None
    return ArtifactInfo(str(path), artifact, tensors, stored_tokens, stored_ngrams, coded)


def describe_tensors(stored: Mapping[str, Any]) -> Iterator[TensorInfo]:
    """A row per tensor, of torch or of arrays; the two matrices of a correction follow theirs."""
    for name, value in stored.items():
        if not hasattr(value, "codes"):
            kept = np.asarray(value)
            yield from _described([Entry(name, kept.shape, kept.dtype.str[1:], 0, 0, 0, 0)])
            continue
        matrices = [value, *(value.correction or ())]
        rank = len(matrices[-1].codes) if value.correction else 0
        entry = Entry(name, np.shape(value.codes), "", value.bits, int(value.columns is not None), rank, 0)
        for tensor, matrix in zip(_described([entry]), matrices, strict=True):
            yield _counted(tensor, np.asarray(matrix.codes))


def _described(entries: Sequence[Entry]) -> Iterator[TensorInfo]:
    """The same by what the header says, without codes."""
    for name, shape, dtype, bits, columns, rank, _ in entries:
        group = group_or_other(name)
        if not bits:
            kept = np.dtype(dtype)
            size = math.prod(shape) * kept.itemsize
            yield TensorInfo(name, group, tuple(shape), kept.name, 8 * kept.itemsize, size)
            continue
        steps = 2 * (shape[0] + columns * shape[1])
        yield TensorInfo(name, group, tuple(shape), "codes", bits, steps)
        for side, length in zip(("rows", "columns"), shape if rank else (), strict=False):
            part = f"{name}, correction of {side}"
            yield TensorInfo(part, group, (rank, length), "codes", 8, 2 * rank, correction=True)


def group_or_other(name: str) -> str:
    """The quantizer group of a tensor of any model; "other" if the routing table does not claim it."""
    claims = [group for pattern, _, group, *_ in ROUTES if re.fullmatch(pattern, name)]
    return claims[0] if len(claims) == 1 else "other"


def _counted(tensor: TensorInfo, codes: NDArray[np.int8]) -> TensorInfo:
    low, high = code_range(tensor.bits)
    counts = np.bincount(codes.ravel().astype(np.int64) - low, minlength=high - low + 1)
    used = np.flatnonzero(counts)
    seen = counts[used].astype(np.float64)
    return replace(
        tensor,
        counts=tuple(counts.tolist()),
        code_min=low + int(used[0]) if len(used) else None,
        code_max=low + int(used[-1]) if len(used) else None,
        # What its codes cost at least if each is coded alone, by one table made for them.
        entropy_bits=float((seen * np.log2(seen.sum() / seen)).sum()),
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
