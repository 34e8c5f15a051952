"""Commands that compute nothing start without torch, which takes seconds to import, and its like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pgolf.compress.container import encode_artifact, read_artifact
from pgolf.data.tokenizer import Tokenizer
from pgolf.memory.stored import start_of, write_start
from tests.e2e.conftest import pgolf

SLOW = ("torch", "numba", "scipy", "sympy")
# Importing what stands in sys.modules as None is an error.
PROGRAM = """
import json, sys

sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
commands = json.loads(sys.argv[2])
from pgolf.cli.main import main
for words in commands:
    sys.argv = ["pgolf", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, words
"""


def start(folder: Path, commands: list[str], *forbidden: str) -> str:
    """What commands print, one after the other in one process that cannot import what is forbidden."""
    words = [command.split() for command in commands]
    given = [sys.executable, "-c", PROGRAM, json.dumps(forbidden), json.dumps(words)]
    done = subprocess.run(given, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_that_compute_nothing_import_nothing_slow(workshop: Path) -> None:
    pgolf(
        *("eval", "model.pgolf", "--data", "data", "--mode", "standard", "--limit-targets", "256"),
        *("--ledger", "ledger.jsonl"),
        cwd=workshop,
    )
    artifact, tokenizer = (
        read_artifact(workshop / "model.pgolf"),
        Tokenizer.load(workshop / "data/tokenizer.model"),
    )
    recipe = artifact.recipe.with_overrides(["memory.enabled=true"])
    start_bytes = write_start(recipe.memory, start_of(tokenizer.pieces, 1, tokenizer.encode("x")), b"")
    given = recipe, artifact.tokenizer_digest, "range", 1, {}, start_bytes
    (workshop / "with_memory.pgolf").write_bytes(encode_artifact(artifact.stored, *given))
    commands = [
        "recipes",
        "recipes quickstart",
        "recipes tiny --json",
        "runs .",
        "study",
        "data inspect data",
        "diff run run",
        "verify-ledger ledger.jsonl --data data --artifact model.pgolf",
        "report run --no-score --out report.md",
        "inspect model.pgolf",
        "inspect with_memory.pgolf",
    ]
    printed = start(workshop, commands, *SLOW, "matplotlib")
    for word in ("seed_1232", "training memory", '"estimate"', " in .", "ablation", "section memory"):
        assert word in printed
    # Codes are decoded, and the doctor looks whether all packages are there; charts are drawn by Matplotlib.
    decodes = ["inspect model.pgolf --codes", "doctor --compile-seconds 0 --data data"]
    assert "order-0 entropy" in start(workshop, decodes, *(name for name in SLOW if name != "numba"))
    start(workshop, ["report run --no-score --out report.html"], *SLOW)
    assert "<svg" in (workshop / "report.html").read_text(encoding="utf-8")


def test_commands_that_compute_import_no_compiler(workshop: Path) -> None:
    commands = [
        "eval model.pgolf --data data --mode ttt --limit-targets 512",
        "eval model.pgolf --data data --mode ttt --limit-targets 512 --set ttt.method=lora",
        "generate model.pgolf --tokenizer data/tokenizer.model --prompt The --tokens 4",
        "pack run --data data --out again.pgolf",
    ]
    start(workshop, commands, "torch._dynamo", "torch._inductor", "scipy", "sympy", "matplotlib")


def test_a_numba_that_does_not_load_is_one_line(workshop: Path) -> None:
    program = "import sys; sys.modules['numba'] = None; from pgolf.cli.main import main; main()"
    words = ("eval", "model.pgolf", "--data", "data", "--mode", "ttt", "--set", "memory.enabled=true")
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=workshop, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("pgolf: error: numba, which compiles coder and memory, fails here")
