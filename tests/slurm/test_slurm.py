"""`pgolf launch slurm` on a real SLURM of one machine.

tests/slurm/start.sh, then PGOLF_TEST_SLURM=1 pytest tests/slurm
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import pgolf, pgolf_json, workshop
from tests.e2e.test_interruption import steps_done
from tests.e2e.test_launch import LONG, TRAINING, same_weights, sessions, until
from tests.e2e.test_mistakes import fails

pytestmark = pytest.mark.skipif(
    not os.environ.get("PGOLF_TEST_SLURM"),
    reason="needs SLURM: tests/slurm/start.sh, then PGOLF_TEST_SLURM=1",
)
__all__ = ["workshop"]
_submitted: list[str] = []


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def state(job: str) -> str:
    shown = slurm("scontrol", "show", "job", "--oneliner", job)
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)["JobState"]


@pytest.fixture(autouse=True)
def jobs() -> Iterator[None]:
    """What a test that failed leaves behind is in the way of the next one."""
    _submitted.clear()
    yield
    if _submitted:
        slurm("scancel", "--quiet", *_submitted)


def submit(workshop: Path, runs: Path, *options: str) -> tuple[str, Path]:
    """A training of a few seconds on one core; its job and its folder."""
    [job] = pgolf_json(
        *TRAINING, "--gpus-per-node", "0", "--cpus", "1", "--runs", runs, *options, cwd=workshop
    )["jobs"]
    _submitted.append(job["id"])
    return job["id"], Path(job["folder"])


def comes_back(job: str) -> None:
    """It goes back into the queue, and starts again. SLURM lets a requeued job wait for two minutes; we need
    not.
    """
    until(lambda: state(job) == "PENDING", 200)
    slurm("scontrol", "update", f"jobid={job}", "starttime=now")
    until(lambda: state(job) != "PENDING", 60)


@pytest.fixture(scope="module")
def whole(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    pgolf("train", "--recipe", "tiny.toml", *LONG, "--data", "data", "--out", run, cwd=workshop)
    return run


@pytest.mark.parametrize("how", ["warning", "preemption"])
def test_an_interrupted_job_comes_back_and_ends_with_bit_equal_weights(
    workshop: Path, whole: Path, tmp_path: Path, how: str
) -> None:
    job, run = submit(workshop, tmp_path)
    until(lambda: steps_done(run) >= 3)
    if how == "warning":
        # What SLURM sends --warning seconds before the time limit, to all processes of the job's step.
        slurm("scancel", "--signal=USR2", job)
    else:
        cores = str(os.cpu_count())
        urgent = ("--partition=urgent", "--output=/dev/null", "-c", cores, "--wrap", "sleep 1")
        _submitted.append(slurm("sbatch", "--parsable", *urgent))
    comes_back(job)
    until(lambda: state(job) == "COMPLETED")
    assert same_weights(run, whole)
    found = [session["job"] for session in sessions(run)]
    assert [(entry["scheduler"], entry["id"]) for entry in found] == 2 * [("slurm", job)]
    assert [entry["restarts"] for entry in found] == [0, 1]
    assert found[0]["nodes"] == slurm("hostname", "-s")


def test_the_time_limit_is_such_an_interruption(workshop: Path, tmp_path: Path) -> None:
    job, run = submit(workshop, tmp_path, "--time", "2", "--warning", "60", "--set", "train.steps=1000000")
    until(lambda: steps_done(run) >= 3)
    comes_back(job)
    until(lambda: len(sessions(run)) == 2)
    slurm("scancel", job)
    assert "stopped after step" in (run / "launch" / "log.txt").read_text()


def test_a_cancelled_job_keeps_its_state_and_stays_away(workshop: Path, tmp_path: Path) -> None:
    job, run = submit(workshop, tmp_path)
    until(lambda: steps_done(run) >= 3)
    slurm("scancel", job)
    until(lambda: state(job) == "CANCELLED")
    time.sleep(2)
    assert state(job) == "CANCELLED"
    assert (run / "checkpoint.safetensors").is_file()
    assert "interrupted; the same command goes on" in (run / "launch" / f"{job}_0_log.out").read_text()


def rank_of(job: str, rank: int) -> int:
    """The process of a rank."""
    wanted = {f"SLURM_JOB_ID={job}", f"RANK={rank}"}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= set(path.read_text(errors="replace").split("\0")):
                return int(path.parent.name)
    raise AssertionError(f"job {job} has no rank {rank}")


def test_a_killed_rank_lets_all_of_them_go_on_from_the_last_checkpoint(
    workshop: Path, tmp_path: Path
) -> None:
    job, run = submit(workshop, tmp_path, "--gpus-per-node", "2", "--set", "train.checkpoint_every=10")
    until(lambda: steps_done(run) >= 20)
    os.kill(rank_of(job, 1), signal.SIGKILL)
    until(lambda: state(job) == "COMPLETED")
    assert [session["job"]["restarts"] for session in sessions(run)] == [0, 0], (
        "the job stayed, its ranks came back"
    )
    assert steps_done(run) == 80, "every step is recorded once"


def test_what_slurm_refuses_is_one_line(workshop: Path, tmp_path: Path) -> None:
    command = ("launch", "slurm", "tiny.toml", "--data", "data", "--gpus-per-node", "0", "--runs", tmp_path)
    assert "partition" in fails(*command, "--partition", "moon", cwd=workshop)
