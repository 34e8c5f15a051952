"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
import torch

# Tests run in several processes; more threads than cores only slow them down. This is for those that they
# start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    # A shell starts what it puts into the background deaf to Ctrl-C, and so would be all commands that the
    # tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _few_collections() -> None:
    # What is imported and collected stays to the end: half a million objects that every full collection would
    # visit.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of corpora, tokenizers and golden numbers beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}, which holds the full golden files")
    return SHARED
