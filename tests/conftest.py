"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tests run in several processes; more threads than cores only slow them down.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of corpora, tokenizers and golden numbers beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}, which holds the full golden files")
    return SHARED
