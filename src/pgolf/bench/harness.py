"""How benchmarks are measured: warm-up, repeats in turn with the plain version, medians, paired ratios."""

from __future__ import annotations

import contextlib
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pgolf.bench.work import WORK
from pgolf.errors import PgolfError
from pgolf.model.fast import textbook
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.device import compile_always, keep_freed_memory
from pgolf.runtime.environment import environment
from pgolf.runtime.threads import default_waiting
from pgolf.train.flops import training_speed

_WARMUP = 1


def run_bench(what: str, recipe: Recipe, device: torch.device, repeats: int) -> dict[str, Any]:
    """Measure one kind of work ("train", a step; "eval", sliding windows; "ttt"; "pack") beside the plain
    way.

    The plain way runs in a process of its own, with the C library and OpenMP as a script finds them: what
    pgolf sets for its own process is part of what is measured. A script that calls this needs ``if __name__
    == "__main__":``. Tokens are random, so no data is needed; one execution before the ``repeats`` is
    unmeasured.

    Returns JSON values: medians of both ways and our single repeats in milliseconds, tokens per second, the
    median of the paired ratios (plain time / our time: above 1 pgolf is faster) and that of the CPU time,
    which other work on the machine disturbs less, the figures both computed, peak memory of both processes in
    bytes (each holds the state of both ways), the recipe's settings and the environment; of training also the
    model's operations per second and their part of the device's peak. PgolfError where the work is unknown or
    the ways disagree.
    """
    if what not in WORK:
        raise PgolfError(f"bench {what}: unknown; use {', '.join(WORK)}")
    if device.type == "cpu":
        keep_freed_memory()
    measured = WORK[what](recipe, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    runs: dict[str, list[_Run]] = {"ours": [], "plain": []}
    with _plain_process(what, recipe, device) as run_plainly, compile_always():
        ways = {"ours": lambda: _run(measured.ours, device), "plain": run_plainly}
        for index in range(_WARMUP + repeats):
            # The order changes each time: what slows down or speeds up over the run falls on both alike.
            for name in ("ours", "plain") if index % 2 else ("plain", "ours"):
                runs[name].append(ways[name]())
    ours, plain = runs["ours"][_WARMUP:], runs["plain"][_WARMUP:]
    figure, plain_figure = ours[-1].figure, plain[-1].figure
    if abs(figure - plain_figure) > measured.agreement * max(abs(plain_figure), 1e-12):
        raise PgolfError(f"bench {what}: the plain loop computes {plain_figure:.6f}, pgolf {figure:.6f}")
    median, plain_median = (statistics.median(run.seconds for run in way) for way in (ours, plain))
    pairs = list(zip(ours, plain, strict=True))
    ratios = [other.seconds / own.seconds for own, other in pairs]
    cpu_ratios = [other.cpu_seconds / own.cpu_seconds for own, other in pairs]
    result: dict[str, Any] = {
        "bench": what,
        "recipe": recipe.name,
        "scope": measured.scope,
        "settings": recipe.model_dump(mode="json", exclude={"name", "description"}),
        "repeats": repeats,
        "milliseconds_repeats": [1000 * run.seconds for run in ours],
        "milliseconds": 1000 * median,
        "milliseconds_plain": 1000 * plain_median,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "cpu_ratio": statistics.median(cpu_ratios),
    }
    if measured.tokens:
        result["tokens_per_second"] = measured.tokens / median
        if measured.trains:
            result |= training_speed(recipe, measured.tokens, median, device)
        result["tokens_per_second_plain"] = measured.tokens / plain_median
    result |= {"figure": figure, "figure_plain": plain_figure}
    result |= {"peak_memory": ours[-1].peak_memory, "peak_memory_plain": plain[-1].peak_memory}
    return result | {"environment": environment(device) | {"cpu": cpu_model()}}


class _Run(NamedTuple):
    """One execution of the work: by the clock, CPU time of the process, what it computed, bytes so far."""

    seconds: float
    cpu_seconds: float
    figure: float
    peak_memory: int


def _run(work_once: Callable[[], float], device: torch.device) -> _Run:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    figure = work_once()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return _Run(time.perf_counter() - started, time.process_time() - cpu_started, figure, peak_memory(device))


@contextlib.contextmanager
def _plain_process(what: str, recipe: Recipe, device: torch.device) -> Iterator[Callable[[], _Run]]:
    """A process that does the work plainly once for each call of what this yields."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve_plainly, args=(there, what, recipe, device), daemon=True)
    with default_waiting():
        process.start()
    there.close()

    def run_once() -> _Run:
        try:
            here.send(True)
            return _Run(*here.recv())
        except (EOFError, OSError) as error:
            gone = "the process of the plain way ended; its message is above"
            raise PgolfError(f"bench {what}: {gone}") from error

    try:
        yield run_once
    finally:
        here.close()
        process.terminate()
        process.join()


def _serve_plainly(connection: Connection, what: str, recipe: Recipe, device: torch.device) -> None:
    work = WORK[what](recipe, device)
    with textbook(), contextlib.suppress(EOFError):
        while connection.recv():
            connection.send(tuple(_run(work.plain, device)))


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on CUDA, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Unlike what getrusage says, this begins without the memory of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_model() -> str:
    """The processor's name as Linux knows it, elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
