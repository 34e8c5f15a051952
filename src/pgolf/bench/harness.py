"""How benchmarks are measured, and the work: a training step, an evaluation, test-time training, packing.

Repeats take turns with the plain version; medians and paired ratios are of those after a warm-up. Tokens are
random but fixed, and weights start from the recipe's seed, so both ways must compute the same figure.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pgolf.bench import plain
from pgolf.compress.container import read_artifact
from pgolf.compress.pack import pack
from pgolf.data.shards import Tokens
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluate import evaluate
from pgolf.evaluate.windows import sliding_windows
from pgolf.model.fast import textbook
from pgolf.model.gpt import GPT, build_model
from pgolf.optim.averaging import Averager
from pgolf.optim.build import build_optimizers, set_schedule
from pgolf.optim.place import place
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.device import autocast, compile_always, compiled, keep_freed_memory
from pgolf.runtime.environment import environment
from pgolf.runtime.processes import default_waiting
from pgolf.train.flops import training_speed

# More than this would take a CPU minutes; the result says what was measured.
_CPU_STEP_TOKENS = 8192
_CPU_STREAM_TARGETS = 4096
_CPU_STREAM_INPUTS = 16384


class Measured(NamedTuple):
    """Two ways to do the same work, and how much work that is."""

    ours: Callable[[], float]
    """Does the work once; returns a figure (a loss, an error) that both ways must agree on."""
    plain: Callable[[], float]
    """The same by the plainest PyTorch code."""
    tokens: int
    """Targets of one execution; 0 where they are no measure."""
    scope: str
    trains: bool = False
    """Whether it is training, so that its operations can be counted."""
    agreement: float = 1e-4
    """Largest relative difference of the two figures."""


class Trainer:
    """pgolf's training step on tensors that are there, without data and metrics; see ``plain.PlainTrainer``.

    ``change`` is done to the model before it is compiled.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, change: Callable[[GPT], object] = lambda network: None
    ) -> None:
        self.recipe, self.device = recipe, device
        self.network = place(build_model(recipe.model, recipe.train.seed), recipe, device)
        change(self.network)
        self.forward = compiled(self.network, device, recipe.train.compile)
        self.optimizers = build_optimizers(self.network, recipe)
        self.averager = Averager(recipe.average, self.network.state_dict(), recipe.train.steps)

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        """One step on micro-batches (parts, sequences, length); returns the loss before it."""
        self.network.train()
        loss = torch.zeros((), device=self.device)
        for x, y in zip(inputs, targets, strict=True):
            with autocast(self.device):
                part = self.forward(x, y).mean() / len(inputs)
            part.backward()
            loss += part.detach()
        if self.recipe.train.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.train.grad_clip)
        set_schedule(self.optimizers, 1.0, self.recipe.optim.muon_momentum)
        for optimizer in self.optimizers:
            optimizer.step()
        self.network.zero_grad(set_to_none=True)
        self.averager.update(self.network.state_dict(), 1, 1.0)
        return float(loss)


def step_batch(recipe: Recipe, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (parts, sequences, length) of a step: the recipe's, on the CPU at most 8,192."""
    length, total = recipe.train.sequence_length, recipe.train.batch_tokens
    if device.type == "cpu":
        total = min(total, max(_CPU_STEP_TOKENS // length, 1) * length)
    parts = math.gcd(recipe.train.micro_batches, total // length)
    batch = torch.from_numpy(_tokens(recipe, total + 1).astype(np.int64)).to(device)
    return batch[:-1].view(parts, -1, length), batch[1:].view(parts, -1, length)


def train_work(recipe: Recipe, device: torch.device) -> Measured:
    """One optimizer step: gradients of all micro-batches, clipping, Muon and AdamW, averaging."""
    inputs, targets = step_batch(recipe, device)
    own = Trainer(recipe, device)
    other = plain.PlainTrainer(place(build_model(recipe.model, recipe.train.seed), recipe, device), recipe)
    scope = f"a step of {inputs.numel():,} targets in {len(inputs)} micro-batches"
    if inputs.numel() != recipe.train.batch_tokens:
        scope += f" (the recipe's has {recipe.train.batch_tokens:,})"
    return Measured(
        lambda: own.step(inputs, targets),
        lambda: other.step(inputs, targets),
        inputs.numel(),
        scope,
        trains=True,
        agreement=5e-3,
    )


def pack_work(recipe: Recipe, device: torch.device) -> Measured:
    """Quantizing by fixed widths, coding, verifying; the figure is the mean squared error of the weights."""
    # The plain way knows no other scheme, so both follow this one.
    fixed = ["compress.scheme=rowwise", "compress.rounding=nearest", "compress.calibration=none"]
    recipe = recipe.with_overrides(fixed)
    state = _spread(build_model(recipe.model, 0)).state_dict()

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model.pgolf"
            pack(state, recipe, "", out, cap=1 << 30)
            return _error(state, read_artifact(out).state)

    def plainly() -> float:
        return _error(state, plain.pack_plainly(state, recipe))

    return Measured(ours, plainly, 0, f"{len(state)} tensors")


def stream_work(mode: str, recipe: Recipe, device: torch.device) -> Measured:
    """Evaluation of a short stream; "ttt" takes four chunks, on the CPU short ones, and fewer epochs."""
    length = recipe.evaluation_length
    # The plain loop knows no other method.
    recipe = recipe.with_overrides(["ttt.method=full", "evaluate.batch=0"])
    on_cpu = device.type == "cpu"
    targets = max(_CPU_STREAM_TARGETS, 2 * length) if on_cpu else 4 * recipe.ttt.chunk_tokens
    stride = _affordable_stride(recipe, targets) if on_cpu else recipe.evaluate.stride
    scope = f"{mode} evaluation of {targets:,} targets, windows of {length:,}, stride {stride:,}"
    if stride != recipe.evaluate.stride:
        scope += f" (the recipe's is {recipe.evaluate.stride:,})"
        recipe = recipe.with_overrides([f"evaluate.stride={stride}"])
    if mode == "ttt":
        chunk, epochs = max(targets // 4, length), min(recipe.ttt.epochs, 2 if on_cpu else recipe.ttt.epochs)
        scope += f", chunks of {chunk:,}, epochs {epochs}"
        recipe = recipe.with_overrides([f"ttt.chunk_tokens={chunk}", f"ttt.epochs={epochs}"])
    network = place(_spread(build_model(recipe.model, 0)), recipe, device)
    # No text is behind the tokens.
    tokens, byte_counts = _tokens(recipe, targets + 1), np.ones(targets, dtype=np.uint16)

    def ours() -> float:
        return evaluate(network, recipe, tokens, byte_counts, mode).val_loss

    return Measured(ours, lambda: plain.evaluate_plainly(network, recipe, tokens, mode), targets, scope)


def _affordable_stride(recipe: Recipe, targets: int) -> int:
    """The recipe's stride, doubled until the windows hold few enough inputs or do not overlap any more."""
    length, stride = recipe.evaluation_length, recipe.evaluate.stride
    most = _CPU_STREAM_INPUTS // length
    while 2 * stride <= length and len(sliding_windows(targets, length, stride)) > most:
        stride *= 2
    return stride


def _tokens(recipe: Recipe, count: int) -> Tokens:
    return np.random.RandomState(0).randint(recipe.model.vocab_size, size=count).astype(np.uint16)


def _spread(network: GPT) -> GPT:
    """Weights as after some training: nothing is exactly zero any more."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network


def _error(state: dict[str, torch.Tensor], stored: dict[str, torch.Tensor]) -> float:
    squares = sum(float((state[name] - stored[name]).double().square().sum()) for name in state)
    return squares / sum(tensor.numel() for tensor in state.values())


WORK: dict[str, Callable[[Recipe, torch.device], Measured]] = {
    "train": train_work,
    "eval": partial(stream_work, "sliding"),
    "ttt": partial(stream_work, "ttt"),
    "pack": pack_work,
}


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
    ours, theirs = runs["ours"][_WARMUP:], runs["plain"][_WARMUP:]
    figure, plain_figure = ours[-1].figure, theirs[-1].figure
    if abs(figure - plain_figure) > measured.agreement * max(abs(plain_figure), 1e-12):
        raise PgolfError(f"bench {what}: the plain loop computes {plain_figure:.6f}, pgolf {figure:.6f}")
    median, plain_median = (statistics.median(run.seconds for run in way) for way in (ours, theirs))
    pairs = list(zip(ours, theirs, strict=True))
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
    result |= {"peak_memory": ours[-1].peak_memory, "peak_memory_plain": theirs[-1].peak_memory}
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
        import resource  # Not on Windows.

        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_model() -> str:
    """The processor's name as Linux knows it, elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
