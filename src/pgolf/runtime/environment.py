"""The machine and the versions that a number was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

import numpy
import torch

from pgolf.runtime.package import VERSION, code_digest


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as JSON values."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return {
        "pgolf": VERSION,
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
