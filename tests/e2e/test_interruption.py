"""Killed at any moment, continued, and ended with the very same weights."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from pgolf.compress.weights import load_tensors
from tests.e2e.conftest import pgolf
from tests.e2e.fork_server import start


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("train_loss") if path.exists() else 0


def test_a_killed_training_ends_with_bit_equal_weights(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("train", "--recipe", "tiny.toml", "--data", "data", "--out", run, "--resume")
    for kill_after in (0, 2, 6, 9):
        process = start(*arguments, cwd=workshop)
        deadline = time.monotonic() + 60
        while steps_done(run) < kill_after and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
    pgolf(*arguments, cwd=workshop)
    resumed, _ = load_tensors(run / "model.safetensors")
    whole, _ = load_tensors(workshop / "run" / "model.safetensors")
    assert all((resumed[name] == whole[name]).all() for name in whole)
    steps = [line for line in (run / "metrics.jsonl").read_text().splitlines() if "train_loss" in line]
    assert len(steps) == 12, "every step is recorded once"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_interruption_loses_no_step(workshop: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    long = (
        "--set",
        "train.steps=2000",
        "--set",
        "train.checkpoint_every=0",
        "--set",
        "train.validate_every=0",
    )
    process = start("train", "--recipe", "tiny.toml", *long, "--data", "data", "--out", run, cwd=workshop)
    while steps_done(run) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    _, metadata = load_tensors(run / "checkpoint.safetensors")
    assert metadata["clock"]["step"] == steps_done(run)
    # What was reached can be packed and scored.
    pgolf("pack", run / "checkpoint.safetensors", "--out", tmp_path / "early.pgolf", cwd=workshop)
    pgolf("eval", tmp_path / "early.pgolf", "--data", "data", "--mode", "standard", cwd=workshop)


def test_resuming_with_another_recipe_or_other_data_is_refused(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("train", "--recipe", "tiny.toml", "--data", "data", "--out", run, cwd=workshop)
    while not (run / "checkpoint.safetensors").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    other = (
        "train",
        "--recipe",
        "tiny.toml",
        "--set",
        "train.steps=20",
        "--data",
        "data",
        "--out",
        run,
        "--resume",
    )
    assert "another recipe" in pgolf(*other, cwd=workshop, check=2).stderr
    assert "add --resume to continue it" in pgolf(*other[:-1], cwd=workshop, check=2).stderr
    pgolf("train", "--resume", "--out", run, "--data", "data", cwd=workshop)
    assert (
        "already finished"
        in pgolf("train", "--resume", "--out", run, "--data", "data", cwd=workshop, check=2).stderr
    )


def test_a_killed_pack_leaves_no_artifact_or_a_whole_one(workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pgolf"
    started = time.monotonic()
    start("pack", "run", "--out", tmp_path / "other.pgolf", cwd=workshop).wait()
    whole = time.monotonic() - started
    for part in (0.3, 0.5, 0.7, 0.8, 0.9):
        process = start("pack", "run", "--out", out, cwd=workshop)
        time.sleep(part * whole)
        process.kill()
        process.wait()
        if out.exists():
            assert out.read_bytes() == (workshop / "model.pgolf").read_bytes()
    pgolf("pack", "run", "--out", out, cwd=workshop)
    assert out.read_bytes() == (workshop / "model.pgolf").read_bytes()
