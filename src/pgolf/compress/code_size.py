"""How many bytes of code count towards the cap.

A submission has to carry the program that loads the artifact and scores it. The field ships that program
in packed form (a compressed string and a line that runs it), so the packed size is what counts here: LZMA
over exactly the modules a scorer needs, without their comments and docstrings, plus that line.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import lzma
import os
import sys
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.runtime.environment import FOLDER, code_digest
from pgolf.runtime.writing import write_bytes

# They open an artifact and score a stream with it, in any mode. The last are imported where they are needed
# alone: by modes, on devices, by what is decoded.
_ENTRIES = (
    "data.dataset",
    "compress.container",
    "evaluate.evaluate",
    "evaluate.lora_scorer",
    "kernels.cross_entropy",
    "compress.entropy",
    "compress.trellis",
)
# The same where the recipe has a memory.
_MEMORY_ENTRIES = ("evaluate.memory_scorer", "memory.stored")
_LAUNCHER_BYTES = 100
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def code_bytes(memory: bool = False) -> int:
    """Bytes of code that count: the scorer's modules, LZMA-compressed, and a line to unpack and run them.

    Those of the memory count where the recipe enables it.
    """
    return _counted(memory)[0] + _LAUNCHER_BYTES


def raw_code_bytes(memory: bool = False) -> int:
    """The same modules as they are."""
    return _counted(memory)[1]


@functools.cache
def _counted(memory: bool) -> tuple[int, int]:
    """Bytes of the modules, packed and as they are.

    To pack them takes half a second, so what came of the same code under the same Python is kept.
    """
    made_from = f"{code_digest()} {sys.version} {memory}"
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(root) / "pgolf" / f"code-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        packed, raw = map(int, json.loads(place.read_bytes()))
        return packed, raw
    counted = len(packed_code(memory)), sum((FOLDER / name).stat().st_size for name in _modules(memory))
    with contextlib.suppress(PgolfError):  # A place where nothing can be written.
        write_bytes(place, json.dumps(counted).encode())
    return counted


def packed_code(memory: bool = False) -> bytes:
    """The scorer's modules, each after a line with its name, bare and LZMA-compressed (raw LZMA2 stream)."""
    bare = b"".join(f"# {name}\n{_bare(tree)}\n".encode() for name, tree in _modules(memory).items())
    return lzma.compress(bare, format=lzma.FORMAT_RAW, filters=FILTERS)


def scorer_modules(memory: bool = False) -> list[str]:
    """Files that scoring imports, in an order in which each finds what it needs."""
    return list(_modules(memory))


@functools.cache  # Packing counts them as they are, too.
def _modules(memory: bool) -> dict[str, ast.Module]:
    """The same with their syntax trees.

    What functions import is no part of it: they are called on a mistake, such as a path that the system
    refuses.
    """
    found: dict[str, ast.Module] = {}

    def add(name: str) -> None:
        path = f"{name.replace('.', '/')}.py"
        if path in found or not (FOLDER / path).is_file():
            return
        tree = ast.parse((FOLDER / path).read_bytes())
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pgolf."):
                source = str(node.module).removeprefix("pgolf.")
                for module in (source, *(f"{source}.{alias.name}" for alias in node.names)):
                    add(module)
        found[path] = tree

    for entry in (*_ENTRIES, *(_MEMORY_ENTRIES if memory else ())):
        add(entry)
    return found


def _bare(tree: ast.Module) -> str:
    """The program without what has no effect: comments, layout, docstrings and annotations of fields'
    meaning.
    """
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [entry for entry in body if not is_text(entry)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a string and nothing else."""
    return isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "value", None), str)
