"""Which pgolf this is: its version, its folder, a digest of its code."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

VERSION = "0.1.0"
FOLDER = Path(__file__).parents[1]


@functools.cache  # A process goes on with the code that it began with.
def code_digest() -> str:
    """SHA-256 over the package's own source files, names included, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted([*FOLDER.rglob("*.py"), *FOLDER.rglob("*.toml")]):
        digest.update(path.relative_to(FOLDER).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
