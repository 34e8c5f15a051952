"""How much main memory there is left, for those that cannot wait for torch too."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int | None:
    """Bytes of main memory that programs can still have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
