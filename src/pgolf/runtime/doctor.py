"""`pgolf doctor`: is this machine fit for pgolf, and if not, what to do.

Every check is short and on its own: one that breaks is a line of the report, not the end of it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_REQUIRED = ("numpy", "sentencepiece", "safetensors", "pydantic", "zstandard", "constriction", "matplotlib")
# Package and what it is for, with the extra that installs it.
_OPTIONAL = (
    ("huggingface_hub", "pgolf data fetch", "hub"),
    ("pyarrow", "text in Parquet files", "parquet"),
    ("submitit", "pgolf launch slurm", "slurm"),
    ("tensorboard", "train.tensorboard", "tensorboard"),
)
_OLDEST_TORCH = (2, 8)
_COMPILE_SECONDS = 180
_GIB = 1 << 30
# A small function, since the question is whether the compiler and its tools work at all.
_COMPILE = """
import torch
f = torch.compile(lambda x: torch.relu(x @ x).sum())
x = torch.ones(32, 32, device="{device}")
assert abs(float(f(x)) - 32**3) < 1
"""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: str
    """OK, WARNING (works, but) or PROBLEM (something essential is broken)."""
    found: str
    remedy: str = ""
    """What to do, where something is to be done."""


def examine(
    more: Mapping[str, Callable[[], Iterator[Check]]] | None = None, compile_seconds: int = _COMPILE_SECONDS
) -> list[Check]:
    """Look at this machine.

    Args:
        more: further parts of the examination, by name.
        compile_seconds: how long torch.compile may take; 0 leaves that check out.

    Returns:
        Every check, the essential ones first.
    """
    parts: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("device", _device),
        ("attention", _attention),
        ("memory and disk", _space),
        ("threads", _threads),
    ]
    if compile_seconds:
        parts.append(("torch.compile", lambda: _compile(compile_seconds)))
    parts += (more or {}).items()
    parts.append(("optional packages", _optional))
    checks: list[Check] = []
    for name, part in parts:
        try:
            checks += part()
        except Exception as error:  # A broken installation can raise anything.
            checks.append(
                Check(name, PROBLEM, f"{type(error).__name__}: {error}", "install again: pip install pgolf")
            )
    return checks


def is_usable(checks: list[Check]) -> bool:
    """Whether nothing essential is broken."""
    return all(check.state != PROBLEM for check in checks)


def _python() -> Iterator[Check]:
    good = sys.version_info >= (3, 11)
    yield Check(
        "Python",
        OK if good else PROBLEM,
        platform.python_version(),
        "" if good else "use Python 3.11 or newer",
    )


def _packages() -> Iterator[Check]:
    broken: dict[str, str] = {}
    for name in _REQUIRED:
        try:
            importlib.import_module(name)
        except Exception as error:  # A compiled package fails in many ways.
            broken[name] = str(error)
    for name, reason in broken.items():
        yield Check(name, PROBLEM, f"cannot be imported ({reason})", f"pip install --force-reinstall {name}")
    if not broken:
        yield Check(
            "packages", OK, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _REQUIRED)
        )


def _torch() -> Iterator[Check]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    old = version < _OLDEST_TORCH
    remedy = f"install torch {'.'.join(map(str, _OLDEST_TORCH))} or newer" if old else ""
    yield Check("torch", PROBLEM if old else OK, f"{torch.__version__}, built for {build}", remedy)


def _device() -> Iterator[Check]:
    import torch

    from pgolf.runtime.environment import driver_version

    driver = driver_version()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            text = f"{about.name}, {about.total_memory / _GIB:.0f} GiB, compute capability {about.major}.{about.minor}"
            old = about.major < 8
            remedy = "bfloat16 is slow before capability 8.0 (Ampere); expect slow steps" if old else ""
            yield Check(f"GPU {index}", WARNING if old else OK, text, remedy)
        yield Check("driver", OK, driver or "unknown")
    elif driver and torch.version.cuda is None:
        found = f"an NVIDIA GPU with driver {driver}, but torch is built for the CPU"
        yield Check("device", WARNING, found, "install a CUDA build of torch, without constraints.txt")
    elif driver:
        found = f"driver {driver}, but torch finds no GPU"
        remedy = f"update the driver to one for CUDA {torch.version.cuda}, or look at CUDA_VISIBLE_DEVICES"
        yield Check("device", WARNING, found, remedy)
    else:
        yield Check("device", OK, "CPU only: enough for the small recipes")


def _attention() -> Iterator[Check]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from pgolf.kernels.available import has_triton

    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    query = torch.ones(1, 2, 16, 32, device=device, dtype=dtype)
    works = {}
    kinds = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    for kind, name in zip(kinds, ("flash", "memory-efficient", "math"), strict=True):
        try:
            with sdpa_kernel(kind):
                scaled_dot_product_attention(query, query, query, is_causal=True)
            works[name] = True
        except RuntimeError:
            works[name] = False
    text = ", ".join(f"{name} {'yes' if good else 'no'}" for name, good in works.items())
    if not any(works.values()):
        yield Check("attention", PROBLEM, text, "install torch again; none of its attention kernels runs")
    elif not works["flash"]:
        yield Check(
            "attention", WARNING, text, "training is slower and needs more memory without flash attention"
        )
    else:
        yield Check("attention", OK, text)
    there = importlib.util.find_spec("flash_attn_interface") is not None
    yield Check("FlashAttention 3", OK, "importable" if there else "not installed; pgolf does not need it")
    if torch.version.cuda is not None:
        good = has_triton()
        text = (
            "for the loss and masked attention"
            if good
            else "not installed; losses and masked attention are slower"
        )
        yield Check(
            "Triton", OK if good else WARNING, text, "" if good else "install the triton your torch asks for"
        )


def _space() -> Iterator[Check]:
    import torch

    from pgolf.runtime.device import free_memory

    memory = free_memory(torch.device("cpu"))
    if memory is not None:
        low = memory < 2 * _GIB
        remedy = "end other programs; the demo needs about 1 GiB" if low else ""
        yield Check("memory", WARNING if low else OK, f"{memory / _GIB:.1f} GiB free", remedy)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        low = free < total / 2
        text = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        yield Check(
            "GPU memory",
            WARNING if low else OK,
            text,
            "another program uses the GPU: nvidia-smi" if low else "",
        )
    disk = shutil.disk_usage(Path.cwd()).free
    state = PROBLEM if disk < _GIB // 4 else WARNING if disk < 5 * _GIB else OK
    remedy = "free some space; checkpoints of the large recipes take hundreds of MB" if state != OK else ""
    yield Check("disk", state, f"{disk / _GIB:.1f} GiB free in {Path.cwd()}", remedy)
    if not os.access(Path.cwd(), os.W_OK):
        yield Check(
            "folder", WARNING, f"{Path.cwd()} cannot be written", "work in another folder, or pass --out"
        )


def _threads() -> Iterator[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    given = ", ".join(
        f"{name}={os.environ[name]}"
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        if name in os.environ
    )
    text = f"{threads} threads on {cores} cores, load {load:.1f}" + (f" ({given})" if given else "")
    if threads > cores:
        yield Check(
            "threads",
            WARNING,
            text,
            f"set OMP_NUM_THREADS={cores}: more threads than cores slow each other down",
        )
    elif load > cores:
        yield Check(
            "threads", WARNING, text, "other programs use the cores; measurements of speed will be off"
        )
    else:
        yield Check("threads", OK, text)


def _compile(seconds: int) -> Iterator[Check]:
    """In a process of its own: a broken compiler can hang, or take the process with it."""
    import torch

    on_gpu = torch.cuda.is_available()
    program = _COMPILE.format(device="cuda" if on_gpu else "cpu")
    remedy = (
        "add --set train.compile=false to train on the GPU"
        if on_gpu
        else "nothing: pgolf compiles on GPUs only"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        yield Check("torch.compile", WARNING, f"not done after {seconds} s", remedy)
        return
    if done.returncode == 0:
        yield Check("torch.compile", OK, f"works on {'CUDA' if on_gpu else 'the CPU'}")
    else:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [
            f"exit status {done.returncode}"
        ]
        yield Check("torch.compile", WARNING, lines[-1][:200], remedy)


def _optional() -> Iterator[Check]:
    for name, purpose, extra in _OPTIONAL:
        if importlib.util.find_spec(name) is None:
            yield Check(name, OK, f"not installed; {purpose} needs it: pip install 'pgolf[{extra}]'")
        else:
            yield Check(name, OK, f"{importlib.metadata.version(name)}, for {purpose}")
