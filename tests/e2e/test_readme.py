"""README and tutorial: every command works as typed, in one shell, in the order in which they stand there."""

from __future__ import annotations

import filecmp
import os
import pydoc_data.topics as topics_of_python
import re
import shutil
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import fork_server
from tests.e2e.readme_tour import ROOT, commands, script, without_comment

README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
# The demo in seconds instead of minutes; it still makes its text, trains, packs, scores and reports.
_SMALL = [
    *("train.steps=4", "train.warmdown_steps=2", "model.layers=2", "model.xsa_last=2", "model.width=32"),
    *("model.heads=2", "model.kv_heads=1", "model.mlp_hidden=32", "ttt.epochs=1", "evaluate.stride=256"),
    *("compress.calibration_tokens=1024", "memory.stored_bytes=9000", "memory.order=2", "memory.experts=[]"),
]
_BOOKS, _AUDIT, _REPORT = "python examples/books.py books", "pgolf audit runs/tiny", "pgolf report runs/tiny"
_RUN = "pgolf run tiny --text books/*.txt --out runs/books"
_WRITE = 'pgolf generate runs/whole --prompt "The class" --tokens 60 --memory --seed 0'
# What would install something, run these tests, or take a quarter of the time.
STAND_INS = {
    _BOOKS: f"{_BOOKS} && rm books/[d-v]*.txt",
    _AUDIT: f"{_AUDIT} --targets 192",
    _REPORT: f"{_REPORT} --targets 1024",
    _RUN: f"{_RUN} --set ttt.epochs=1 --set evaluate.stride=32",
    _WRITE: _WRITE.replace(" --memory", ""),
    "make demo": "make -n demo >/dev/null && cp -r ../venv .venv && "
    ".venv/bin/pgolf run quickstart --no-audit " + " ".join(f"--set {setting}" for setting in _SMALL),
    "make test": "make -n test >/dev/null",
    "python3 -m venv .venv": "true",
    'pip install -c constraints.txt -e ".[dev]"': "true",
}
# What makes the tutorial's commands short, by how they begin; of an option given twice the last counts.
SHORTER = {
    "python examples/books.py": "&& rm mytext/[b-z]*.txt",
    "pgolf train": "--set train.steps=4 --set train.warmdown_steps=2",
    "pgolf pack": "--set compress.calibration_tokens=256",
    "pgolf audit": "--targets 192",
    "pgolf run tiny": "--no-audit --score memory --set evaluate.stride=64 "
    + " ".join(f"--set {setting}" for setting in _SMALL if "stride" not in setting),
    "pgolf report": "--no-score",
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A little of the text of Python's own library: all of it takes minutes, and has its own test."""
    library = tmp_path / "library"
    (library / "pydoc_data").mkdir(parents=True)
    some = dict(list(topics_of_python.topics.items())[::5])
    (library / "pydoc_data" / "topics.py").write_text(f"topics = {some!r}\n", encoding="utf-8")
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::8]:
        shutil.copy(path, library)
    return library


@pytest.fixture
def clone(tmp_path: Path, library: Path) -> Iterator[Path]:
    """The tracked files, and beside them an environment that `make demo` brings: this Python and the sources
    under test, whose functions are compiled already.
    """
    clone, binaries = tmp_path / "pgolf", tmp_path / "venv" / "bin"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    with fork_server.python_with(ROOT / "src", library) as program:
        for name, command in (("python", ""), ("pgolf", "-m pgolf ")):
            (binaries / name).write_text(
                f"#!/bin/sh\nPYTHONPATH='{ROOT}/src' exec '{program}' {command}\"$@\"\n"
            )
            (binaries / name).chmod(0o755)
        yield clone


def test_every_command_works_as_it_stands(clone: Path) -> None:
    """README and tutorial in one shell, as the tutorial says."""
    readme, tutorial = commands(README), commands(TUTORIAL)
    assert set(STAND_INS) <= {without_comment(command) for command in (*readme, *tutorial)}
    shorter = {
        without_comment(command): f"{command} {more}"
        for command in tutorial
        for beginning, more in SHORTER.items()
        if command.startswith(beginning)
    }
    assert len(shorter) == len(SHORTER)
    # Nothing of this environment is found before it is activated, as in a new shell.
    environment = {"HOME": os.environ.get("HOME", "/"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", script([*readme, *tutorial], STAND_INS | shorter)],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.count("[status 0, ") == len(readme) + len(tutorial)
    assert filecmp.cmp(clone / "books" / "while.txt", clone / "again.txt", shallow=False)
    for made in (
        "runs/quickstart/report.html",
        "runs/tiny/artifact.pgolf",
        "runs/tiny/ledger.ttt.jsonl",
        "runs/tiny/audit.json",
        "runs/tiny/report.html",
        "runs/books/audit.json",
        "runs/short",
        "plain.pt",
        "runs/mine/report.html",
        "memory.jsonl",
        "runs/whole/ledger.memory.jsonl",
    ):
        assert (clone / made).exists(), made


def test_a_command_that_fails_is_the_last(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "```sh\ncd /    # there\nfalse\necho never\n```\n```python\nprint(1)\n```\n"
    )
    typed = commands(tmp_path / "page.md")
    assert [without_comment(command) for command in typed] == ["cd /", "false", "echo never", typed[3]]
    done = subprocess.run(["bash", "-c", script(typed, {"cd /": "cd ."})], capture_output=True, text=True)
    assert done.returncode == 1 and "[status 1, 0 s]" in done.stdout and "never" not in done.stdout


def test_the_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    table = README.read_text(encoding="utf-8").partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(declared)


def test_the_license_is_named_alike() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License") and "2026 pgolf contributors" in text
    assert project["license"] == "MIT" and project["license-files"] == ["LICENSE"]
