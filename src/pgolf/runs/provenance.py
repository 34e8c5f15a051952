"""What a run was made with: enough to repeat it or to say why it cannot be repeated."""

from __future__ import annotations

import datetime
import os
import socket
import sys
from typing import Any

import torch

from pgolf.data.dataset import Dataset
from pgolf.runtime.environment import environment


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
