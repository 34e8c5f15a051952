"""How benchmarks are measured: warm-up, repeats in alternation with the plain version, medians, paired ratios."""

from __future__ import annotations

import contextlib
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgolf.bench.work import WORK
from pgolf.errors import PgolfError
from pgolf.flops import training_speed
from pgolf.model.fast import textbook
from pgolf.provenance import environment
from pgolf.recipe import Recipe

_WARMUP = 1


def run_bench(what: str, recipe: Recipe, device: torch.device, repeats: int) -> dict[str, Any]:
    """Measure one kind of work.

    Args:
        what: "train" (one optimizer step), "eval" (sliding windows), "ttt" (test-time training) or "pack".
        recipe: the model and its settings; tokens are random, so no data is needed.
        device: where to run.
        repeats: measured executions after one unmeasured.

    Returns:
        JSON values: medians of both ways and our single repeats in milliseconds, tokens per second, the median of
        the paired ratios (plain time / our time: above 1 pgolf is faster) and that of the CPU time, which other work
        on the machine disturbs less, the figures both computed, peak memory in bytes, the recipe's settings and the
        environment; of training also the model's operations per second and their part of the device's peak.

    Raises:
        PgolfError: unknown kind of work, or the two ways disagree.
    """
    if what not in WORK:
        raise PgolfError(f"bench {what}: unknown; use {', '.join(WORK)}")
    measured = WORK[what](recipe, device)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    cpu_times: dict[str, list[float]] = {"ours": [], "plain": []}
    figures: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for index in range(_WARMUP + repeats):
        # The order changes each time: what slows down or speeds up over the run falls on both alike.
        for name in ("ours", "plain") if index % 2 else ("plain", "ours"):
            with textbook() if name == "plain" else contextlib.nullcontext():
                seconds, cpu_seconds, figures[name] = _timed(getattr(measured, name), device)
            if index >= _WARMUP:
                times[name].append(seconds)
                cpu_times[name].append(cpu_seconds)
    difference = abs(figures["ours"] - figures["plain"]) / max(abs(figures["plain"]), 1e-12)
    if difference > measured.agreement:
        raise PgolfError(f"bench {what}: the plain loop computes {figures['plain']:.6f}, pgolf {figures['ours']:.6f}")
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios, cpu_ratios = (
        [plain / ours for ours, plain in zip(both["ours"], both["plain"], strict=True)] for both in (times, cpu_times)
    )
    result: dict[str, Any] = {
        "bench": what,
        "recipe": recipe.name,
        "scope": measured.scope,
        "settings": recipe.model_dump(mode="json", exclude={"name", "description"}),
        "repeats": repeats,
        "milliseconds_repeats": [1000 * seconds for seconds in times["ours"]],
        "milliseconds": 1000 * medians["ours"],
        "milliseconds_plain": 1000 * medians["plain"],
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "cpu_ratio": statistics.median(cpu_ratios),
    }
    if measured.tokens:
        result["tokens_per_second"] = measured.tokens / medians["ours"]
        if measured.trains:
            result |= training_speed(recipe, measured.tokens, medians["ours"], device)
        result["tokens_per_second_plain"] = measured.tokens / medians["plain"]
    result |= {"figure": figures["ours"], "figure_plain": figures["plain"], "peak_memory": peak_memory(device)}
    return result | {"environment": environment(device) | {"cpu": cpu_model()}}


def _timed(work_once: Callable[[], float], device: torch.device) -> tuple[float, float, float]:
    """Seconds of the clock, CPU seconds of the process, and the work's figure."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    figure = work_once()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, time.process_time() - cpu_started, figure


def peak_memory(device: torch.device) -> int:
    """Bytes, both ways together: of the device's allocator on CUDA, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_model() -> str:
    """The processor's name as Linux knows it, elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
