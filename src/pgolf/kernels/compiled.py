"""Functions that numba compiles once and keeps, so that the next process finds them compiled.

What codes text or weights must not depend on the machine: what one machine wrote is read on others. So it
uses nothing but exact integer arithmetic and single operations of IEEE 754 in a fixed order: no fast
mathematics, no exp or log of the system's library where something is learned (``tables.py`` has tables).
Linear mixing, which codes none, learns with exp.

Numba looks only at a function's own file to see whether what it kept is still true, and not at those that it
calls. So the folder's name has a digest of all packages with such functions.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numba


def _folder() -> Path:
    digest = hashlib.sha256(numba.__version__.encode())
    package = Path(__file__).parents[1]
    for part in ("kernels", "memory", "compress"):
        for path in sorted((package / part).glob("*.py")):
            digest.update(path.read_bytes())
    root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "pgolf" / f"compiled-{digest.hexdigest()[:16]}"


def _is_writable(folder: Path) -> bool:
    # numba would turn to a folder beside the source, which says nothing of what its functions call.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """The function, compiled at its first call, or read from where an earlier process left it."""
    options |= _OPTIONS
    if not _KEEPS:
        return numba.njit(**options)(function)
    kept = _SETTINGS.CACHE_DIR
    try:
        _SETTINGS.CACHE_DIR = str(_FOLDER)
        return numba.njit(cache=True, **options)(function)
    except (RuntimeError, OSError):
        # Nowhere to keep it: a program that is no file.
        return numba.njit(**options)(function)
    finally:
        _SETTINGS.CACHE_DIR = kept


def inner(function: Callable[..., Any]) -> Any:
    """The same for a function that compiled ones alone call.

    Python takes the many arrays of a memory apart in code of its own for each function that it can call,
    which takes as long to compile as all that they do.
    """
    return compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


# Three times as fast: slices of arrays are not counted as owners of them, which costs more than what is done
# here with a slice (so nothing compiled may make an array), and the many arrays of a memory are not handed
# from function to function.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False, "forceinline": True}
_FOLDER, _SETTINGS = _folder(), cast(Any, numba.config)
_KEEPS = _is_writable(_FOLDER)
