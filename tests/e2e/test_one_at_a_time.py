"""A run folder belongs to one process, or one team, at a time; what commands write follows the umask."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgolf.compress.weights import load_tensors
from tests.e2e.conftest import pgolf
from tests.e2e.fork_server import Forked, start
from tests.e2e.test_interruption import steps_done
from tests.e2e.test_launch import until
from tests.e2e.test_mistakes import fails
from tests.e2e.test_torchrun import torchrun

LONG = ("--set", "train.steps=5000", "--set", "train.checkpoint_every=4", "--set", "train.validate_every=0")
TRAIN = ("train", "--recipe", "tiny.toml", "--data", "data")


@contextlib.contextmanager
def training(workshop: Path, run: Path, *more: str) -> Iterator[Forked]:
    """A long training, past its first checkpoint."""
    process = start(*TRAIN, *LONG, *more, "--out", run, cwd=workshop)
    until(lambda: steps_done(run) > 5 or process.poll() is not None)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_of_two_trainings_started_into_one_new_folder_one_is_refused(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    seeds = ("1", "2")
    words = (*TRAIN, "--set", "train.steps=30", "--out", run)
    processes = [start(*words, "--set", f"train.seed={seed}", cwd=workshop) for seed in seeds]
    statuses = [process.wait(timeout=120) for process in processes]
    assert sorted(statuses) == [0, 2]
    winner = seeds[statuses.index(0)]
    assert f"seed = {winner}\n" in (run / "recipe.toml").read_text()
    assert steps_done(run) == 30
    pgolf(*words[:-1], tmp_path / "alone", "--set", f"train.seed={winner}", cwd=workshop)
    ours, alone = (load_tensors(folder / "model.safetensors")[0] for folder in (run, tmp_path / "alone"))
    assert all((ours[name] == alone[name]).all() for name in alone)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_nobody_else_writes_into_a_run_in_training(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(workshop, run) as process:
        before = (run / "provenance.json").read_bytes()
        held = f"{run}: another process works on this run (process {process.pid} on "
        commands = (
            (*TRAIN, *LONG, "--out", run, "--resume"),
            (*TRAIN, *LONG, "--out", run),
            ("train", "--resume", "--out", run),
            ("run", "tiny.toml", *LONG, "--data", "data", "--out", run),
            ("pack", "run", "--out", run / "artifact.pgolf"),
            ("eval", "run", "--data", "data", "--mode", "standard", "--ledger", run / "ledger.jsonl"),
        )
        for words in commands:
            line = fails(*words, cwd=workshop)
            assert held in line, words
            assert "since" in line and "wait until it has ended, or choose another place" in line
            assert "pgolf train --recipe tiny.toml" in line or "__main__.py train --recipe tiny.toml" in line
        # Reading is free, and so is writing elsewhere.
        pgolf("runs", tmp_path, cwd=workshop)
        pgolf("report", run, "--out", tmp_path / "report.html", "--no-score", cwd=workshop)
        pgolf("pack", "run", "--out", tmp_path / "other.pgolf", cwd=workshop)
        assert (run / "provenance.json").read_bytes() == before
        assert process.poll() is None


@pytest.mark.parametrize("flock", [True, False])
def test_what_was_killed_goes_on_and_says_what_it_found(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    run = tmp_path / "run"
    with training(workshop, run, "--set", "train.steps=100") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not flock:
            monkeypatch.setattr(fcntl, "flock", _missing)
            lock = json.loads((run / ".lock").read_text())
            (run / ".lock").write_text(json.dumps(lock | {"flock": False}))
        resumed = pgolf("train", "--resume", "--out", run, cwd=workshop)
    assert f"left its lock (process {process.pid} on " in resumed.stderr
    assert (run / "model.safetensors").is_file() and not (run / ".lock").exists()
    assert steps_done(run) == 100


def test_a_lock_of_another_machine_without_flock(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", _missing)
    run = tmp_path / "run"
    run.mkdir()
    holder = {
        "pid": 1,
        "host": "node7",
        "born": "x/1",
        "since": "2025-01-01",
        "command": "pgolf train",
        "flock": False,
    }
    (run / ".lock").write_text(json.dumps(holder))
    line = fails(*TRAIN, "--out", run, cwd=workshop)
    assert "(process 1 on node7, since 2025-01-01: pgolf train)" in line
    assert f"if that process has certainly ended, delete {run / '.lock'}" in line
    (run / ".lock").unlink()
    pgolf(*TRAIN, "--out", run, cwd=workshop)


def test_a_mistake_leaves_no_folder(workshop: Path, tmp_path: Path) -> None:
    fails(
        "train", "--recipe", "tiny.toml", "--data", "nowhere", "--out", tmp_path / "new" / "run", cwd=workshop
    )
    fails(
        "train", "--recipe", "nowhere.toml", "--data", "data", "--out", tmp_path / "new" / "run", cwd=workshop
    )
    fails("run", "tiny.toml", "--data", "nowhere", "--out", tmp_path / "new" / "run", cwd=workshop)
    assert list(tmp_path.iterdir()) == []


def test_ranks_are_one_holder_and_all_of_them_are_refused(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = (*TRAIN, "--set", "train.steps=20", "--out", run)
    with training(workshop, run) as process:
        refused = torchrun(*words, "--resume", cwd=workshop, errors=tmp_path / "refused")
        assert refused.wait(timeout=120) != 0
        said = (tmp_path / "refused").read_text()
        assert said.count(f"another process works on this run (process {process.pid} on ") == 1
    team = torchrun(*words[:-1], tmp_path / "team", cwd=workshop, errors=tmp_path / "accepted")
    assert team.wait(timeout=120) == 0, (tmp_path / "accepted").read_text()
    assert (tmp_path / "team" / "model.safetensors").is_file() and not (tmp_path / "team" / ".lock").exists()


@pytest.mark.parametrize("missing", ["flock", "folder fsync"])
def test_file_systems_that_can_do_less(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "flock":
        monkeypatch.setattr(fcntl, "flock", _missing)
    else:
        monkeypatch.setattr(os, "fsync", _of_files_only(os.fsync))
    text = ("data", "prepare", "--text", "train.txt", "--val-text", "val.txt", "--vocab-size", "320")
    pgolf(*text, "--out", tmp_path / "data", cwd=workshop)
    words = ("--data", tmp_path / "data", "--set", "train.steps=4", "--score", "float")
    pgolf("run", "tiny.toml", *words, "--out", tmp_path / "run", cwd=workshop)
    assert (tmp_path / "run" / "report.md").is_file()
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(("mask", "files", "folders"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_all_that_is_written_follows_the_umask(
    workshop: Path, tmp_path: Path, mask: int, files: int, folders: int
) -> None:
    place, short = tmp_path / "place", tmp_path / "short.txt"
    short.write_text("The cat sees a quiet river.")
    text = ("data", "prepare", "--text", "train.txt", "--val-text", "val.txt", "--vocab-size", "320")
    before = os.umask(mask)
    try:
        pgolf(*text, "--out", place / "data", cwd=workshop)
        words = ("--data", place / "data", "--set", "train.steps=4", "--set", "train.tensorboard=true")
        pgolf(
            "run",
            "tiny.toml",
            *words,
            "--out",
            place / "run",
            "--keep-step",
            "2",
            "--score",
            "float",
            cwd=workshop,
        )
        pgolf("report", place / "run", "--out", place / "report.html", cwd=workshop)
        pgolf("inspect", place / "run" / "artifact.pgolf", "--picture", place / "codes.png", cwd=workshop)
        pgolf("compress", short, "--model", place / "run", "--out", place / "short.pgz", cwd=workshop)
    finally:
        os.umask(before)
    made = list(place.rglob("*"))
    assert {"tokenizer.model", "model.safetensors", "artifact.pgolf", "curve.png", "metrics.jsonl"} < {
        path.name for path in made
    }
    assert {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in made} == {
        str(path): oct(folders if path.is_dir() else files) for path in made
    }


def _missing(*arguments: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _of_files_only(fsync: Callable[[int], None]) -> Callable[[int], None]:
    def some(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    return some
