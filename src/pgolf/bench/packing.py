"""What coders and quantizers are worth: every coder on the codes of any model's weights; the references'
quantizer and the budget solver at the same number of bytes.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.bench.harness import cpu_model
from pgolf.compress.calibrate import calibration_for
from pgolf.compress.compare import Progress, compare_coders
from pgolf.compress.pack import pack
from pgolf.compress.quantize import quantize_matrix
from pgolf.compress.stored import Quantized, Stored
from pgolf.compress.weights import Weights, load_weights, read_safetensors
from pgolf.data.dataset import Dataset
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe
from pgolf.recipe.sections import CompressSection
from pgolf.runs.pipeline import BUDGET, evaluate_weights
from pgolf.runtime.environment import environment
from pgolf.runtime.progress import Note

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


# The references' way: a range per row by its largest magnitude, the nearest code, zstd; embeddings in 8 bits.
_REFERENCE = (
    *("compress.scheme=rowwise", "compress.clip=absmax", "compress.rounding=nearest"),
    *("compress.calibration=none", "compress.fallback=none", "compress.codec=zstd", "compress.level=[22]"),
    *("compress.bits.embedding=8", "compress.bits.other=8"),
)


def bench_quantizers(
    weights: Weights,
    dataset: Dataset,
    widths: tuple[int, ...],
    limit_targets: int | None,
    note: Note = lambda *_: None,
) -> dict[str, Any]:
    """Pack full-precision weights both ways and score them in standard windows on the validation split.

    ``widths`` are bits of the reference's codes; pgolf's artifact may be as large as the reference's. Returns
    JSON values: the float score, and for each width bytes (artifact and code) and gap (packed minus float, in
    bits per byte) of both ways.
    """
    cpu = torch.device("cpu")

    def score(scored: Weights) -> float:
        how = weights.recipe, dataset, "standard", cpu
        return evaluate_weights(scored, *how, limit_targets=limit_targets).val_bpb

    note("scoring the float weights")
    exact, solver = score(weights), weights.recipe.with_overrides(BUDGET)
    note("calibrating")
    calibration = calibration_for(weights.model(), solver, dataset)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.pgolf"

        def gap(recipe: Recipe, cap: int | None) -> tuple[int, float, float]:
            started = time.perf_counter()
            known = None if cap is None else calibration
            report = pack(weights.state, recipe, weights.tokenizer_digest, out, cap or 1 << 40, known, note)
            seconds = time.perf_counter() - started
            return report.total_bytes, score(load_weights(out)) - exact, seconds

        for bits in widths:
            groups = [f"compress.bits.{group}={bits}" for group in ("attention", "mlp", "bigram")]
            size, reference, _ = gap(weights.recipe.with_overrides([*_REFERENCE, *groups]), None)
            ours, own, seconds = gap(solver, size)
            share = abs(own) / abs(reference) if reference else None
            row: dict[str, Any] = {"bits": bits, "bytes_reference": size, "gap_reference": reference}
            rows.append(row | {"bytes": ours, "gap": own, "share": share, "seconds": seconds})
    return {
        "bench": "quantizers",
        "weights": str(weights.source),
        "recipe": weights.recipe.name,
        "parameters": sum(tensor.numel() for tensor in weights.state.values()),
        "float_bpb": exact,
        "limit_targets": limit_targets,
        "rows": rows,
        "environment": environment(cpu) | {"cpu": cpu_model()},
    }
