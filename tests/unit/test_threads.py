"""Threads sleep while they wait where others use the cores, unless the user has said otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgolf.runtime import processes

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # So that whatever the test sets is taken back.
        monkeypatch.delenv(name)


def system(monkeypatch: pytest.MonkeyPatch, running: list[int], cores: int, usable: int) -> None:
    """A machine with so many running threads, this one among them, at one look after the other."""
    looks = iter(running)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"0.1 0.2 0.3 {next(looks)}/81 9360\n")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setattr(processes, "_PAUSE", 0)
    monkeypatch.setattr(processes, "_set_here", False)


@pytest.mark.parametrize(
    ("running", "cores", "usable", "taken"),
    [
        ([1, 1, 1, 1], 2, 2, False),
        ([2, 3, 2, 2], 2, 2, True),
        ([3, 2, 1, 4], 2, 2, False),  # Something ended in between.
        ([40, 40, 40, 40], 64, 8, False),  # There is room for eight.
        ([60, 60, 60, 60], 64, 8, True),
    ],
)
def test_cores_are_taken_if_others_leave_too_few(
    running: list[int], cores: int, usable: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    system(monkeypatch, running, cores, usable)
    assert processes.cores_are_taken() == taken


@pytest.mark.parametrize(
    ("threads_wanted", "taken"), [("1", False), ("4", False), ("63", True), ("many", True)]
)
def test_what_counts_are_the_threads_of_this_process(
    threads_wanted: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    system(monkeypatch, [10] * 4, 64, 64)
    monkeypatch.setenv("OMP_NUM_THREADS", threads_wanted)
    assert processes.cores_are_taken() == taken


def test_threads_sleep_only_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    system(monkeypatch, [1] * 4, 2, 2)
    processes.let_threads_wait()
    assert "OMP_WAIT_POLICY" not in os.environ
    system(monkeypatch, [3] * 4, 2, 2)
    processes.let_threads_wait()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7"), ("OMP_NUM_THREADS", "1")]
)
def test_what_the_user_says_holds(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system(monkeypatch, [3] * 4, 2, 2)
    monkeypatch.setenv(name, value)
    processes.let_threads_wait()
    assert {other: os.environ.get(other) for other in VARIABLES} == {**dict.fromkeys(VARIABLES), name: value}


def test_a_machine_that_does_not_tell_is_taken_for_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert not processes.cores_are_taken()


def test_the_plain_way_of_a_benchmark_waits_as_any_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_set_here", False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # The user's choice, for both ways.
    with processes.default_waiting():
        assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    system(monkeypatch, [3] * 4, 2, 2)
    processes.let_threads_wait()
    with processes.default_waiting():
        assert "OMP_WAIT_POLICY" not in os.environ
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
