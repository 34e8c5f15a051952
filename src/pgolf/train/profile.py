"""Where the time of a training step goes: a trace and a table of operations, from steps after the warm-up.

The profiler sits between the training loop and its watcher, which is told of every step; the loop knows
nothing of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from pgolf.evaluate.evaluate import EvalResult
from pgolf.runtime.writing import check_writable, write_bytes
from pgolf.train.run import Watcher

# The first steps compile, tune and fill caches; the next one warms the profiler itself.
_SKIPPED, _WARMUP, _PROFILED = 3, 1, 5
_SHOWN = 20

_COLUMNS = ("operation", "calls per step", "CPU ms", "CPU share", "GPU ms", "GPU share")


@dataclass(frozen=True)
class Operation:
    """One kind of operation, per step; times are its own, without what it calls."""

    name: str
    calls: float
    cpu_milliseconds: float
    cpu_share: float
    device_milliseconds: float
    device_share: float


def as_table(operations: Sequence[Operation]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """A header and rows; times of the GPU only where there are any."""
    on_cpu = [(f"{each.cpu_milliseconds:,.3f}", f"{each.cpu_share:.1%}") for each in operations]
    on_gpu = [(f"{each.device_milliseconds:,.3f}", f"{each.device_share:.1%}") for each in operations]
    names = [(each.name, f"{each.calls:,.1f}") for each in operations]
    if not any(each.device_milliseconds for each in operations):
        return _COLUMNS[:4], [(*name, *cpu) for name, cpu in zip(names, on_cpu, strict=True)]
    return _COLUMNS, [(*name, *cpu, *gpu) for name, cpu, gpu in zip(names, on_cpu, on_gpu, strict=True)]


class ProfilingWatcher:
    """A watcher that profiles steps 5 to 9 of this session and passes everything on to another watcher.

    Args:
        watcher: is told everything as well.
        folder: gets ``trace.json`` (Chrome's trace format) and ``operations.md``.
        device: what is profiled besides the CPU.

    Raises:
        PgolfError: the folder cannot be written.
    """

    def __init__(self, watcher: Watcher, folder: Path, device: torch.device) -> None:
        self.trace, self.table = folder / "trace.json", folder / "operations.md"
        check_writable(self.trace)
        self.operations: list[Operation] = []
        """The slowest first; empty until the profiled steps are over, and where there were too few."""
        self._watcher, self._on_device = watcher, device.type == "cuda"
        self._steps = 0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_device else [])]
        steps = schedule(wait=_SKIPPED, warmup=_WARMUP, active=_PROFILED, repeat=1)
        self._profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._save)

    def __enter__(self) -> ProfilingWatcher:
        self._profiler.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._profiler.stop()
        if not self.operations:
            needed = f"that takes {_SKIPPED + _WARMUP + 1} steps or more"
            self.note(f"nothing was profiled: {needed}, and this session had {self._steps}")

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """A step is finished."""
        self._steps += 1
        self._profiler.step()
        self._watcher.step(step, loss, tokens_per_second)

    def validation(self, step: int, result: EvalResult) -> None:
        """Passed on."""
        self._watcher.validation(step, result)

    def evaluation(self, what: str, done: int, total: int) -> None:
        """Passed on."""
        self._watcher.evaluation(what, done, total)

    def note(self, text: str) -> None:
        """Passed on."""
        self._watcher.note(text)

    def to_json(self) -> dict[str, Any]:
        """What was found, as JSON values."""
        operations = [asdict(operation) for operation in self.operations]
        return {"trace": str(self.trace), "table": str(self.table), "operations": operations}

    def _save(self, profiler: Any) -> None:
        steps = min(self._steps - _SKIPPED - _WARMUP, _PROFILED)
        if steps < 1:
            return
        self.operations = slowest_operations(profiler.key_averages(), steps, self._on_device)
        # By way of a temporary file: torch can write to no name that is not UTF-8.
        with tempfile.TemporaryDirectory(prefix="pgolf-") as folder:
            made = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(made))
            write_bytes(self.trace, made.read_bytes())
        columns, cells = as_table(self.operations)
        head = [" | ".join(columns), " | ".join(["---"] + ["--:"] * (len(columns) - 1))]
        rows = [" | ".join((f"`{row[0]}`", *row[1:])) for row in cells]
        title = f"# Slowest operations\n\nMeans of {steps} steps; times without what an operation calls.\n\n"
        write_bytes(self.table, (title + "".join(f"| {line} |\n" for line in head + rows)).encode())


def slowest_operations(events: Sequence[Any], steps: int, on_device: bool) -> list[Operation]:
    """What takes most of the time of ``steps`` steps, from the profiler's averages."""
    events = [event for event in events if not event.key.startswith("ProfilerStep")]
    cpu = sum(event.self_cpu_time_total for event in events) or 1.0
    # What an operation started on the device stands in its own line and in that of its kernel.
    kernels = [
        event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation
    ]
    device = sum(event.self_device_time_total for event in kernels) or 1.0
    found = [
        Operation(
            name=" ".join(event.key.replace("|", "/").split())[:80],
            calls=event.count / steps,
            cpu_milliseconds=event.self_cpu_time_total / steps / 1000,
            cpu_share=event.self_cpu_time_total / cpu,
            device_milliseconds=event.self_device_time_total / steps / 1000,
            device_share=event.self_device_time_total / device,
        )
        for event in (kernels if on_device else events)
    ]
    found.sort(key=lambda o: -(o.device_milliseconds if on_device else o.cpu_milliseconds))
    return found[:_SHOWN]
