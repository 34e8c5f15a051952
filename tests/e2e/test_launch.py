"""`pgolf launch`: jobs that are interrupted, come back and end with the very same weights; several runs in a
row.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgolf.cli.launch import parse_minutes
from pgolf.cli.study import parse_slurm
from pgolf.compress.weights import load_tensors
from pgolf.errors import PgolfError
from pgolf.launch.jobs import local_places
from pgolf.launch.slurm import Resources, launcher
from tests.e2e.conftest import pgolf, pgolf_json
from tests.e2e.fork_server import start
from tests.e2e.test_interruption import steps_done
from tests.e2e.test_mistakes import fails

pytestmark = pytest.mark.usefixtures("quick_python")
# Long enough to be interrupted; no checkpoints but the one at the interruption.
LONG = ("--set", "train.steps=80", "--set", "train.checkpoint_every=0", "--set", "train.validate_every=0")
TRAINING = ("launch", "slurm", "tiny.toml", *LONG, "--data", "data", "--command", "train")


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait for something to be true; return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
    return found


def task_of(controller: int) -> int:
    """The process that submitit's local executor started for a job."""
    children = Path(f"/proc/{controller}/task/{controller}/children")
    return int(until(lambda: children.read_text().split())[0])


def sessions(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "provenance.json").read_text())["sessions"]
    return found


def same_weights(one: Path, other: Path) -> bool:
    (a, _), (b, _) = load_tensors(one / "model.safetensors"), load_tensors(other / "model.safetensors")
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.fixture(scope="module")
def whole(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long run, not interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    pgolf("train", "--recipe", "tiny.toml", *LONG, "--data", "data", "--out", run, cwd=workshop)
    return run


def test_a_preempted_job_comes_back_and_ends_with_bit_equal_weights(
    workshop: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = (
        *TRAINING,
        "--executor",
        "local",
    )
    [job] = pgolf_json(*command, "--gpus-per-node", "0", "--runs", tmp_path, cwd=workshop)["jobs"]
    run = Path(job["folder"])
    for number in (signal.SIGUSR2, signal.SIGTERM):
        before = steps_done(run)
        until(lambda before=before: steps_done(run) >= before + 3)
        task = task_of(int(job["id"]))
        os.kill(task, number)
        until(lambda task=task: not Path(f"/proc/{task}").exists())
        assert (run / "checkpoint.safetensors").is_file()
    until((run / "launch" / f"{job['id']}_0_result.pkl").exists)
    assert same_weights(run, whole)
    assert [session["job"] for session in sessions(run)] == 3 * [{"scheduler": "local", "id": job["id"]}]
    log = Path(job["log"]).read_text()
    assert log.count("== ") == 3 and log.count("stopped after step") == 2
    assert (run / "launch" / f"{job['id']}_0_log.out").read_text().count("Requeued job") == 2
    assert pgolf_json(*command, "--runs", tmp_path, cwd=workshop)["jobs"][0]["id"] == "", (
        "nothing is left to do"
    )


def test_a_job_does_what_run_does_and_a_failed_one_says_why(workshop: Path, tmp_path: Path) -> None:
    command = (
        "launch",
        "slurm",
        "tiny.toml",
        "--data",
        "data",
        "--executor",
        "local",
        "--gpus-per-node",
        "0",
        "--set",
        "evaluate.stride=32",
    )
    [job] = pgolf_json(*command, "--runs", tmp_path / "good", cwd=workshop)["jobs"]
    broken = ("--set", "optim.matrix_lr=1e30", "--set", "optim.scalar_lr=1e30")
    [bad] = pgolf_json(*command, *broken, "--runs", tmp_path / "bad", cwd=workshop)["jobs"]
    until(lambda: (Path(bad["folder"]) / "launch" / f"{bad['id']}_0_result.pkl").exists())
    output = Path(bad["folder"]) / "launch" / f"{bad['id']}_0_log.out"
    until(lambda: "the training loss became" in output.read_text())
    assert "Requeued" not in output.read_text()
    until(lambda: (Path(job["folder"]) / "launch" / f"{job['id']}_0_result.pkl").exists())
    assert (Path(job["folder"]) / "report.md").is_file()


def test_several_runs_here_and_one_that_fails(workshop: Path, tmp_path: Path) -> None:
    for name, rate in (("one", 0.02), ("two", 1e30), ("three", 0.03)):
        text = (workshop / "tiny.toml").read_text()
        (tmp_path / f"{name}.toml").write_text(f"{text}\n[optim]\nmatrix_lr = {rate}\nscalar_lr = {rate}\n")
    command = (
        "launch",
        "local",
        "one.toml",
        "two.toml",
        "three.toml",
        "--data",
        workshop / "data",
        "--jobs",
        "2",
    )
    done = pgolf(*command, "--device", "cpu", "--command", "train", "--json", cwd=tmp_path, check=1)
    states = {run["name"]: run for run in json.loads(done.stdout)["runs"]}
    assert [run["state"] for run in states.values()] == ["done", "failed", "done"]
    assert "the training loss became" in states["two"]["message"]
    assert (tmp_path / "runs" / "three" / "model.safetensors").is_file()
    assert "validation" in (tmp_path / "runs" / "three" / "launch" / "log.txt").read_text()
    assert sessions(tmp_path / "runs" / "one")[0]["job"]["scheduler"] == "local"
    again = pgolf(*command, "--device", "cpu", "--command", "train", cwd=tmp_path, check=1)
    assert again.stdout.count("done before") == 2 and "failed" in again.stdout


def test_ctrl_c_lets_the_running_step_end_and_the_next_call_goes_on(
    workshop: Path, whole: Path, tmp_path: Path
) -> None:
    text = (workshop / "tiny.toml").read_text()
    for name in ("first", "second"):
        (tmp_path / f"{name}.toml").write_text(text)
    command = (
        "launch",
        "local",
        "first.toml",
        "second.toml",
        *LONG,
        "--data",
        workshop / "data",
        "--command",
        "train",
    )
    process = start(*command, cwd=tmp_path)
    first = tmp_path / "runs" / "first"
    until(lambda: steps_done(first) >= 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    _, metadata = load_tensors(first / "checkpoint.safetensors")
    assert metadata["clock"]["step"] == steps_done(first) < 80
    assert not (tmp_path / "runs" / "second").exists()
    outcome = pgolf_json(*command, cwd=tmp_path)["runs"]
    assert [run["state"] for run in outcome] == ["done", "done"]
    assert same_weights(first, whole) and same_weights(tmp_path / "runs" / "second", whole)
    assert len(sessions(first)) == 2


def test_no_two_processes_work_on_one_run(workshop: Path, tmp_path: Path) -> None:
    command = (
        "launch",
        "local",
        "tiny.toml",
        *LONG,
        "--data",
        "data",
        "--command",
        "train",
        "--runs",
        tmp_path,
    )
    process = start(*command, cwd=workshop)
    until(lambda: (tmp_path / "tiny" / ".lock").exists())
    done = pgolf(*command, cwd=workshop, check=1)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert "another process works on this run (process " in " ".join(done.stdout.split())
    assert not (tmp_path / "tiny" / "launch" / "lock").exists(), "the run's own lock is the only one"


def test_mistakes_are_one_line(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ("--data", "data", "--runs", tmp_path / "runs")
    local, slurm = ("launch", "local", "tiny.toml", *here), ("launch", "slurm", "tiny.toml", *here)
    assert "pack" in fails(*local, "--command", "pack", cwd=workshop)
    assert "a second recipe" in fails("launch", "local", "tiny.toml", "tiny.toml", *here, cwd=workshop)
    assert "missing" in fails("launch", "local", "tiny.toml", "--data", "missing", cwd=workshop)
    assert "soon" in fails(*slurm, "--time", "soon", cwd=workshop)
    assert "cloud" in fails(*slurm, "--executor", "cloud", cwd=workshop)
    monkeypatch.setattr("pgolf.launch.slurm.submitit", None)
    assert "pip install 'pgolf[slurm]'" in fails(*slurm, cwd=workshop)
    assert not (tmp_path / "runs").exists()


def test_time_limits_are_read_as_slurm_reads_them() -> None:
    written = {
        "90": 90,
        "90:30": 91,
        "4:00:00": 240,
        "0:00:01": 1,
        "2-0": 2880,
        "1-12:30": 2190,
        "1-00:00:01": 1441,
    }
    assert {text: parse_minutes(text) for text in written} == written
    for text in ("", "1h", "0", "1:2:3:4", "-5"):
        with pytest.raises(PgolfError):
            parse_minutes(text)


def test_several_gpus_are_started_by_torchrun() -> None:
    alone = launcher(Resources(minutes=1, gpus_per_node=1), "7", "a")
    assert alone == [sys.executable, "-m", "pgolf"]
    words = " ".join(launcher(Resources(minutes=1, nodes=2, gpus_per_node=8), "7_1", "a"))
    assert (
        "--nnodes 2 --nproc-per-node 8 --max-restarts 3" in words
        and "--rdzv-endpoint a:20071 -m pgolf" in words
    )


def test_the_number_of_restarts_is_an_option_of_jobs_and_of_studies(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Resources] = []
    monkeypatch.setattr(
        "pgolf.launch.slurm.submit", lambda jobs, resources, executor: asked.append(resources) or []
    )
    command = ("launch", "slurm", "tiny.toml", "--data", "data", "--runs", tmp_path)
    pgolf(*command, cwd=workshop)
    pgolf(*command, "--max-restarts", "0", cwd=workshop)
    asked.append(parse_slurm(["max-restarts=7"])[0])
    restarts = [resources.max_restarts for resources in asked]
    assert restarts == [3, 0, 7]
    words = [
        " ".join(launcher(Resources(1, gpus_per_node=2, max_restarts=number), "7", "a"))
        for number in restarts
    ]
    assert [f"--max-restarts {number}" in text for number, text in zip(restarts, words, strict=True)] == 3 * [
        True
    ]


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [place.environment for place in local_places("cpu", 4)] == 4 * [{"OMP_NUM_THREADS": "2"}]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in local_places(None, None)] == ["3", "5"]
    assert len(local_places("cuda", 1)) == 1
    assert local_places("cuda:1", None)[0].environment == {}
    with pytest.raises(PgolfError, match="there are 2"):
        local_places(None, 3)
