"""What a memory costs beside a model: microseconds per target and bytes, and both at another length.

Real text is counted, block by block, as a scorer does: each block is scored with a model's probabilities,
then received. The model's are made up, since only their number matters here; adding them up is in the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pgolf.bench.harness import cpu_model
from pgolf.data.dataset import Dataset
from pgolf.errors import PgolfError
from pgolf.memory.memory import Memory, Probabilities, Start, Tokens, memory_bytes
from pgolf.memory.stored import start_of
from pgolf.recipe.sections import MemorySection
from pgolf.runtime.environment import environment

STAGES = {
    "linear": MemorySection(mixing="linear", experts=()),
    "logistic, all experts": MemorySection(mixing="logistic"),
}
_PARTS = 10
_WARM_UP = 64


def bench_memory(
    dataset: Dataset,
    targets: int,
    extrapolate: int,
    block: int = 1024,
    order: int = 6,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score the first ``targets`` of the training text with a memory of each of ``STAGES``.

    Args:
        dataset: text and tokenizer.
        targets: how many, at least 10.
        extrapolate: another number of targets to tell seconds and bytes for.
        block: targets scored at a time, at most.
        order: tokens of the longest context.
        progress: told (targets done, all targets).

    Returns:
        JSON values: for each stage CPU and wall microseconds per target, CPU microseconds of each tenth of
        the text, bytes of memory per million targets, seconds and bytes at ``extrapolate``, bits per target,
        and the environment. Other work on the machine disturbs CPU time less. PgolfError where there is less
        text.
    """
    stream = dataset.train_stream()
    if targets + 1 > stream.total:
        remedy = f"has {stream.total - 1:,} training targets; give --targets no more"
        raise PgolfError(f"{dataset.folder}: {remedy}")
    text = stream.take(0, targets + 1)
    start = start_of(dataset.tokenizer.pieces, dataset.tokenizer.bos_id, text)
    rows, done = [], 0

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, len(STAGES) * targets)

    for name, stage in STAGES.items():
        section = stage.model_copy(update={"order": order})
        row: dict[str, Any] = {"stage": name, **_score(section, start, text, block, report)}
        growth = _growth(row["cpu_microseconds_tenths"], targets)
        size = memory_bytes(section, start.vocab_size, targets)
        larger = memory_bytes(section, start.vocab_size, extrapolate)
        row |= {"bytes_per_million": 1e6 * size / targets, "microseconds_per_doubling": growth[1]}
        row |= {"extrapolated_seconds": _seconds(growth, extrapolate), "extrapolated_bytes": larger}
        rows.append(row)
    scope = f"{targets:,} targets of {dataset.folder} in blocks of {block:,}, beside a model's probabilities"
    return {
        "bench": "memory",
        "scope": scope,
        "vocab_size": start.vocab_size,
        "order": order,
        "extrapolated_targets": extrapolate,
        "rows": rows,
        "environment": environment(torch.device("cpu")) | {"cpu": cpu_model()},
    }


def _score(
    section: MemorySection, start: Start, text: Tokens, block: int, report: Callable[[int], None]
) -> dict[str, Any]:
    """Times and cost of a text whose first token is no target."""
    targets, model = len(text) - 1, _made_up(start, block)
    # What numba compiles or loads at the first call is no part of it.
    warm = Memory(section, start, _WARM_UP)
    warm.losses(text[1:2], model[:1])
    warm.receive(text[1:2], model[:1])
    memory = Memory(section, start, len(text))
    memory.receive(text[:1])
    cpu, wall, nats = [], 0.0, 0.0
    for part in np.array_split(text[1:], _PARTS):
        started, cpu_started = time.perf_counter(), time.process_time()
        for first in range(0, len(part), block):
            tokens = part[first : first + block]
            nats += float(memory.losses(tokens, model[: len(tokens)]).sum(dtype=np.float64))
            memory.receive(tokens, model[: len(tokens)])
        cpu.append(1e6 * (time.process_time() - cpu_started) / len(part))
        wall += time.perf_counter() - started
        report(len(part))
    return {
        "cpu_microseconds": float(np.mean(cpu)),
        "microseconds": 1e6 * wall / targets,
        "cpu_microseconds_tenths": cpu,
        "bits_per_target": nats / np.log(2) / targets,
    }


def _made_up(start: Start, block: int) -> Probabilities:
    """Probabilities (block, V): the frequencies, each row with its own noise."""
    noise = np.random.default_rng(0).lognormal(size=(block, start.vocab_size))
    rows = noise * np.maximum(2.0**start.levels - 1, 0.01)
    return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)


def _growth(tenths: list[float], targets: int) -> tuple[float, float]:
    """(a, b) of a + b * log2(n): the microseconds that target n takes; the larger the tables, the slower."""
    middles = (np.arange(_PARTS) + 0.5) * targets / _PARTS
    slope, first = np.polyfit(np.log2(middles), tenths, 1)
    # Larger tables are never faster: a slow beginning, with cold caches, does not make them so.
    return (float(first), float(slope)) if slope > 0 else (float(np.mean(tenths)), 0.0)


def _seconds(growth: tuple[float, float], targets: int) -> float:
    """Those of n targets: the integral of ``_growth``."""
    first, slope = growth
    return 1e-6 * targets * (first + slope * (np.log2(targets) - 1 / np.log(2)))
