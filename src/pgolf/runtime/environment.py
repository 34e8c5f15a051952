"""Which pgolf this is, and the machine and the versions that a number was made with."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.errors import PgolfError

if TYPE_CHECKING:
    import torch

VERSION = "0.1.0"
FOLDER = Path(__file__).parents[1]


def need(what: str, extra: str, *packages: str) -> None:
    """Import packages that not every installation has; a ``PgolfError`` that says how to get one for what."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            remedy = f'pip install "pgolf[{extra}]"'
            raise PgolfError(f"{what}: needs the package {name}, which is not installed; {remedy}") from error


@functools.cache  # A process goes on with the code that it began with.
def code_digest() -> str:
    """SHA-256 over the package's own source files, names included, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted([*FOLDER.rglob("*.py"), *FOLDER.rglob("*.toml")]):
        digest.update(path.relative_to(FOLDER).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as JSON values."""
    # Here, since the command asks for the version before it imports torch.
    import numpy
    import torch

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
