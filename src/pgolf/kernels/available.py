"""Whether Triton kernels can be used."""

from __future__ import annotations

import importlib.util

import torch

# Looked for here: the function is asked in forward passes, and what a compiler cannot trace breaks its graph.
_THERE = torch.version.cuda is not None and importlib.util.find_spec("triton") is not None


def has_triton() -> bool:
    """Whether torch is built for CUDA and its kernel compiler, Triton, is installed."""
    return _THERE
