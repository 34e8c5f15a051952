"""What quantizers are worth: ways to choose steps and codes, in the same file, at the same bytes.

All write the same artifact: matrices as codes with a step per row, coded by the range coder, the rest as
float16. So they differ in three things only: how steps follow from the weights, whether errors are
compensated, and by which moments. One factor on all steps is searched until the file has the bytes asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.bench.harness import cpu_model
from pgolf.compress import budget
from pgolf.compress.calibrate import Calibration, calibration_for
from pgolf.compress.container import encode_artifact
from pgolf.compress.gptq import Order, rounding_order
from pgolf.compress.pack import fit
from pgolf.compress.stored import Stored, dequantize_state
from pgolf.compress.tuning import log_chances
from pgolf.compress.weights import Weights
from pgolf.data.dataset import Dataset
from pgolf.data.shards import Tokens
from pgolf.errors import PgolfError
from pgolf.optim.routing import quantizer_group
from pgolf.recipe.recipe import Recipe
from pgolf.runs.pipeline import BUDGET
from pgolf.runtime.environment import environment
from pgolf.runtime.progress import Note

BITS = (6.0, 5.0, 4.0, 3.0, 2.0, 1.5)
_ABSMAX, _NEAREST, _GPTQ, _SOLVER, _TUNED = "absmax", "std", "std + GPTQ", "pgolf", "pgolf, tuned"
WAYS = (_ABSMAX, _NEAREST, _GPTQ, _SOLVER)
# Steps in standard deviations of a row: 13.0 and 11.5 of them in 31 codes, 14.0 in 63 for embeddings,
# 12.85 in 31 for all others (openai/parameter-golf #2135).
_DEVIATIONS = {"attention": 13.0 / 31, "mlp": 11.5 / 31, "embedding": 14.0 / 63}
_OTHER_DEVIATIONS = 12.85 / 31
# Steps in the largest magnitude of a row: 6 bits, 8 for embeddings (reference #456).
_LARGEST = {"embedding": 1 / 127}
_OTHER_LARGEST = 1 / 31
# That suits the frontier's model. Here embeddings get the best of these parts of it, by training text.
_PARTS = (1.0, 0.5, 0.25, 0.125)
_DAMPING = 0.01
_AT_ONCE = 16


def bench_quantizers(
    weights: Weights,
    dataset: Dataset,
    bits: tuple[float, ...] = BITS,
    limit_targets: int | None = None,
    effort: int = 0,
    note: Note = lambda *_: None,
) -> dict[str, Any]:
    """Store float weights in every way at the same number of bytes, and read validation text with them.

    Args:
        weights: what training saved, not an artifact.
        dataset: its training text is what sensitivities and moments are measured on.
        bits: sizes of the file, in bits for each parameter.
        limit_targets: read only the first ones.
        effort: pack a fifth time with this ``compress.effort``; 0 does not.
        note: told what is being done.

    Returns:
        JSON values: the float score, and for each size and way the bytes, the gap (bits per byte more than
        with the float weights), ``kl`` (mean Kullback-Leibler divergence from what the float model predicts,
        in bits per byte; less noisy than the gap), seconds of one packing, and shares of the gap and of the
        divergence of "std + GPTQ".

    Raises:
        PgolfError: the file holds an artifact, or a size is too small for any way.
    """
    if weights.kind == "artifact":
        raise PgolfError(f"{weights.source}: is packed already; name the run's folder or its weights file")
    recipe = weights.recipe.with_overrides([*BUDGET, f"compress.effort={effort}"])
    note("calibrating")
    calibration = calibration_for(weights.model(), recipe, dataset)
    assert calibration is not None
    text = dataset.validation_text(recipe.evaluation_length, limit_targets)
    held_out = _cut(text.tokens, recipe.evaluation_length)
    compare = _Comparison(weights, held_out, int(text.byte_counts.sum()))
    # The divergence per token will do to choose by.
    choose = _Comparison(weights, calibration.tokens.split(_AT_ONCE), calibration.tokens[:, 1:].numel())
    parameters = sum(tensor.numel() for tensor in weights.state.values())
    rows: list[dict[str, Any]] = []
    ways = (*WAYS, _TUNED) if effort else WAYS
    for size in bits:
        cap = int(size * parameters / 8)
        for way in ways:
            note(f"{way} at {size:g} bits")
            started = time.perf_counter()
            if way in (_SOLVER, _TUNED):
                given = calibration if way == _TUNED else replace(calibration, text=None)
                fits = [_solved(weights, recipe, given, cap)]
            else:
                parts = _PARTS if way != _ABSMAX else (1.0,)
                fits = [_fit(weights, _targets(way, weights, calibration, part), cap, way) for part in parts]
            stored, used = fits[0] if len(fits) == 1 else min(fits, key=lambda fit: choose(fit[0])[1])
            seconds = (time.perf_counter() - started) / len(fits)
            gap, divergence = compare(stored)
            row = {"bits": size, "way": way, "bytes": used, "gap": gap, "kl": divergence}
            rows.append(row | {"seconds": seconds})
        reference = next(row for row in rows if row["bits"] == size and row["way"] == _GPTQ)
        for row in rows[-len(ways) :]:
            row["share_gap"] = row["gap"] / reference["gap"] if reference["gap"] > 0 else None
            row["share_kl"] = row["kl"] / reference["kl"]
    return {
        "bench": "quantizers",
        "weights": str(weights.source),
        "recipe": weights.recipe.name,
        "parameters": parameters,
        "float_bpb": compare.exact,
        "targets": len(text.byte_counts),
        "rows": rows,
        "environment": environment(torch.device("cpu")) | {"cpu": cpu_model()},
    }


def _targets(way: str, weights: Weights, calibration: Calibration, part: float) -> dict[str, budget.Target]:
    """Steps at fineness 1 (those of embeddings times ``part``), factors and compensation of every matrix."""
    targets = {}
    for name, tensor in weights.state.items():
        if not budget.is_budgeted(name, tensor):
            continue
        weight, group = tensor.detach().float(), quantizer_group(name)
        if way == _ABSMAX:
            steps = weight.abs().amax(dim=1) * _LARGEST.get(group, _OTHER_LARGEST)
        else:
            steps = weight.std(dim=1) * _DEVIATIONS.get(group, _OTHER_DEVIATIONS)
        steps = steps * part if group == "embedding" else steps
        order = _plain_order(calibration, name) if way == _GPTQ else None
        targets[name] = budget.Target(weight, steps.clamp_min(1e-10), torch.ones(weight.size(1)), order)
    return targets


def _plain_order(calibration: Calibration, name: str) -> Order:
    """GPTQ's own: the inputs' moments, unweighted; those of a tied embedding are the output layer's."""
    return rounding_order(calibration.sensitivities[name].columns[-1], _DAMPING)


def _solved(weights: Weights, recipe: Recipe, calibration: Calibration, cap: int) -> tuple[Any, int]:
    """What ``pgolf pack`` stores in at most ``cap`` bytes, without code, and its bytes."""
    given = weights.state, recipe, weights.tokenizer_digest, weights.source, cap, 0, calibration
    packed = fit(*given, note=lambda *_: None)
    return packed.stored, len(packed.content)


def _fit(
    weights: Weights, targets: Mapping[str, budget.Target], cap: int, way: str
) -> tuple[dict[str, Stored], int]:
    """The finest grid whose artifact has at most ``cap`` bytes, and its bytes."""
    kept = {name: tensor.detach().half() for name, tensor in weights.state.items() if name not in targets}

    def build(fineness: float) -> tuple[tuple[dict[str, Stored], int], int]:
        stored: dict[str, Stored] = {
            name: kept[name] if name in kept else budget.round_target(targets[name], fineness)
            for name in weights.state
        }
        size = len(encode_artifact(stored, weights.recipe, weights.tokenizer_digest, "range", 1, {}))
        return (stored, size), size

    free = 8 * max(cap - sum(value.nbytes for value in kept.values()), 1)
    entries = sum(target.weight.numel() for target in targets.values())
    slack = weights.recipe.compress.slack
    found = budget.search(build, budget.first_guess(targets, free), cap, slack, entries)
    if found is None:
        raise PgolfError(f"{weights.source}: does not fit {cap:,} bytes with {way!r}; ask for more bits")
    return found


class _Comparison:
    """A model beside its float weights, on the same sequences (N, T + 1) int64."""

    @torch.no_grad()
    def __init__(self, weights: Weights, sequences: Iterable[Tensor], text_bytes: int) -> None:
        self._weights, self._exact = weights, weights.model()
        self._sequences = list(sequences)
        self._unit = math.log(2) * text_bytes
        costs = (_costs(log_chances(self._exact, part[:, :-1]), part) for part in self._sequences)
        self.exact = sum(costs) / self._unit

    @torch.no_grad()
    def __call__(self, stored: Mapping[str, Stored]) -> tuple[float, float]:
        """Gap and divergence, in bits per byte."""
        packed = replace(self._weights, state=dequantize_state(stored)).model()
        gap = divergence = 0.0
        for part in self._sequences:
            exact, found = (log_chances(network, part[:, :-1]) for network in (self._exact, packed))
            gap += _costs(found, part) - _costs(exact, part)
            divergence += float((exact.exp() * (exact - found)).sum(dtype=torch.float64))
        return gap / self._unit, divergence / self._unit


def _costs(chances: Tensor, sequences: Tensor) -> float:
    return -float(chances.gather(-1, sequences[:, 1:, None]).sum(dtype=torch.float64))


def _cut(tokens: Tokens, length: int) -> Iterator[Tensor]:
    """Standard windows of a stream, some at a time; the last may be shorter."""
    stream = torch.from_numpy(tokens.astype(np.int64))
    whole = (len(stream) - 1) // length
    starts = torch.arange(whole) * length
    yield from stream[starts[:, None] + torch.arange(length + 1)].split(_AT_ONCE)
    if len(stream) - 1 > whole * length:
        yield stream[None, whole * length :]
