"""The Triton kernels without a GPU: right in Triton's interpreter, and accepted by its compiler."""

from __future__ import annotations

import importlib.util
import os
import re
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


# Of each chip (compute capability) the most shared memory that a block can have, in bytes. Registers: 65,536.
CHIPS = {80: 166_912, 90: 232_448, 100: 232_448}


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("chip", CHIPS)
def test_the_compiler_takes_them_and_they_fit_the_chip(
    chip: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the interpreter runs need not be legal for a GPU; compiling for one does not take one.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pgolf.kernels import cross_entropy

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    sizes = {"columns": "i32", "stride": "i32", "cap": "fp32", "BLOCK": "constexpr"}
    z, numbers = {"z": "*bf16", "targets": "*i64"}, {"normalisers": "*fp32"}
    forward = z | {"losses": "*fp32"} | numbers | sizes
    backward = z | numbers | {"upstream": "*fp32", "dz": "*bf16"} | sizes
    for kernel, signature in (
        (cross_entropy._forward_kernel, forward),
        (cross_entropy._backward_kernel, backward),
    ):
        source = ASTSource(kernel, signature, constexprs={"BLOCK": cross_entropy._LARGEST_BLOCK})
        warps = {"num_warps": cross_entropy._WARPS}
        made = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=warps)
        assert f".target sm_{chip}" in made.asm["ptx"]
        assert made.metadata.shared <= CHIPS[chip]
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        words = [tools / "cuobjdump", "--dump-resource-usage", cubin]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        usage = {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
        assert usage["LOCAL"] == usage["STACK"] == 0, "registers are spilled"
        # Two blocks or more for each multiprocessor, so that one computes while the other waits for memory.
        assert 2 * 32 * cross_entropy._WARPS * usage["REG"] <= 65_536
