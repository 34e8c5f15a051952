"""What a run was made with: enough to repeat it or to say why it cannot be repeated."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import torch

import pgolf
from pgolf.data.dataset import Dataset


def code_digest() -> str:
    """SHA-256 over the package's own source files, names included, as 64 hexadecimal digits."""
    digest, root = hashlib.sha256(), Path(pgolf.__file__).parent
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.toml")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as JSON values."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return {
        "pgolf": pgolf.__version__,
        "code_sha256": code_digest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name,
        "driver": driver_version() if device.type == "cuda" else None,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def provenance(dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """The environment, the command and the data of a run, and its first session, as JSON values."""
    first = session()
    return {
        "started": first["started"],
        "command": first["command"],
        "environment": environment(device),
        "data": {
            "folder": str(dataset.folder.resolve()),
            "tokenizer_sha256": dataset.tokenizer.digest,
            "fingerprint": dataset.fingerprint(),
        },
        "sessions": [first],
    }


def session() -> dict[str, Any]:
    """One process that works on a run: when, by which command, where and as which job, as JSON values."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"started": now, "command": sys.argv, "host": socket.gethostname()}
    return found | ({"job": job} if (job := scheduled_job()) else {})


def scheduled_job() -> dict[str, Any]:
    """Which job of a scheduler this process is part of: scheduler, id, restarts, nodes; empty if of none.

    ``pgolf launch`` names its jobs in PGOLF_JOB, as SCHEDULER:ID; SLURM names all of its own.
    """
    scheduler, _, number = os.environ.get("PGOLF_JOB", "").partition(":")
    slurm = os.environ.get("SLURM_JOB_ID")
    if not number and slurm:
        scheduler, number = "slurm", slurm
    if scheduler != "slurm":
        return {"scheduler": scheduler, "id": number} if number else {}
    return {
        "scheduler": scheduler,
        "id": number,
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
    }
