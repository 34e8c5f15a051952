"""Where and in which number format the model runs: bf16 autocast on CUDA (fp16 on old GPUs), else float32."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pgolf.errors import PgolfError
from pgolf.runtime.meminfo import available_memory

# Read in some minutes by a model of 27 million parameters on one data-centre GPU.
_MANY_POSITIONS = 100_000_000


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or CUDA where there is one, else the CPU; a ``PgolfError`` if it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PgolfError(f"--device {name}: unknown; use cpu, cuda, cuda:N or mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise PgolfError(f"--device {name}: not supported; use cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise PgolfError(f"--device {name}: this machine or this torch has no Apple GPU (MPS); use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PgolfError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # Kernels of our own run on the current device.
    return device


def free_memory(device: torch.device) -> int | None:
    """Bytes of the device's memory that programs can still have; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


@functools.cache
def half_format(device: torch.device) -> torch.dtype | None:
    """The format of matrix products: bfloat16 on CUDA, float16 on GPUs without it (V100, T4); None: float32.

    Gradients in float16 need a scaled loss.
    """
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device, learning: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in the device's half format, everything else in float32.

    ``learning``: for gradients of a loss that is not scaled, which float16 would round away: then in float32.
    """
    dtype = half_format(device)
    if dtype is None or (learning and dtype == torch.float16):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def keep_freed_memory() -> bool:
    """Have the C library keep up to 1 GiB of freed memory for the next tensors; whether it does so now.

    A training step on the CPU frees and allocates the same sizes again and again; by default glibc gives much
    of that back to the system each time, which then has to clear the pages it hands out. The setting is the
    process', and stays. Other C libraries are left as they are.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    # 32 MiB is the most that glibc takes; larger tensors are mapped and unmapped as ever.
    return bool(libc.mallopt(mmap_threshold, 32 << 20) and libc.mallopt(trim_threshold, 1 << 30))


def compiled(
    forward: Callable[..., torch.Tensor], device: torch.device, how: bool | str
) -> Callable[..., torch.Tensor]:
    """A model, or a function of one: compiled on CUDA unless ``how`` is False; a name is torch's mode.

    No mode records CUDA graphs: their replays write gradients where the last ones lie, and micro-batches add
    them up.
    """
    if device.type == "cuda" and how:
        # Of each model a graph for every sequence length, with and without fake quantization, and more: all
        # are asked for in the warm-up. Beyond its limit, 8, the compiler would run what is new uncompiled.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        from torch._inductor import config

        if hasattr(config.triton, "mix_order_reduction"):
            # With these fusions the compiler of torch 2.11 stops at recipe frontier: an assertion of its own.
            # In 2.13 a limit keeps it from there, no more (docs/measurements/speed.md, without a GPU).
            config.triton.mix_order_reduction = False
        return torch.compile(forward, dynamic=False, mode=how if isinstance(how, str) else None)
    return forward


def pays_to_compile(device: torch.device, positions: int) -> bool:
    """Whether so many positions are worth compiling, about a minute: on CUDA, if they take minutes."""
    return device.type == "cuda" and (_always_compile or positions >= _MANY_POSITIONS)


_always_compile = False


@contextlib.contextmanager
def compile_always() -> Iterator[None]:
    """Within it every evaluation is worth compiling: for measurements, which do not count the first one."""
    global _always_compile
    before, _always_compile = _always_compile, True
    try:
        yield
    finally:
        _always_compile = before
