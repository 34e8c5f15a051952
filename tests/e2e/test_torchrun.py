"""torchrun as a user types it: a killed rank ends the job with its reason, or the job is restarted."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from pgolf.compress.weights import load_tensors
from tests.e2e.conftest import pgolf
from tests.e2e.fork_server import Forked

STEPS = 60
TRAIN = (
    *("train", "--recipe", "tiny.toml", "--data", "data", "--set", f"train.steps={STEPS}"),
    *("--set", "train.checkpoint_every=4", "--set", "train.validate_every=0"),
)


def torchrun(*arguments: str | Path, cwd: Path, errors: Path, restarts: int = 0) -> Forked:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = (*launcher, "--max-restarts", str(restarts), "-m", "pgolf", *arguments)
    return Forked(*words, cwd=cwd, errors=errors)


def kill_a_rank(job: Forked, run: Path, after: int) -> float:
    """Kill the last rank (SIGKILL) once some steps are done, and say when."""
    deadline = time.monotonic() + 120
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("train_loss") < after:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    return time.monotonic()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in /proc")
def test_a_killed_rank_ends_the_job_or_has_it_restarted(workshop: Path, tmp_path: Path) -> None:
    run, errors = tmp_path / "run", tmp_path / "errors"
    job = torchrun(*TRAIN, "--out", run, cwd=workshop, errors=errors)
    killed = kill_a_rank(job, run, after=10)
    assert job.wait(timeout=90) != 0
    assert time.monotonic() - killed < 60
    # torchrun ends the other rank, often before that has missed this one and said so.
    assert "SIGKILL" in errors.read_text()
    assert not (run / "model.safetensors").exists()

    job = torchrun(*TRAIN, "--out", run, "--resume", cwd=workshop, errors=errors, restarts=1)
    kill_a_rank(job, run, after=20)
    assert job.wait(timeout=150) == 0, errors.read_text()
    pgolf(*TRAIN, "--out", tmp_path / "single", cwd=workshop)
    weights, _ = load_tensors(run / "model.safetensors")
    for name, value in load_tensors(tmp_path / "single" / "model.safetensors")[0].items():
        assert torch.allclose(weights[name], value, rtol=0, atol=1e-5), name
    steps = [line for line in (run / "metrics.jsonl").read_text().splitlines() if "train_loss" in line]
    assert len(steps) == STEPS, "every step is recorded once"
