"""Runs as SLURM jobs, through submitit: near its time limit, or pre-empted, a job saves and goes back.

The job's process starts `pgolf` beside itself and passes signals on. That one finishes its step, writes a
checkpoint and ends. Only then is the job put back: SLURM ends its processes as soon as that is asked for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

from pgolf.errors import PgolfError
from pgolf.launch.jobs import INTERRUPTED, Child, RunJob
from pgolf.runs.folder import LAUNCH
from pgolf.runtime.processes import birth

submitit: Any
try:
    import submitit
except ImportError:  # An optional dependency; `submit` says so.
    submitit = None

EXECUTORS = ("slurm", "local")


class Resources(NamedTuple):
    """What a job asks for; None leaves it to the cluster."""

    minutes: int
    """Time limit of one stay on the cluster; a job that needs more comes back."""
    nodes: int = 1
    gpus_per_node: int = 0
    cpus: int = 4
    """Cores per node."""
    memory: int | None = None
    """GB per node."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    requeue: bool = True
    """Go back into the queue when interrupted."""
    max_timeouts: int = 20
    """How often the time limit may be reached; pre-emptions are not counted."""
    max_restarts: int = 3
    """With several processes: how often all start again, from the last checkpoint, when one has died."""
    warning_seconds: int = 120
    """How long before the time limit the job is told to save its state."""


class ClusterJob:
    """What submitit stores and calls on every node of a job."""

    def __init__(self, job: RunJob, resources: Resources) -> None:
        self.job, self.resources = job, resources
        self._child: Child | None = None
        self._received: list[int] = []

    def __call__(self) -> str:
        """Run, and go back into the queue if interrupted (then this does not return on the first node).

        PgolfError where the run failed, or was interrupted and does not go back.
        """
        cluster = submitit.JobEnvironment()
        if self.job.is_finished():
            return "done before"
        warning = signal.Signals[f"SIG{cluster.USR_SIG}"]
        # submitit's own handler writes the job down and requeues it: right, but not in the middle of a step.
        requeue = signal.signal(warning, self._pass_on)
        signal.signal(signal.SIGTERM, self._pass_on)
        number = f"{cluster.cluster}:{cluster.job_id}"
        words = launcher(self.resources, cluster.job_id, cluster.hostnames[0]) + self.job.arguments()
        place = self.job.log(cluster.node), self.job.folder
        self._child = Child(words, *place, {"PGOLF_JOB": number})
        if self._received:
            self._child.stop()
        status = self._child.wait()
        if status == 0:
            return "done"
        if status not in INTERRUPTED and (not self._received or status == 2):
            raise PgolfError(f"{number}: {self._child.last_words(status)}")
        if cluster.global_rank == 0:
            if not self.resources.requeue or _is_over(cluster):
                raise PgolfError(f"{number}: interrupted; the same command goes on")
            assert callable(requeue), "submitit sets a handler before it calls a job"
            requeue(warning, None)
        return "interrupted"

    def checkpoint(self) -> Any:
        """submitit asks: what to do when the job is back; the run itself knows where it stands."""
        return submitit.helpers.DelayedSubmission(ClusterJob(self.job, self.resources))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        # SLURM sends SIGTERM to all processes of a job, the warning as well, but that one is ignored there.
        if self._child is not None and not (number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ):
            self._child.stop()


def launcher(resources: Resources, number: str, host: str) -> list[str]:
    """How a node starts its processes: one per GPU by torchrun, or a single one by itself."""
    if resources.nodes * max(1, resources.gpus_per_node) == 1:
        return [sys.executable, "-m", "pgolf"]
    # Jobs that share a node must not meet: the port follows from the job.
    port = 20000 + int("".join(filter(str.isdigit, number)) or 0) % 20000
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(resources.nodes), "--nproc-per-node", str(max(1, resources.gpus_per_node))),
        *("--max-restarts", str(resources.max_restarts)),
        *("--rdzv-backend", "c10d", "--rdzv-id", number, "--rdzv-endpoint", f"{host}:{port}"),
        *("-m", "pgolf"),
    ]


def submit(jobs: Sequence[RunJob], resources: Resources, executor: str = "slurm") -> list[dict[str, str]]:
    """Hand every job that is not finished over, to SLURM or to "local", submitit's stand-in on this machine.

    Returns for each job its name, its id ("" where there was nothing to do), its folder and its log.
    PgolfError where submitit or SLURM is missing, or SLURM refuses the job.
    """
    if executor not in EXECUTORS:
        raise PgolfError(f"--executor {executor}: unknown; use {' or '.join(EXECUTORS)}")
    if submitit is None:
        raise PgolfError("launch slurm: needs submitit; pip install 'pgolf[slurm]'")
    submitted = []
    for job in jobs:
        number = "" if job.is_finished() else _submit(job, resources, executor)
        submitted.append({"name": job.name, "id": number, "folder": str(job.out), "log": str(job.log())})
    return submitted


def is_queued(number: str, executor: str = "slurm") -> bool:
    """Whether a submitted job still waits or runs."""
    if executor == "local":
        return birth(int(number)) is not None
    asked = ["squeue", "--noheader", "--jobs", number]
    # SLURM forgets a job some minutes after its end, and then complains about its number.
    shown = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    return shown.returncode == 0 and bool(shown.stdout.strip())


def _submit(job: RunJob, resources: Resources, executor: str) -> str:
    job.write_recipe()
    try:
        timeouts = {f"{executor}_max_num_timeout": resources.max_timeouts}
        queue = submitit.AutoExecutor(job.out / LAUNCH, cluster=executor, **timeouts)
        queue.update_parameters(**_parameters(job, resources))
        return str(queue.submit(ClusterJob(job, resources)).job_id)
    except submitit.core.utils.UncompletedJobError as error:
        raise PgolfError(f"{job.name}: SLURM refused the job: {error}") from error
    except (RuntimeError, OSError) as error:
        remedy = "run this where sbatch is, or try --executor local"
        raise PgolfError(f"launch slurm: {error}; {remedy}") from error


def _parameters(job: RunJob, resources: Resources) -> dict[str, Any]:
    """In submitit's names; what was not asked for is left out."""
    named = {
        "name": f"pgolf-{job.name}",
        "timeout_min": resources.minutes,
        "nodes": resources.nodes,
        "tasks_per_node": 1,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": resources.gpus_per_node or None,
        "mem_gb": resources.memory,
        "stderr_to_stdout": True,
        "slurm_partition": resources.partition,
        "slurm_account": resources.account,
        "slurm_qos": resources.qos,
        "slurm_constraint": resources.constraint,
        "slurm_signal_delay_s": resources.warning_seconds,
        # Since SLURM 22.05 srun does not take the cores per task over from the job.
        "slurm_srun_args": [f"--cpus-per-task={resources.cpus}"],
        "slurm_additional_parameters": {"requeue" if resources.requeue else "no-requeue": True},
    }
    return {name: value for name, value in named.items() if value is not None}


def _is_over(cluster: Any) -> bool:
    """Whether SLURM has ended the job for good, by `scancel` say: then it must not be put back."""
    if cluster.cluster != "slurm":
        return False
    asked = ["scontrol", "show", "job", "--oneliner", cluster.job_id]
    shown = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout
    # A job that is pre-empted or warned still runs; one that was cancelled is completing.
    return "JobState=RUNNING" not in shown
