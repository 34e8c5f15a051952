"""The Triton kernels without a GPU: right in Triton's interpreter, and accepted by its compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton")


def test_kernels_under_the_interpreter() -> None:
    # A process of its own, since the kernels are imported one way or the other.
    tests = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "7 passed" in done.stdout


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_compiler_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the interpreter runs need not be legal for a GPU; compiling for one does not take one.
    from triton import compile as to_machine_code
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pgolf.kernels import cross_entropy

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {"columns": "i32", "stride": "i32", "cap": "fp32", "BLOCK": "constexpr"}
    forward = {"z": "*bf16", "targets": "*i64", "losses": "*fp32", "normalisers": "*fp32"} | sizes
    backward = {
        "z": "*bf16",
        "targets": "*i64",
        "normalisers": "*fp32",
        "upstream": "*fp32",
        "dz": "*bf16",
    } | sizes
    for kernel, signature in (
        (cross_entropy._forward_kernel, forward),
        (cross_entropy._backward_kernel, backward),
    ):
        source = ASTSource(kernel, signature, constexprs={"BLOCK": 1024})
        assert to_machine_code(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
