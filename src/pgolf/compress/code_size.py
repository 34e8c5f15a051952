"""How many bytes of code count towards the cap.

A submission has to carry the program that loads the artifact and scores it. The field ships that program
in packed form (a compressed string and a line that runs it), so the packed size is what counts here: LZMA
over exactly the modules a scorer needs, without their comments and docstrings, plus that line.
"""

from __future__ import annotations

import ast
import functools
import lzma

from pgolf.runtime.package import FOLDER

# Modules that open an artifact and score a stream with it, in any mode. What is said when the system refuses
# a path (runtime/paths.py) is asked for then only, and is no part of it.
SCORER_MODULES = (
    "errors.py",
    "runtime/files.py",
    "runtime/section.py",
    "recipe/sections.py",
    "recipe/recipe.py",
    "recipe/checks.py",
    "recipe/files.py",
    "runtime/device.py",
    "runtime/team.py",
    "data/shards.py",
    "data/tokenizer.py",
    "data/dataset.py",
    "kernels/available.py",
    "kernels/cross_entropy.py",
    "model/attend.py",
    "model/attention.py",
    "model/cache.py",
    "model/fast.py",
    *(f"model/features/{path.name}" for path in sorted((FOLDER / "model/features").glob("[!_]*.py"))),
    "model/gpt.py",
    "model/init.py",
    "model/linear.py",
    "model/loss.py",
    "model/mlp.py",
    "model/rope.py",
    "model/section.py",
    "model/shape.py",
    "model/slots.py",
    "compress/quantize.py",
    "compress/entropy.py",
    "compress/coders.py",
    "compress/container.py",
    "evaluate/windows.py",
    "evaluate/passes.py",
    "evaluate/score.py",
    "evaluate/ledger.py",
    "evaluate/protocol.py",
    "evaluate/ttt.py",
    "evaluate/scorer.py",
    "evaluate/lora.py",
    "evaluate/lora_scorer.py",
    "evaluate/build.py",
    "evaluate/evaluate.py",
)
_LAUNCHER_BYTES = 100
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


@functools.cache
def code_bytes() -> int:
    """Bytes of code that count: the scorer's modules, LZMA-compressed, and a line to unpack and run them."""
    return len(packed_code()) + _LAUNCHER_BYTES


def packed_code() -> bytes:
    """The scorer's modules, each after a line with its name, bare and LZMA-compressed (raw LZMA2 stream)."""
    bare = b"".join(f"# {name}\n{_bare(source)}\n".encode() for name, source in _sources())
    return lzma.compress(bare, format=lzma.FORMAT_RAW, filters=FILTERS)


def raw_code_bytes() -> int:
    """The same modules as they are."""
    return sum(len(source.encode()) for _, source in _sources())


def _sources() -> list[tuple[str, str]]:
    return [(name, (FOLDER / name).read_text("utf-8")) for name in SCORER_MODULES]


def _bare(source: str) -> str:
    """The program without what has no effect: comments, layout, docstrings and annotations of fields'
    meaning.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [entry for entry in body if not _is_text(entry)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
