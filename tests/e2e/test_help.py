"""The first things that anyone types: no arguments, help, version, completion."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import pgolf as package
from pgolf.cli.app import SECTIONS
from pgolf.cli.main import app
from tests.e2e import fork_server
from tests.e2e.conftest import pgolf


def test_every_command_stands_in_one_section() -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    known = [entry.name for entry in (*app.registered_commands, *app.registered_groups)]
    assert sorted(listed) == sorted(map(str, known))


@pytest.mark.parametrize("words", [(), ("data",), ("bench",), ("launch",)])
def test_without_arguments_there_is_help(words: tuple[str, ...]) -> None:
    done = pgolf(*words)
    assert done.stderr == "" and "error" not in done.stdout
    assert done.stdout == pgolf(*words, "--help").stdout == pgolf("help", *words).stdout
    assert done.stdout.startswith(" ".join(("Usage: pgolf", *words))) and len(done.stdout.splitlines()) > 8
    # Sentences are whole, however long.
    assert "..." not in done.stdout.replace("[ARGS]...", "")


def test_verbs_come_in_the_order_of_the_job() -> None:
    lines = pgolf("--help").stdout.splitlines()
    places = [lines.index(f"{title}:") for title in SECTIONS]
    assert places == sorted(places)
    words = [line.split()[0] for line in lines[places[0] :] if line.startswith("  ") and line[2:3].strip()]
    assert [word for word in words if word in ("data", "train", "pack", "eval")] == [
        "data",
        "train",
        "pack",
        "eval",
    ]


def test_help_of_a_verb_and_the_version() -> None:
    assert pgolf("help", "data", "prepare").stdout == pgolf("data", "prepare", "--help").stdout
    assert pgolf("help", "train").stdout.startswith("Usage: pgolf train ")
    assert pgolf("-V").stdout == pgolf("--version").stdout == f"pgolf {package.__version__}\n"
    for words, near in ((("trian",), "train"), (("data", "prepair"), "prepare"), (("train", "x"), "")):
        failed = pgolf("help", *words, check=2)
        assert failed.stdout == "" and failed.stderr.startswith("pgolf: error: ") and near in failed.stderr
        assert failed.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path) -> None:
    home = {**os.environ, "HOME": str(tmp_path)}
    program = tmp_path / "pgolf"
    code = ("import sys", "sys.argv[0] = 'pgolf'", "from pgolf.cli.main import main", "main()")
    program.write_text("\n".join((f"#!{fork_server.python()}", *code)) + "\n")
    program.chmod(0o755)
    words = [str(program), "--install-completion", "bash"]
    installed = subprocess.run(words, env=home, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    script = ". ~/.bashrc; complete -p pgolf >&2\n"
    for words, place in (("pgolf ver", 1), ("pgolf data pre", 2), ("pgolf train --rec", 2)):
        script += (
            f'COMP_WORDS=({words}); COMP_CWORD={place}; _pgolf_completion pgolf; echo "${{COMPREPLY[@]}}"\n'
        )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], env=home | {"PATH": path}, capture_output=True, text=True)
    assert done.stdout.split() == ["verify-ledger", "prepare", "--recipe"], done.stderr
    assert "-F _pgolf_completion pgolf" in done.stderr
