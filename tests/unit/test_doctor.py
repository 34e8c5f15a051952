"""The doctor finds what is broken and says what to do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.runtime import doctor
from pgolf.runtime.doctor import NOT_TRIED, OK, PROBLEM, WARNING, Check, examine, is_usable
from pgolf.runtime.environment import environment
from tests.e2e.conftest import pgolf, pgolf_json


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor tries all but the compiler."""
    monkeypatch.setattr(doctor, "_compile", lambda _: iter(()))


@pytest.mark.usefixtures("uncompiled")
def test_this_machine_is_fit() -> None:
    found = pgolf_json("doctor")
    assert found["usable"]
    names = {check["name"] for check in found["checks"]}
    assert {"Python", "packages", "torch", "attention", "disk", "threads", "load", "submitit"} <= names
    assert all(check["remedy"] for check in found["checks"] if check["state"] != OK)
    assert "fit for pgolf" in pgolf("doctor").stdout


def test_what_was_not_tried_is_named() -> None:
    checks = named(examine(compile_seconds=0))
    untried = {name for name, check in checks.items() if check.state == NOT_TRIED}
    assert untried == {"device", "attention", "threads", "torch.compile"}
    assert torch.__version__ in checks["torch"].found
    said = pgolf("doctor", "--compile-seconds", "0").stdout
    assert "as far as it was tried" in said and "fit for pgolf" not in said


def test_missing_data_is_a_problem_and_status_1(tmp_path: Path) -> None:
    done = pgolf("doctor", "--data", tmp_path / "none", "--compile-seconds", "0", "--json", check=1)
    found = json.loads(done.stdout)
    assert not found["usable"]
    assert [check["name"] for check in found["checks"] if check["state"] == PROBLEM] == ["data"]


@pytest.mark.usefixtures("uncompiled")
def test_old_or_broken_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.6.1+cu124")
    monkeypatch.setattr(doctor, "_REQUIRED", ("numpy", "no_such_package"))
    monkeypatch.setattr(doctor, "_attention", lambda: 1 / 0)
    checks = named(examine())
    assert checks["torch"].state == PROBLEM and "2.8" in checks["torch"].remedy
    assert checks["no_such_package"].state == PROBLEM
    assert "ZeroDivisionError" in checks["attention"].found
    assert not is_usable(list(checks.values()))


@pytest.mark.usefixtures("uncompiled")
def test_a_driver_without_cuda_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "driver_version", lambda: "550.54")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CUDA build" in named(examine())["device"].remedy
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "update the driver" in named(examine())["device"].remedy


@pytest.mark.usefixtures("uncompiled")
def test_a_run_and_the_doctor_know_the_same_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment(torch.device("cpu"))["driver"] is None
    said = subprocess.CompletedProcess("nvidia-smi", 0, "550.54.15\n550.54.15\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    assert environment(torch.device("cuda"))["driver"] == "550.54.15"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "550.54.15" in named(examine())["device"].found


@pytest.mark.usefixtures("uncompiled")
def test_threads_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    monkeypatch.setattr(doctor, "available_memory", lambda: 1 << 28)
    checks = named(examine())
    assert checks["threads"].state == WARNING and "OMP_NUM_THREADS" in checks["threads"].remedy
    assert checks["memory"].state == WARNING
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 1.0, 1.0))
    assert "other programs" in named(examine(compile_seconds=0))["load"].remedy


def test_a_compiler_that_hangs_or_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, timeout: int, **__: Any) -> subprocess.CompletedProcess[str]:
        if timeout == 1:
            raise subprocess.TimeoutExpired("python", timeout)
        return subprocess.CompletedProcess("python", 1, "", "many lines\nno C compiler\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert "not done after 1 s" in named(examine(compile_seconds=1))["torch.compile"].found
    check = named(examine(compile_seconds=2))["torch.compile"]
    assert (check.state, check.found) == (WARNING, "no C compiler")
