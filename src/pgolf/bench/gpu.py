"""What is to be measured on a CUDA device, in one command for which a few minutes are enough.

    python -m pgolf.bench.gpu --budget-seconds 420 --out gpu.json

Each part (``gpu_parts.py``, the most telling first) runs in a process of its own, with a limit of its own.
What it says is in the file at once, so one that fails or hangs costs no other. What others would disturb runs
alone; before that, at the same time, runs the rest: tests, and the first compilation of what is measured
later, which then finds the compiler's results on the disk. ``--device cpu`` is a rehearsal on tiny shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pgolf.bench.gpu_parts import PARTS, Ask, Part, Row
from pgolf.runtime.device import pick_device
from pgolf.runtime.writing import write_json

_LAST_LINES, _START_SECONDS, _WIDTH = 15, 10, 140
_GOALS = {"sliding": 1.3, "ttt": 1.8}


class Running:
    """A part in its process; ``beside`` others, or alone."""

    def __init__(self, name: str, ask: Ask, limit: float, folder: Path, beside: bool) -> None:
        self.name = f"{name} (first)" if ask.prime else name
        self.limit, self.started = limit, time.monotonic()
        self.rows, self.log = folder / f"{self.name}.rows", folder / f"{self.name}.log"
        words = [sys.executable, "-m", "pgolf.bench.gpu", "--part", name, "--device", str(ask.device)]
        words += ["--out", str(self.rows), *(["--prime"] if ask.prime else [])]
        # Several compilers at once must not start many more processes than there are cores.
        fewer = {"TORCHINDUCTOR_COMPILE_THREADS": "4", "OMP_NUM_THREADS": "2"}
        settings = os.environ | (fewer if beside else {})
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=settings
            )

    def end(self) -> int | None:
        """End it and all that it started; its exit status, or None if it had not ended by itself."""
        status = self.process.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return status

    def result(self) -> Row | None:
        """What there is to say once it has ended, or its time is up; None before."""
        seconds = time.monotonic() - self.started
        if self.process.poll() is None and seconds < self.limit:
            return None
        status = self.end()
        state = f"stopped after {self.limit:.0f} s" if status is None else "failed" if status else "ok"
        lines = self.rows.read_text().splitlines() if self.rows.exists() else []
        found: Row = {"state": state, "seconds": seconds, "rows": [json.loads(line) for line in lines]}
        if state != "ok":
            found["error"] = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        last = [*(row["says"] for row in found["rows"]), *found.get("error", ())][-1:]
        print(f"{self.name}: {state}, {seconds:.0f} s: {''.join(last)[:200]}", flush=True)
        return found


def run_parts(parts: Mapping[str, Part], device: torch.device, budget: float, out: Path) -> Row:
    """Run parts within ``budget`` seconds; what each found is in the JSON file ``out`` once it has ended."""
    end, on_gpu = time.monotonic() + budget, device.type == "cuda"
    found: dict[str, Row] = {}
    report: Row = {"device": str(device), "parts": found}
    runs = {name: part for name, part in parts.items() if on_gpu or not part.needs_cuda}
    found |= {name: _nothing("needs CUDA") for name in parts if name not in runs}
    beside = [(name, False) for name, part in runs.items() if not part.alone]
    beside += [(name, True) for name, part in runs.items() if part.compiles and on_gpu]
    alone = [[(name, False)] for name, part in runs.items() if part.alone]
    at = int("environment" in runs)  # It comes first.
    with tempfile.TemporaryDirectory() as folder:
        for names in [*alone[:at], beside, *alone[at:]]:
            left = end - time.monotonic()
            if left < (_START_SECONDS if on_gpu else 0):
                found |= {name: _nothing("no time left") for name, prime in names if not prime}
                continue
            running = []
            try:
                for name, prime in names:
                    limit = min(parts[name].limit * (1 + prime), left)
                    running.append(Running(name, Ask(device, prime), limit, Path(folder), len(names) > 1))
                while running:
                    time.sleep(0.05)
                    for each in list(running):
                        if (result := each.result()) is not None:
                            running.remove(each)
                            found[each.name] = result
                            write_json(out, report)
            finally:
                for each in running:
                    each.end()
    report["advice"] = advice(found)
    write_json(out, report)
    return report


def _nothing(state: str) -> Row:
    return {"state": state, "seconds": 0.0, "rows": []}


def advice(parts: Mapping[str, Row]) -> list[str]:
    """What to change next, from what the parts found."""
    lines = []
    numbers = {name: {key: row[key] for row in found["rows"] for key in row} for name, found in parts.items()}
    usual = numbers.get("train-compiled", {}).get("tokens_per_second")
    for name, found in parts.items():
        known = numbers[name]
        if found["state"] not in ("ok", "needs CUDA", "no time left"):
            lines.append(f"{name} {found['state']}: see its last lines")
        if usual and (speed := known.get("tokens_per_second")) and name != "train-compiled":
            lines.append(f"{name}: {speed / usual:.2f} times as fast as train-compiled")
        if known.get("graphs", 1) > 1:
            lines.append(f"{name}: {known['graphs']} graphs; TORCH_LOGS=graph_breaks says why")
        if known.get("recompilations"):
            lines.append(f"{name}: compiled {known['recompilations']} times more; see TORCH_LOGS=recompiles")
        if goal := next((goal for start, goal in _GOALS.items() if name.startswith(start)), None):
            ratio = known.get("ratio", goal)
            lines += [f"{name}: {ratio:.2f} times the plain way; the goal is {goal}"] * (ratio < goal)
        lines += [f"{name}: {row['says']}" for row in found["rows"] if "DIFFERENT" in row["says"]]
    return lines


def show(report: Row, console: Console) -> None:
    """The slowest operations, the last lines of what failed, the table, and what to change."""
    table = Table("part", "state", "seconds", "found", title=f"pgolf on {report['device']}")
    for name, found in report["parts"].items():
        says = "\n".join(row["says"] for row in found["rows"])
        table.add_row(name, found["state"], f"{found['seconds']:.0f}", says)
        details = {"most time": [line for row in found["rows"] for line in row.get("operations", ())]}
        for title, lines in (details | {found["state"]: found.get("error", ())}).items():
            if lines:
                console.print(f"\n{name}: {title}", *lines, sep="\n", markup=False)
    console.print(table)
    lines = report["advice"] or ["nothing stands out"]
    console.print("\nwhat to change next", *lines, sep="\n", markup=False)


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
