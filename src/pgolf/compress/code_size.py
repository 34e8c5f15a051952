"""How many bytes of code count towards the cap.

A submission has to carry the program that loads the artifact and scores it. The field ships that program
in packed form (a compressed string and a line that runs it), so the packed size is what counts here: LZMA
over the sources of exactly the modules a scorer needs, plus that line.
"""

from __future__ import annotations

import lzma
from pathlib import Path

import pgolf

# Modules that open an artifact and score a stream with it, in any mode.
SCORER_MODULES = (
    "errors.py",
    "files.py",
    "recipe.py",
    "recipe_checks.py",
    "device.py",
    "data/shards.py",
    "data/tokenizer.py",
    "data/loader.py",
    "data/dataset.py",
    "model/attention.py",
    "model/embeddings.py",
    "model/gpt.py",
    "model/init.py",
    "model/linear.py",
    "model/mlp.py",
    "model/refiner.py",
    "model/rope.py",
    "optim/routing.py",
    "compress/quantize.py",
    "compress/scheme.py",
    "compress/container.py",
    "evaluate/windows.py",
    "evaluate/score.py",
    "evaluate/ttt.py",
    "evaluate/evaluate.py",
)
_LAUNCHER_BYTES = 100


def code_bytes() -> int:
    """Bytes of code that count: the scorer's modules, LZMA-compressed, and a line to unpack and run them."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    packed = lzma.compress(_sources(), format=lzma.FORMAT_RAW, filters=filters)
    return len(packed) + _LAUNCHER_BYTES


def raw_code_bytes() -> int:
    """The same modules as they are."""
    return len(_sources())


def _sources() -> bytes:
    root = Path(pgolf.__file__).parent
    return b"".join(b"# " + name.encode() + b"\n" + (root / name).read_bytes() for name in SCORER_MODULES)
