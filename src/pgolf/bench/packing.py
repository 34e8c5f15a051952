"""What coders are worth: every coder on the codes of any model's weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.bench.harness import cpu_model
from pgolf.compress.compare import Progress, compare_coders
from pgolf.compress.quantize import quantize_matrix
from pgolf.compress.stored import Quantized, Stored
from pgolf.compress.weights import read_safetensors
from pgolf.errors import PgolfError
from pgolf.recipe.sections import CompressSection
from pgolf.runtime.environment import environment

KEEP_BELOW = 8192


def bench_coders(path: Path, bits: int, progress: Progress | None = None) -> dict[str, Any]:
    """Quantize a safetensors file's large matrices to 2 to 8 bits and compare all coders on the codes.

    Returns JSON values: what was coded, a row per coder, and the environment. PgolfError where there is no
    such file, nothing to quantize in it, or values that float16 cannot hold.
    """
    stored, skipped = quantize_file(path, bits)
    matrices = [value for value in stored.values() if isinstance(value, Quantized)]
    kept = [value for value in stored.values() if isinstance(value, Tensor)]
    codes, floats = sum(m.codes.numel() for m in matrices), sum(k.numel() for k in kept)
    rest = f"; left out: {skipped} without floats" if skipped else ""
    scope = f"{len(matrices)} matrices, {codes:,} codes of {bits} bits; {len(kept)} tensors"
    return {
        "bench": "coders",
        "file": str(path),
        "scope": f"{scope}, {floats:,} numbers as fp16{rest}",
        "bits": bits,
        "weights": codes + floats,
        "coders": [asdict(row) for row in compare_coders(stored, progress=progress)],
        "environment": environment(torch.device("cpu")) | {"cpu": cpu_model()},
    }


def quantize_file(path: Path, bits: int) -> tuple[dict[str, Stored], int]:
    """The file's float tensors, and how many were no floats; PgolfError as ``bench_coders``.

    Matrices of more than ``KEEP_BELOW`` entries are quantized per row by the largest magnitude; the others
    are float16.
    """
    tensors, _ = read_safetensors(path)
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    settings = CompressSection(clip="absmax", round_with="stored")
    stored = {name: _store(name, tensor.float(), bits, settings, path) for name, tensor in floats.items()}
    if not any(isinstance(value, Quantized) for value in stored.values()):
        least = f"more than {KEEP_BELOW:,} entries"
        raise PgolfError(f"{path}: holds no matrix of floats with {least} to quantize")
    return stored, len(tensors) - len(floats)


def _store(name: str, tensor: Tensor, bits: int, settings: CompressSection, path: Path) -> Stored:
    largest = torch.finfo(torch.float16).max
    if not bool((tensor.abs() <= largest).all()):
        raise PgolfError(f"{path}: tensor {name} holds a value that is not finite or exceeds {largest:g}")
    if tensor.ndim == 2 and tensor.numel() > KEEP_BELOW:
        return quantize_matrix(tensor, bits, settings)
    return tensor.half()
