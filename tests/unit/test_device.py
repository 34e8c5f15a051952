"""What is set up once for a device."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pgolf.device import keep_freed_memory

PROGRAM = """
import resource, sys, torch
from pgolf.device import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        parts = [torch.ones(1 << 18) for _ in range(16)]
        del parts
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="no glibc")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    assert page_faults("keep") < 100 < page_faults("default")


def test_other_systems_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgolf.device.sys.platform", "darwin")
    assert not keep_freed_memory()
