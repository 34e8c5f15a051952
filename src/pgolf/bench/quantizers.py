"""What quantization costs: the references' quantizer and the budget solver, at the same number of bytes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgolf.bench.harness import cpu_model
from pgolf.compress.calibrate import calibration_for
from pgolf.compress.pack import pack
from pgolf.compress.weights import Weights, load_weights
from pgolf.data.dataset import Dataset
from pgolf.recipe.recipe import Recipe
from pgolf.runs.pipeline import BUDGET, evaluate_weights
from pgolf.runtime.environment import environment

# The references' way: a range per row by its largest magnitude, the nearest code, zstd; embeddings in 8 bits.
_REFERENCE = (
    "compress.scheme=rowwise",
    "compress.clip=absmax",
    "compress.rounding=nearest",
    "compress.calibration=none",
    "compress.fallback=none",
    "compress.codec=zstd",
    "compress.level=[22]",
    "compress.bits.embedding=8",
    "compress.bits.other=8",
)


def bench_quantizers(
    weights: Weights,
    dataset: Dataset,
    widths: tuple[int, ...],
    limit_targets: int | None,
    note: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Pack weights both ways and score them in standard windows on the validation split.

    Args:
        weights: full precision.
        dataset: training text for calibration, validation text for the scores.
        widths: bits of the reference's codes; pgolf's artifact may be as large as the reference's.
        limit_targets: score only the first ones.
        note: told what is being done.

    Returns:
        JSON values: the float score, and for each width bytes (artifact and code) and gap (packed minus
        float, in bits per byte) of both ways.
    """
    cpu = torch.device("cpu")

    def score(scored: Weights) -> float:
        how = weights.recipe, dataset, "standard", cpu
        return evaluate_weights(scored, *how, limit_targets=limit_targets).val_bpb

    note("scoring the float weights")
    exact = score(weights)
    solver = weights.recipe.with_overrides(BUDGET)
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
