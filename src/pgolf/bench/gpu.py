"""What is to be measured on a CUDA device, in one command for which a few minutes are enough.

    python -m pgolf.bench.gpu --budget-seconds 420 --out gpu.json

The parts are below, the most telling first. Each runs in a process of its own, with a limit of its own, and
what it says is in the file at once: one that fails or hangs costs no other. What must not be disturbed runs
alone; before that, at the same time, runs what may be: tests, and the first compilation of what is measured
later, which then finds the compiler's results on the disk. ``--device cpu`` is a rehearsal on tiny shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pgolf
from pgolf.bench.harness import WORK, Measured, Trainer, peak_memory, step_batch
from pgolf.compress.pack import pack
from pgolf.evaluate.evaluate import evaluate
from pgolf.memory.memory import Start
from pgolf.memory.stored import start_of
from pgolf.model import attend, loss
from pgolf.model.fast import textbook
from pgolf.model.gpt import GPT, build_model
from pgolf.optim.place import place
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runtime.device import autocast, compile_always, pick_device
from pgolf.runtime.environment import environment
from pgolf.runtime.writing import write_json
from pgolf.train.flops import training_speed
from pgolf.train.profile import slowest_operations

Row = dict[str, Any]
"""A line for people under "says", and numbers."""

_TINY = ("model.width=32", "train.batch_tokens=128", "evaluate.stride=32", "ttt.epochs=1")
_SHOWN_OPERATIONS, _LAST_LINES = 15, 15
_START_SECONDS, _WIDTH = 10, 140


class Ask(NamedTuple):
    """Where a part runs, and whether it is only to compile."""

    device: torch.device
    prime: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def recipe(self, *settings: str) -> Recipe:
        """The recipe that is measured."""
        return load_recipe(
            "seed_1232" if self.on_gpu else "tiny", [*(() if self.on_gpu else _TINY), *settings]
        )


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
    packages = {
        name: importlib.util.find_spec(name) is not None for name in ("flash_attn_interface", "triton")
    }
    there = ", ".join(f"{name} {'yes' if yes else 'no'}" for name, yes in packages.items())
    cudnn = torch.backends.cudnn.version()
    yield {"says": f"RMS norm under autocast: {stream}; {there}; cuDNN {cudnn}", "stream": str(stream)}
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
    folder = Path(pgolf.__file__).parents[2]
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
    attend._flash_3 = None
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)


def _without_flash_3() -> None:
    attend._flash_3 = None


def _without_kernel() -> None:
    loss.loss_form = lambda *_: "plain"


VARIANTS = {
    "compiled": Variant(),
    "eager": Variant(("train.compile=false",)),
    "cudnn": Variant(before=_attention_of_cudnn),
    "float32-stream": Variant(change=_float32_stream),
    "plain-loss": Variant(before=_without_kernel),
    "documents": Variant(("model.document_mask=true",)),
    "without-flash3": Variant(before=_without_flash_3),
    "autotuned": Variant(("train.compile=max-autotune-no-cudagraphs",)),
}


def _train(name: str, ask: Ask) -> Iterator[Row]:
    if name == "without-flash3" and attend._flash_3 is None:
        yield {"says": "no FlashAttention 3 here: the same as compiled"}
        return
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
    says = (
        f"{speed['tokens_per_second']:,.0f} tokens/s{mfu}, {memory / 2**30:.1f} GiB, {again} recompilations"
    )
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
    generator = np.random.default_rng(0)
    follows = generator.permutation(recipe.model.vocab_size)
    inputs, targets = (part.reshape(-1) for part in step_batch(recipe, torch.device("cpu")))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        draw = np.random.default_rng(1)
        shape = step_batch(recipe, torch.device("cpu"))[0].shape
        for _ in range(steps):
            x = draw.integers(recipe.model.vocab_size, size=len(inputs))
            # Three of four tokens follow from the one before: something to learn.
            y = np.where(
                draw.random(len(targets)) < 0.75, follows[x], draw.integers(len(follows), size=len(x))
            )
            yield tuple(torch.from_numpy(part).view(shape).to(ask.device) for part in (x, y))  # type: ignore[misc]

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
        yield {
            "says": f"first {first:.1f} s, {graphs} graphs",
            "first_seconds": first,
            "scope": measured.scope,
        }
        if ask.prime:
            return
        own, figure = min(_seconds(ask, measured.ours) for _ in range(2))
    again, memory = _graphs() - graphs, peak_memory(ask.device)
    rate = measured.tokens / own
    says = f"{rate:,.0f} targets/s, {memory / 2**30:.1f} GiB, {again} recompilations"
    yield {"says": says, "targets_per_second": rate, "recompilations": again, "peak_memory": memory}
    with textbook():
        plainly, other = min(_seconds(ask, measured.plain) for _ in range(2))
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
    state = {
        name: 0.05 * torch.randn_like(each)
        for name, each in build_model(recipe.model, 0).state_dict().items()
    }
    for where in ("cpu", str(ask.device))[: 1 + ask.on_gpu]:
        placed = {name: each.to(where) for name, each in state.items()}
        with tempfile.TemporaryDirectory() as folder:
            work = partial(pack, placed, recipe, "", Path(folder) / "model.pgolf")
            seconds, report = _seconds(ask, work)
        yield {
            "says": f"weights on {where}: {report.total_bytes:,} bytes in {seconds:.1f} s",
            "seconds": seconds,
        }


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
    "train-float32-stream": Part(partial(_train, "float32-stream")),
    "train-plain-loss": Part(partial(_train, "plain-loss")),
    "train-documents": Part(partial(_train, "documents")),
    "train-without-flash3": Part(partial(_train, "without-flash3"), compiles=attend._flash_3 is not None),
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


class Running:
    """A part in its process; ``beside`` others, or alone."""

    def __init__(self, name: str, ask: Ask, limit: float, folder: Path, beside: bool) -> None:
        self.name = f"{name} (first)" if ask.prime else name
        self.limit, self.started = limit, time.monotonic()
        self.rows, self.log = folder / f"{self.name}.rows", folder / f"{self.name}.log"
        words = [sys.executable, "-m", "pgolf.bench.gpu", "--part", name, "--device", str(ask.device)]
        words += ["--out", str(self.rows), *(["--prime"] if ask.prime else [])]
        # Several compilers at once must not start many more processes than there are cores.
        settings = os.environ | ({"TORCHINDUCTOR_COMPILE_THREADS": "4"} if beside else {})
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=settings
            )

    def result(self) -> Row | None:
        """What there is to say once it has ended, or its time is up; None before."""
        status, seconds = self.process.poll(), time.monotonic() - self.started
        if status is None and seconds < self.limit:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        state = f"stopped after {self.limit:.0f} s" if status is None else "failed" if status else "ok"
        lines = self.rows.read_text().splitlines() if self.rows.exists() else []
        found: Row = {"state": state, "seconds": seconds, "rows": [json.loads(line) for line in lines]}
        if state != "ok":
            found["error"] = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return found


def run_parts(parts: Mapping[str, Part], device: torch.device, budget: float, out: Path) -> Row:
    """Run parts within ``budget`` seconds; what each found is in the JSON file ``out`` once it has ended."""
    end, on_gpu = time.monotonic() + budget, device.type == "cuda"
    report: Row = {"device": str(device), "parts": {}}
    runs = {name: part for name, part in parts.items() if on_gpu or not part.needs_cuda}
    for name in [name for name in parts if name not in runs]:
        report["parts"][name] = {"state": "needs CUDA", "seconds": 0.0, "rows": []}
    beside = [(name, False) for name, part in runs.items() if not part.alone]
    beside += [(name, True) for name, part in runs.items() if part.compiles and on_gpu]
    alone = [[(name, False)] for name, part in runs.items() if part.alone]
    at = int("environment" in runs)  # It comes first.
    with tempfile.TemporaryDirectory() as folder:
        for names in [*alone[:at], beside, *alone[at:]]:
            left = end - time.monotonic()
            if left < (_START_SECONDS if on_gpu else 0):
                late = {"state": "no time left", "seconds": 0.0, "rows": []}
                report["parts"] |= {name: late for name, prime in names if not prime}
                continue
            running = [
                Running(
                    name,
                    Ask(device, prime),
                    min(parts[name].limit + 90 * prime, left),
                    Path(folder),
                    len(names) > 1,
                )
                for name, prime in names
            ]
            while running:
                time.sleep(0.05)
                for each in list(running):
                    if (found := each.result()) is not None:
                        running.remove(each)
                        report["parts"][each.name] = found
                        write_json(out, report)
                        last = [*(row["says"] for row in found["rows"]), *found.get("error", ())][-1:]
                        print(
                            f"{each.name}: {found['state']}, {found['seconds']:.0f} s: {''.join(last)[:200]}",
                            flush=True,
                        )
    report["advice"] = advice(report["parts"])
    write_json(out, report)
    return report


def advice(parts: Mapping[str, Row]) -> list[str]:
    """What to change next, from what the parts found."""

    def number(name: str, key: str) -> Any:
        return next(
            (row[key] for row in parts.get(name, {}).get("rows", ()) if row.get(key) is not None), None
        )

    lines = [
        f"{name}: {found['state']}; see its last lines"
        for name, found in parts.items()
        if found["state"] not in ("ok", "needs CUDA", "no time left")
    ]
    speeds = {name: number(name, "tokens_per_second") for name in parts if name.startswith("train ")}
    speeds = {name: speed for name, speed in speeds.items() if speed}
    usual = speeds.get("train compiled")
    for name, speed in sorted(speeds.items(), key=lambda item: -item[1]):
        if usual and name != "train compiled":
            lines.append(f"{name}: {speed / usual:.2f} times the step of train compiled")
    for name, goal in (("sliding", 1.3), ("ttt", 1.8), ("sliding replayed", 1.3), ("ttt replayed", 1.8)):
        if (ratio := number(name, "ratio")) is not None:
            lines.append(
                f"{name}: {ratio:.2f} times the plain way, {'reaches' if ratio >= goal else 'MISSES'} {goal}"
            )
    lines += [
        f"{name}: compiled again {again} times; TORCH_LOGS=recompiles says why"
        for name in parts
        if (again := number(name, "recompilations"))
    ]
    lines += [
        f"{name}: {row['says']}"
        for name, found in parts.items()
        for row in found["rows"]
        if "DIFFERENT" in row["says"]
    ]
    return lines


def show(report: Row, console: Console) -> None:
    """The slowest operations, the last lines of what failed, the table, and what to change."""
    for name, found in report["parts"].items():
        for title, lines in [
            ("most time", row["operations"]) for row in found["rows"] if "operations" in row
        ]:
            console.print(f"\n{name}: {title}", *lines, sep="\n", markup=False)
        if "error" in found:
            console.print(f"\n{name}: {found['state']}", *found["error"], sep="\n", markup=False)
    table = Table("part", "state", "seconds", "found", title=f"pgolf on {report['device']}")
    for name, found in report["parts"].items():
        says = "\n".join(row["says"] for row in found["rows"])
        table.add_row(name, found["state"], f"{found['seconds']:.0f}", says)
    console.print(table)
    console.print(
        "\nwhat to change next", *(report["advice"] or ["nothing stands out"]), sep="\n", markup=False
    )


def _run_part(name: str, ask: Ask, out: Path) -> None:
    if ask.on_gpu and ask.prime:
        torch.cuda.set_per_process_memory_fraction(0.25)  # Several at once.
    with out.open("w") as file:
        for row in PARTS[name].work(ask):
            print(json.dumps(row), file=file, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m pgolf.bench.gpu", description=__doc__)
    parser.add_argument("--budget-seconds", type=float, default=420)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device")
    parser.add_argument("--only", default="", help=f"parts, with commas, of {', '.join(PARTS)}")
    parser.add_argument("--skip", default="", help="parts not to run")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--prime", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    device = pick_device(given.device)
    if given.part:
        return _run_part(given.part, Ask(device, given.prime), given.out)
    only, skip = ([name for name in text.split(",") if name] for text in (given.only, given.skip))
    if unknown := [name for name in [*only, *skip] if name not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    parts = {name: part for name, part in PARTS.items() if name in (only or PARTS) and name not in skip}
    show(run_parts(parts, device, given.budget_seconds, given.out), Console(width=_WIDTH))


if __name__ == "__main__":
    main()
