"""Fixtures for all tests."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer.main
from hypothesis import HealthCheck, settings

# What is imported and collected stays to the end: half a million objects that every full collection would
# visit. So there is none until the first test (`_few_collections`).
gc.disable()
# Tests run in several processes; more threads than cores only slow them down. This is for those that they
# start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# A property test tries the same few cases each time, and many others in `make test-long`. Other work on the
# machine makes neither fail.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _PATIENT, max_examples=25, derandomize=True)
settings.register_profile("nightly", _PATIENT, max_examples=500)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def _disk_without_waiting() -> Iterator[None]:
    """Files are not forced to the disk: no test cuts the power. Tests of failing disks have their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _command_line_built_once() -> Iterator[None]:
    """Typer builds all commands anew for each command line, which takes longer than most mistakes need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="module")
def code_of_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers puts the code that folders bring along into a folder of the tests."""
    import transformers

    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", place)
        patch.setattr(sys, "path", list(sys.path))
        yield


# What takes ten seconds or more. In the end, when the processes take tests from each other, short ones are
# left.
LONGEST = (
    "e2e/test_readme.py",
    "unit/test_cuda_graphs.py",
    "e2e/test_ranks.py",
    "golden/test_trajectory.py",
    "unit/test_bundle.py",
    "e2e/test_submit.py",
    "e2e/test_study.py",
    "e2e/test_documents.py",
    "unit/test_triton_kernels.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first; in each, tests stay in their order."""
    place = {ROOT / "tests" / file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slowest", type=int, metavar="N", help="Print the N slowest tests, fixtures included, as a table."
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.option.slowest:
        return
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] += report.duration
    terminalreporter.section(f"slowest {config.option.slowest} tests")
    terminalreporter.write_line("| seconds | file | test |\n| ---: | --- | --- |")
    for name in sorted(seconds, key=lambda name: -seconds[name])[: config.option.slowest]:
        file, _, test = name.removeprefix("tests/").partition("::")
        terminalreporter.write_line(f"| {seconds[name]:.1f} | {file} | {test.removeprefix('test_')} |")


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
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of corpora, tokenizers and golden numbers beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}, which holds the full golden files")
    return SHARED
