"""What the models are on CUDA, without a device: graphs, number formats, memory."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="needs torch's build without CUDA"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton"),
]
HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("which", "count"),
    [("not backward", 16), pytest.param("backward", 1, marks=pytest.mark.slow)],
    ids=["most", "backward"],
)
def test_graphs_formats_and_memory_on_a_device_that_is_not_there(
    tmp_path: Path, which: str, count: int
) -> None:
    # A process of its own: the stand-in is loaded before torch and stays.
    library, folder = tmp_path / "stand_in_cuda.so", Path(torch.__file__).parent
    options = ["-w", "-fPIC", "-shared", "-std=c++20", f"-I{folder / 'include'}", "-o", library]
    subprocess.run(["g++", *options, HERE / "stand_in_cuda.cpp"], check=True)
    command = [sys.executable, HERE / "cuda_graphs.py", library, "-k", which]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"{count} passed" in done.stdout
