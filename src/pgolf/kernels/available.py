"""Whether Triton kernels can be used."""

from __future__ import annotations

import importlib.util

import torch


def has_triton() -> bool:
    """Whether torch is built for CUDA and its kernel compiler, Triton, is installed."""
    return torch.version.cuda is not None and importlib.util.find_spec("triton") is not None
