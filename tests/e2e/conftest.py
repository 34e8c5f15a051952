"""The commands as a user types them, on a tiny corpus and a tiny recipe."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pgolf.cli.main import main
from pgolf.report import html, job
from tests.e2e import fork_server

RECIPE = """
description = "Seconds on one core."
[model]
vocab_size = 320
layers = 2
width = 32
heads = 2
kv_heads = 1
mlp_hidden = 64
mlp = "leaky_relu2"
xsa_last = 2
[model.bigram]
buckets = 64
width = 16
[train]
steps = 12
warmdown_steps = 6
warmup_steps = 0
batch_tokens = 256
sequence_length = 32
micro_batches = 2
validate_every = 5
checkpoint_every = 4
[average]
decay = 0.8
[compress]
cap = 300000
calibration_tokens = 512
[evaluate]
stride = 8
[ttt]
epochs = 1
chunk_tokens = 256
frozen_blocks = 0
batch_sequences = 4
"""


@dataclass(frozen=True)
class Done:
    """What a finished command printed, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def pgolf(*arguments: str | Path, cwd: Path | None = None, check: int | None = 0) -> Done:
    """Run the command in this process (starting one takes seconds); assert its exit status unless None.

    An exception that would be a traceback for the user comes through and fails the test.
    """
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", ["pgolf", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    done = Done(status, out.getvalue(), err.getvalue())
    assert check is None or status == check, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def pgolf_json(*arguments: str | Path, cwd: Path | None = None) -> Any:
    """Run the command with --json and parse what it prints."""
    return json.loads(pgolf(*arguments, "--json", cwd=cwd).stdout)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Short, learnable English documents."""
    subjects, verbs = (
        ["The cat", "A small dog", "My neighbour", "The old clock"],
        ["sees", "follows", "likes"],
    )
    objects = ["the green house", "a quiet river", "every open door", "the last train"]
    documents = []
    for index in range(count):
        n = index * 7 + seed
        sentence = f"{subjects[n % 4]} {verbs[n % 3]} {objects[(n // 3) % 4]}."
        documents.append(f"{sentence} It was number {n}, and nobody asked why.")
    return documents


@pytest.fixture
def quick_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command starts by ``python -m`` starts at once in this test; see fork_server.py."""
    monkeypatch.setattr(sys, "executable", str(fork_server.python()))


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """Reports without charts, which have tests of their own: they take most of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "svg", lambda chart, name: "<svg></svg>")
        patch.setattr(job, "draw_curve", lambda metrics, out, title: None)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of all test processes fills, and the others find."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of the folders of all workers
    folder, made = base / f"once-{name}", base / f"once-{name}.made"
    with (base / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, prepared data, a recipe, a trained run and its artifact; tests may add to it."""
    made = made_once(tmp_path_factory, "workshop", _furnish)
    return shutil.copytree(made, tmp_path_factory.mktemp("workshop"), dirs_exist_ok=True)


def _furnish(folder: Path) -> None:
    (folder / "train.txt").write_text("\n\n".join(sentences(300)))
    (folder / "val.txt").write_text("\n\n".join(sentences(40, seed=3)))
    (folder / "tiny.toml").write_text(RECIPE)
    pgolf(
        *("data", "prepare", "--text", "train.txt", "--val-text", "val.txt"),
        *("--split", "blank-lines", "--vocab-size", "320", "--out", "data"),
        cwd=folder,
    )
    pgolf("train", "--recipe", "tiny.toml", "--data", "data", "--out", "run", cwd=folder)
    pgolf("pack", "run", "--out", "model.pgolf", cwd=folder)
