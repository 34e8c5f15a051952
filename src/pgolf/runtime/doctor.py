"""`pgolf doctor`: is this machine fit for pgolf, and if not, what to do.

Every check is short and on its own: one that breaks is a line of the report, not the end of it. torch takes
seconds to import, so what needs it can be left out; the report then says that it was not tried.
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

from pgolf.runtime import processes
from pgolf.runtime.environment import driver_version
from pgolf.runtime.meminfo import available_memory

OK, WARNING, PROBLEM, NOT_TRIED = "ok", "warning", "problem", "not tried"
_REQUIRED = ("numpy", "sentencepiece", "safetensors", "pydantic", "zstandard", "numba", "matplotlib")
# Package and what it is for, with the extra that installs it.
_OPTIONAL = (
    ("huggingface_hub", "pgolf data fetch", "hub"),
    ("pyarrow", "text in Parquet files", "parquet"),
    ("submitit", "pgolf launch slurm", "slurm"),
    ("tokenizers", "Hugging Face tokenizers", "tokenizers"),
    ("tiktoken", "tiktoken encodings", "tokenizers"),
    ("tensorboard", "train.tensorboard", "tensorboard"),
    ("wandb", "train.wandb", "wandb"),
    ("uvicorn", "pgolf serve", "serve"),
    ("transformers", "pgolf export, and models of transformers", "export"),
    ("onnxruntime", "pgolf export --format onnx", "export"),
    ("lm_eval", "pgolf's models in lm-evaluation-harness", "lm-eval"),
)
_OLDEST_TORCH = (2, 8)
_NEED_TORCH = ("device", "attention", "threads", "torch.compile")
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
    """OK, WARNING (works, but), PROBLEM (something essential is broken) or NOT_TRIED."""
    found: str
    remedy: str = ""
    """What to do, where something is to be done."""


def examine(
    more: Mapping[str, Callable[[], Iterator[Check]]] | None = None, compile_seconds: int = _COMPILE_SECONDS
) -> list[Check]:
    """Look at this machine: every check, the essential ones first, and those of the parts ``more``.

    torch.compile may take ``compile_seconds``; with 0 neither it nor anything else of torch is tried.
    """
    parts: dict[str, Callable[[], Iterator[Check]]] = {
        "Python": _python,
        "packages": _packages,
        "torch": _torch,
        "device": _device,
        "attention": _attention,
        "threads": _threads,
        "torch.compile": lambda: _compile(compile_seconds),
        "memory and disk": _space,
        "load": _load,
        **(more or {}),
        "optional packages": _optional,
    }
    checks: list[Check] = []
    for name, part in parts.items():
        if not compile_seconds and name in _NEED_TORCH:
            checks.append(Check(name, NOT_TRIED, "", "leave out --compile-seconds 0"))
            continue
        try:
            checks += part()
        except Exception as error:  # A broken installation can raise anything.
            found = f"{type(error).__name__}: {error}"
            checks.append(Check(name, PROBLEM, found, "install again: pip install pgolf"))
    return checks


def is_usable(checks: list[Check]) -> bool:
    """Whether nothing essential was found broken."""
    return all(check.state != PROBLEM for check in checks)


def _good_if(good: bool, name: str, found: str, remedy: str, otherwise: str = WARNING) -> Check:
    """OK, or another state with what to do."""
    return Check(name, OK, found) if good else Check(name, otherwise, found, remedy)


def _python() -> Iterator[Check]:
    good, version = sys.version_info >= (3, 11), platform.python_version()
    yield _good_if(good, "Python", version, "use Python 3.11 or newer", PROBLEM)


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
        versions = (f"{name} {importlib.metadata.version(name)}" for name in _REQUIRED)
        yield Check("packages", OK, ", ".join(versions))


def _torch() -> Iterator[Check]:
    found = importlib.metadata.version("torch")
    version = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    remedy = f"install torch {'.'.join(map(str, _OLDEST_TORCH))} or newer"
    yield _good_if(version >= _OLDEST_TORCH, "torch", f"{found} is installed", remedy, PROBLEM)


def _device() -> Iterator[Check]:
    import torch

    driver = driver_version()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            found = (
                f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
            )
            remedy = "no bfloat16 before capability 8.0 (Ampere): float16 takes its place, not measured"
            yield _good_if(gpu.major >= 8, f"GPU {index}", found, remedy)
        free, total = torch.cuda.mem_get_info()
        found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        yield _good_if(free >= total / 2, "GPU memory", found, "another program uses the GPU: nvidia-smi")
        yield Check("driver", OK, f"{driver or 'unknown'}; CUDA of torch: {torch.version.cuda or 'none'}")
    elif driver and torch.version.cuda is None:
        found = f"an NVIDIA GPU with driver {driver}, but torch is built for the CPU"
        yield Check("device", WARNING, found, "install a CUDA build of torch, without constraints.txt")
    elif driver:
        found = f"driver {driver}, but torch finds no GPU"
        remedy = f"update the driver to one for CUDA {torch.version.cuda}, or look at CUDA_VISIBLE_DEVICES"
        yield Check("device", WARNING, found, remedy)
    elif torch.backends.mps.is_available():
        yield Check("device", OK, "Apple GPU, which `--device mps` uses, in float32; not measured")
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
    kinds = {"flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION}
    works = {}
    for name, kind in (kinds | {"math": SDPBackend.MATH}).items():
        try:
            with sdpa_kernel(kind):
                scaled_dot_product_attention(query, query, query, is_causal=True)
            works[name] = True
        except RuntimeError:
            works[name] = False
    found = ", ".join(f"{name} {'yes' if good else 'no'}" for name, good in works.items())
    if any(works.values()):
        remedy = "training is slower and needs more memory without flash attention"
        yield _good_if(works["flash"], "attention", found, remedy)
    else:
        yield Check("attention", PROBLEM, found, "install torch again; none of its attention kernels runs")
    there = importlib.util.find_spec("flash_attn_interface") is not None
    yield Check("FlashAttention 3", OK, "importable" if there else "not installed; pgolf does not need it")
    if torch.version.cuda is not None:
        good, purpose = has_triton(), "for the loss and masked attention"
        found = purpose if good else "not installed; losses and masked attention are slower"
        yield _good_if(good, "Triton", found, "install the triton your torch asks for")


def _space() -> Iterator[Check]:
    memory = available_memory()
    if memory is not None:
        remedy = "end other programs; the demo needs about 1 GiB"
        yield _good_if(memory >= 2 * _GIB, "memory", f"{memory / _GIB:.1f} GiB free", remedy)
    disk, here = shutil.disk_usage(Path.cwd()).free, Path.cwd()
    remedy = "free some space; checkpoints of the large recipes take hundreds of MB"
    state = PROBLEM if disk < _GIB // 4 else WARNING
    yield _good_if(disk >= 5 * _GIB, "disk", f"{disk / _GIB:.1f} GiB free in {here}", remedy, state)
    if not os.access(here, os.W_OK):
        yield Check("folder", WARNING, f"{here} cannot be written", "work in another folder, or pass --out")


def _threads() -> Iterator[Check]:
    import torch

    cores, threads = processes.cores(), torch.get_num_threads()
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    given = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    several = "s" * (threads != 1)
    found = f"{threads} thread{several} on {cores} cores" + (f" ({given})" if given else "")
    remedy = f"set OMP_NUM_THREADS={cores}: more threads than cores slow each other down"
    yield _good_if(threads <= cores, "threads", found, remedy)


def _load() -> Iterator[Check]:
    if hasattr(os, "getloadavg"):  # Windows does not say.
        cores, load = processes.cores(), os.getloadavg()[0]
        remedy = "other programs use the cores; measurements of speed will be off"
        yield _good_if(load <= cores, "load", f"{load:.1f} on {cores} cores", remedy)


def _compile(seconds: int) -> Iterator[Check]:
    """In a process of its own: a broken compiler can hang, or take the process with it."""
    import torch

    on_gpu = torch.cuda.is_available()
    words = [sys.executable, "-c", _COMPILE.format(device="cuda" if on_gpu else "cpu")]
    remedy = "nothing: pgolf compiles on GPUs only"
    if on_gpu:
        remedy = "add --set train.compile=false to train on the GPU"
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        yield Check("torch.compile", WARNING, f"not done after {seconds} s", remedy)
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    found = lines[-1][:200] if lines else f"exit status {done.returncode}"
    if done.returncode == 0:
        found = f"works on {'CUDA' if on_gpu else 'the CPU'}"
    yield _good_if(done.returncode == 0, "torch.compile", found, remedy)


def _optional() -> Iterator[Check]:
    for name, purpose, extra in _OPTIONAL:
        found = f"not installed; {purpose} needs it: pip install 'pgolf[{extra}]'"
        if importlib.util.find_spec(name) is not None:
            found = f"{importlib.metadata.version(name)}, for {purpose}"
        yield Check(name, OK, found)
