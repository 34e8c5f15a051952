"""The parts of ``pgolf.bench.gpu``: what each measures, and on what."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.bench.harness import WORK, Measured, Trainer, peak_memory, step_batch
from pgolf.compress.pack import pack
from pgolf.evaluate.evaluate import evaluate
from pgolf.kernels.available import has_triton
from pgolf.memory.memory import Start
from pgolf.memory.stored import start_of
from pgolf.model import attend, loss
from pgolf.model.fast import textbook
from pgolf.model.gpt import GPT, build_model
from pgolf.optim.place import place
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runtime.device import autocast, compile_always
from pgolf.runtime.environment import FOLDER, environment
from pgolf.train.flops import training_speed
from pgolf.train.profile import slowest_operations

Row = dict[str, Any]
"""A line for people under "says", and numbers."""

_TINY = ("model.width=32", "train.batch_tokens=128", "evaluate.stride=32", "ttt.epochs=1")
_SHOWN_OPERATIONS = 15
# Seconds of one execution from which on it is long enough to need no unmeasured one before.
_SOON = 10


class Ask(NamedTuple):
    """Where a part runs, and whether it is only to compile."""

    device: torch.device
    prime: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def recipe(self, *settings: str) -> Recipe:
        """The recipe that is measured."""
        name, sizes = ("seed_1232", ()) if self.on_gpu else ("tiny", _TINY)
        return load_recipe(name, [*sizes, *settings])


class Part(NamedTuple):
    """Something to measure: the work, seconds it may take, and where it runs."""

    work: Callable[[Ask], Iterator[Row]]
    limit: int = 90
    needs_cuda: bool = True
    compiles: bool = True
    """Whether it is run once before, beside others, so that its compiler's results are there."""
    alone: bool = True
    """Whether others would disturb it."""


def _environment(ask: Ask) -> Iterator[Row]:
    found: Row = environment(ask.device)
    yield {"says": f"{found['device_name']}, torch {found['torch']}, driver {found['driver']}", **found}
    x = torch.randn(4, 64, device=ask.device, dtype=torch.bfloat16)
    with autocast(ask.device):
        stream = F.rms_norm(x, (64,)).dtype
    flash_3, cudnn = attend._flash_3 is not None, torch.backends.cudnn.version()
    says = (
        f"RMS norm under autocast {stream}, FlashAttention 3 {flash_3}, Triton {has_triton()}, cuDNN {cudnn}"
    )
    yield {"says": says, "flash_3": flash_3, "triton": has_triton()}
    size = 8192 if ask.on_gpu else 128
    a, b = (torch.randn(size, size, device=ask.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = min(_seconds(ask, lambda: a @ b)[0] for _ in range(6))
    large = torch.empty((1 << 32) if ask.on_gpu else 1 << 20, dtype=torch.uint8, device=ask.device)
    copied = torch.empty_like(large)
    copying = min(_seconds(ask, lambda: copied.copy_(large))[0] for _ in range(4))
    rates = {"tflops": 2 * size**3 / seconds / 1e12, "copy_gb_per_second": 2 * large.numel() / copying / 1e9}
    says = f"products {rates['tflops']:.0f} TFLOP/s, copies {rates['copy_gb_per_second']:,.0f} GB/s"
    yield {"says": says, **rates}


def _tests(ask: Ask) -> Iterator[Row]:
    folder = FOLDER.parents[1]
    if not (folder / "tests" / "gpu").is_dir():
        yield {"says": "this installation has no tests"}
        return
    workers = ["-n", "4"] if ask.on_gpu and importlib.util.find_spec("xdist") else []
    words = [sys.executable, "-m", "pytest", "-rfE", "--tb=short", *workers, "tests/gpu"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    lines = done.stdout.strip().splitlines() or ["pytest printed nothing"]
    for line in [line for line in lines if line.startswith(("FAILED", "ERROR"))]:
        yield {"says": line[:300]}
    yield {"says": lines[-1].strip("= "), "status": done.returncode}
    if done.returncode:
        raise SystemExit(f"pytest ended with status {done.returncode}")


class Variant(NamedTuple):
    """A way to train: settings of the recipe, what is done before, and to the model."""

    settings: tuple[str, ...] = ()
    before: Callable[[], object] = lambda: None
    change: Callable[[GPT], object] = lambda network: None


class _InFloat32(nn.Module):
    def forward(self, x: Tensor, reading: object) -> Tensor:
        return x.float()


def _float32_stream(network: GPT) -> None:
    network.stream_parts = (*network.stream_parts, cast(Any, _InFloat32()))


def _attention_of_cudnn() -> None:
    # The compiler's cache of whole graphs does not look at the switches below.
    settings: Any = importlib.import_module("torch._functorch.config")
    settings.enable_autograd_cache = False
    attend._flash_3 = None
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)


def _without_kernel() -> None:
    loss.loss_form = lambda *_: "plain"


VARIANTS = {
    "compiled": Variant(),
    "eager": Variant(("train.compile=false",)),
    "cudnn": Variant(before=_attention_of_cudnn),
    "float32-stream": Variant(change=_float32_stream),
    "plain-loss": Variant(before=_without_kernel),
    "documents": Variant(("model.document_mask=true",)),
    "autotuned": Variant(("train.compile=max-autotune-no-cudagraphs",)),
}


def _train(name: str, ask: Ask) -> Iterator[Row]:
    variant = VARIANTS[name]
    recipe = ask.recipe(*variant.settings)
    variant.before()
    trainer = Trainer(recipe, ask.device, variant.change)
    batch = step_batch(recipe, ask.device)
    first, figure = _seconds(ask, lambda: trainer.step(*batch))
    graphs = _graphs()
    yield {"says": f"first step {first:.1f} s, {graphs} graphs", "first_seconds": first, "graphs": graphs}
    if ask.prime:
        return
    if ask.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        trainer.step(*batch)
    times = [_seconds(ask, lambda: trainer.step(*batch))[0] for _ in range(8)]
    tokens, again, memory = batch[0].numel(), _graphs() - graphs, peak_memory(ask.device)
    speed = training_speed(recipe, tokens, float(np.median(times)), ask.device)
    mfu = "" if speed["mfu"] is None else f", MFU {speed['mfu']:.1%}"
    rate = f"{speed['tokens_per_second']:,.0f} tokens/s{mfu}"
    says = f"{rate}, {memory / 2**30:.1f} GiB, {again} recompilations"
    numbers = {"step_seconds": times, "peak_memory": memory, "recompilations": again, "loss": figure}
    yield {"says": says, **speed, **numbers}
    if name in ("compiled", "eager"):
        yield _profile(ask, lambda: trainer.step(*batch))


def _profile(ask: Ask, work: Callable[[], object]) -> Row:
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds[: 1 + ask.on_gpu]) as profiler:
        _seconds(ask, work)
    found = slowest_operations(profiler.key_averages(), 1, ask.on_gpu)[:_SHOWN_OPERATIONS]
    lines = [
        f"{each.device_milliseconds if ask.on_gpu else each.cpu_milliseconds:9.2f} ms "
        f"{each.device_share if ask.on_gpu else each.cpu_share:6.1%} {each.calls:6.0f}x  {each.name}"
        for each in found
    ]
    return {"says": f"most time: {found[0].name if found else 'nothing'}", "operations": lines}


def _curves(ask: Ask) -> Iterator[Row]:
    sizes = ["width=256", "heads=4", "kv_heads=2", "layers=4", "xsa_last=4", "mlp_hidden=768"]
    train = ["batch_tokens=16384", "sequence_length=512", "micro_batches=2"]
    settings = [*(f"model.{each}" for each in sizes), *(f"train.{each}" for each in train)]
    recipe = ask.recipe(*(settings if ask.on_gpu else []))
    steps = 200 if ask.on_gpu else 3
    vocabulary, shape = recipe.model.vocab_size, step_batch(recipe, torch.device("cpu"))[0].shape
    follows = np.random.default_rng(0).permutation(vocabulary)

    def batches() -> Iterator[list[Tensor]]:
        draw = np.random.default_rng(1)
        for _ in range(steps):
            x = draw.integers(vocabulary, size=shape)
            # Three of four tokens follow from the one before: something to learn.
            y = np.where(draw.random(shape) < 0.75, follows[x], draw.integers(vocabulary, size=shape))
            yield [torch.from_numpy(part).to(ask.device) for part in (x, y)]

    def curve(change: Callable[[GPT], object], *more: str) -> np.ndarray:
        trainer = Trainer(recipe.with_overrides(more), ask.device, change)
        return np.array([trainer.step(*batch) for batch in batches()])

    with contextlib.nullcontext() if ask.on_gpu else textbook():
        eager = curve(lambda network: None, "train.compile=false")
    yield {"says": f"eager: loss {eager[0]:.3f} to {eager[-1]:.4f}", "losses": eager.tolist()}
    for name, change in (("compiled", lambda network: None), ("compiled, float32 stream", _float32_stream)):
        losses = curve(change)
        apart, ends = np.abs(losses - eager).max(), losses[-20:].mean() - eager[-20:].mean()
        says = f"{name}: largest difference {apart:.4f} nats, of the last 20 steps {ends:+.4f}"
        yield {"says": says, "largest": float(apart), "last": float(ends), "losses": losses.tolist()}
        if not ask.on_gpu:
            return


def _stream(mode: str, how: str, ask: Ask) -> Iterator[Row]:
    measured: Measured = WORK[mode](ask.recipe(f"evaluate.compile={how}"), ask.device)
    with compile_always():
        first, _ = _seconds(ask, measured.ours)
        graphs = _graphs()
        says = f"first {first:.1f} s, {graphs} graphs"
        yield {"says": says, "first_seconds": first, "scope": measured.scope}
        if ask.prime:
            return
        own, figure = min(_seconds(ask, measured.ours) for _ in range(2))
    again, memory = _graphs() - graphs, peak_memory(ask.device)
    rate = measured.tokens / own
    says = f"{rate:,.0f} targets/s, {memory / 2**30:.1f} GiB, {again} recompilations"
    yield {"says": says, "targets_per_second": rate, "recompilations": again, "peak_memory": memory}
    with textbook():
        plainly, other = _seconds(ask, measured.plain)
        if plainly < _SOON:
            plainly, other = _seconds(ask, measured.plain)
    apart = abs(figure - other) / math.log(2)
    verdict = "equal" if apart <= 1e-4 * other / math.log(2) else "DIFFERENT"
    says = f"{plainly / own:.2f} times the plain way; {verdict}, {apart:.1e} bits per target apart"
    yield {"says": says, "ratio": plainly / own, "figure": figure, "figure_plain": other, "apart": apart}


def _memory(ask: Ask) -> Iterator[Row]:
    recipe = ask.recipe("memory.enabled=true", "ttt.method=full", "ttt.epochs=1", "evaluate.stride=64")
    targets = 65536 if ask.on_gpu else 256
    tokens = np.random.default_rng(0).integers(recipe.model.vocab_size, size=targets + 1).astype(np.uint16)
    start = start_of([f"\u2581{token}" for token in range(recipe.model.vocab_size)], 1, tokens)
    network = place(build_model(recipe.model, 0), recipe, ask.device)

    def seconds(count: int, memory: Start | None) -> float:
        given = tokens[: count + 1], np.ones(count, np.uint16)
        return _seconds(ask, lambda: evaluate(network, recipe, *given, "ttt", memory=memory))[0]

    yield {"says": f"first {seconds(128, start):.1f} s"}
    if ask.prime:
        return
    without, beside = seconds(targets, None), seconds(targets, start)
    more = 1e6 * (beside - without) / targets
    says = f"{without:.1f} s without, {beside:.1f} s with: {more:.0f} microseconds per target"
    yield {"says": says, "seconds": without, "seconds_with_memory": beside}


def _pack(ask: Ask) -> Iterator[Row]:
    recipe = ask.recipe("compress.scheme=budget", "compress.codec=range")
    network = build_model(recipe.model, 0).to(ask.device)
    state = {name: 0.05 * torch.randn_like(each) for name, each in network.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        work = partial(pack, state, recipe, "", Path(folder) / "model.pgolf")
        seconds, report = _seconds(ask, work)
    yield {"says": f"{report.total_bytes:,} bytes in {seconds:.1f} s", "seconds": seconds}


PARTS: dict[str, Part] = {
    "environment": Part(_environment, 60, needs_cuda=False, compiles=False),
    "tests": Part(_tests, 200, needs_cuda=False, compiles=False, alone=False),
    "curves": Part(_curves, 200, needs_cuda=False, compiles=False, alone=False),
    "packing": Part(_pack, 200, needs_cuda=False, compiles=False, alone=False),
    "train-compiled": Part(partial(_train, "compiled")),
    "sliding": Part(partial(_stream, "eval", "true"), needs_cuda=False),
    "ttt": Part(partial(_stream, "ttt", "true"), needs_cuda=False),
    "train-cudnn": Part(partial(_train, "cudnn")),
    "train-eager": Part(partial(_train, "eager"), needs_cuda=False, compiles=False),
    "train-documents": Part(partial(_train, "documents")),
    "train-float32-stream": Part(partial(_train, "float32-stream")),
    "train-plain-loss": Part(partial(_train, "plain-loss"), compiles=False),
    "sliding-replayed": Part(partial(_stream, "eval", "reduce-overhead"), compiles=False),
    "ttt-replayed": Part(partial(_stream, "ttt", "reduce-overhead"), compiles=False),
    "memory": Part(_memory, needs_cuda=False),
    "train-autotuned": Part(partial(_train, "autotuned"), 150, compiles=False),
}


def _seconds(ask: Ask, work: Callable[[], Any]) -> tuple[float, Any]:
    if ask.on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    found = work()
    if ask.on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def _graphs() -> int:
    """Graphs that the compiler has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
