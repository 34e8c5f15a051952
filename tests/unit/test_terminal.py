"""What is printed: no word cut, nothing that a terminal obeys, and streams that cannot fail a job."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partialmethod
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress

from pgolf.cli import tables as cli_tables
from pgolf.cli.app import paths_are_mistakes
from pgolf.cli.tables import lines, print_columns, print_mistake, print_table, say, wrapped
from pgolf.errors import PgolfError
from pgolf.runs.view import TrainingView
from pgolf.runtime import progress
from pgolf.runtime.terminal import plain, spelled

_WORDS = st.text("abcxyz019.,-_/", min_size=1, max_size=24)
_NUMBERS = st.integers(0, 10**12).map("{:,}".format) | st.floats(0, 100).map("{:.4f}".format)
_TEXTS = st.lists(_WORDS, min_size=1, max_size=12).map(" ".join)
_ROWS = st.lists(st.tuples(_WORDS, _NUMBERS, _NUMBERS, _NUMBERS, _TEXTS), min_size=1, max_size=4)
_UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
_HEADER = ("name", "first", "second\nnumber", "third", "text")


def printed(width: int | None, print_it: object, *arguments: object, **options: object) -> str:
    """What a function prints on a terminal of this width; without one: to a file."""
    file = io.StringIO()
    before = cli_tables.stdout
    cli_tables.stdout = Console(
        file=file, force_terminal=width is not None, color_system=None, width=width, highlight=False
    )
    try:
        print_it(*arguments, **options)  # type: ignore[operator]
    finally:
        cli_tables.stdout = before
    return file.getvalue()


def cells(text: str) -> list[str]:
    """Words between the lines of a table, or in a block."""
    return re.findall(r"[^\s│┃]+", text)


@_UNHURRIED
@given(_ROWS, st.integers(20, 200))
def test_no_number_and_no_name_is_cut(rows: Sequence[tuple[str, ...]], width: int) -> None:
    drop = ("third", "first", "second\nnumber")
    text = printed(width, print_columns, _HEADER, rows, "a title", left=("text",), drop=drop, fold=("text",))
    lines = text.splitlines()
    said = [line for line in lines if line.startswith("left out: ")]
    missing = (
        re.findall(r"third|first|second number", " ".join(lines[lines.index(said[0]) :])) if said else []
    )
    if missing:
        # The least important are missing, and it is said what shows them.
        assert [name.replace("\n", " ") for name in _HEADER if name in drop[: len(missing)]] == missing
        assert "--json shows them" in " ".join(text.split())
    shown = cells(text)
    for row in rows:
        for name, cell in zip(_HEADER, row, strict=True):
            if name.replace("\n", " ") not in missing:
                assert all(shown.count(word) >= cell.split().count(word) for word in cell.split()), (
                    cell,
                    text,
                )
    table = [line for line in lines if line[:1] in "┃│┏┡└"]
    assert all(cell_len(line) <= width for line in table)


@_UNHURRIED
@given(_ROWS, st.integers(20, 200))
def test_labelled_lines_keep_every_word(rows: Sequence[tuple[str, ...]], width: int) -> None:
    labelled = [(name, f"{number} {text}") for name, number, _, _, text in rows]
    shown = cells(printed(width, print_table, labelled, "a title"))
    assert all(word in shown for name, value in labelled for word in (name, *value.split()))


@_UNHURRIED
@given(_TEXTS, st.integers(1, 60))
def test_lines_end_between_words(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert " ".join(lines) == text
    assert all(cell_len(line) <= width or " " not in line for line in lines)


def test_columns_that_say_nothing_go_first_and_a_file_gets_all() -> None:
    rows = [("runs/baseline", "-", "2.7387", "999,545,123")]
    header, drop = ("run", "ttt", "raw", "bytes"), ("raw", "ttt")
    text = printed(40, print_columns, header, rows, "t", drop=drop)
    assert "left out: ttt;" in text and "2.7387" in text and "999,545,123" in text
    narrow = printed(12, print_columns, header, rows, "t", drop=drop)
    assert "│" not in narrow and cells(narrow)[1:] == [
        "run",
        *["runs/baseline", "ttt", "-", "raw", "2.7387", "bytes", "999,545,123"],
    ]
    long = "word " * 100
    text = printed(None, print_columns, header, [("x" * 300, "1", "2", "3")], long, drop=drop)
    assert "x" * 300 in text and long.strip() in text and "left out" not in text


def test_nothing_that_a_terminal_obeys_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[31m\x9b2J\u202e\x07\r[bold]\udce9\u3000b"
    assert plain(hostile) == "a\ufffd[31m\ufffd2J\ufffd\ufffd\ufffd[bold]\\xe9\u3000b"
    assert plain("a\n\tb\x00", keep="\n\t") == "a\n\tb\ufffd"
    for text in (
        printed(100, say, hostile),
        printed(100, print_table, [(hostile, hostile)], hostile),
        printed(None, print_columns, ("name", "x"), [(hostile, hostile)], hostile),
        printed(30, print_columns, ("name", "x"), [(hostile, hostile)], hostile),
    ):
        assert plain(hostile) in text
        assert plain(text, keep="\n") == text
    print_mistake(f"{hostile}\n  two  spaces")
    told = capsys.readouterr().err
    assert told == f"pgolf: error: {plain(hostile)} two  spaces\n"
    assert spelled("größe\udce9", "ascii") == "gr\\xf6\\xdfe\\udce9"


@pytest.mark.parametrize("width", range(20, 121, 4))
def test_bars_drop_columns_and_cut_no_number(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=width)
    monkeypatch.setattr(progress, "stderr", console)
    view = TrainingView(20_000, 0)
    view.step(12_345, 1.73219, 1_234_567)
    console.print(view._bar.make_tasks_table(view._bar.tasks))
    line = file.getvalue().strip("\n")
    assert "\n" not in line and cell_len(line) <= width and "…" not in line
    found = re.sub(r"[━╸╺]+", " ", line).split()
    assert set(found) <= {
        "training",
        "12345/20000",
        "loss",
        "1.732",
        "1.23M",
        "tokens/s",
        *("elapsed", "left"),
        "0:00:00",
        "-:--:--",
    }
    assert "12345/20000" in found
    assert ("1.732" in found) == ("loss" in found) and ("1.23M" in found) == ("tokens/s" in found)
    # Every clock says which it is.
    assert len([word for word in found if ":" in word]) == found.count("elapsed") + found.count("left")
    if width >= 90:
        assert {"loss", "tokens/s", "elapsed", "left"} <= set(found) and "━" in line


def test_work_of_several_kinds_has_a_bar_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(progress, "stderr", console)
    at_once = partialmethod(Progress.update, refresh=True)
    monkeypatch.setattr(progress.Bars, "update", at_once)
    with progress.working("packing") as note:
        note("calibrating")
        note("measuring", 3, 1200)
        note("verifying")
    text = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "\n", file.getvalue())
    shown = [line for line in text.splitlines() if line.startswith("packing: ")]
    assert any(re.match(r"packing: calibrating ━+ +0:00:00 elapsed", line) for line in shown)
    assert any(re.match(r"packing: measuring ━* *3/1,200 0:00:00 elapsed", line) for line in shown)
    assert any(re.match(r"packing: verifying ━+ +0:00:00 elapsed", line) for line in shown)


def test_results_as_labelled_lines() -> None:
    result = {"bits": 1.23456, "size": {"bytes": 12345}, "peak": None, "warning": ""}
    forms = {"score": "{bits:.4f} of {size[bytes]:,}", "use": "{peak:.2f}", "why": "{warning}"}
    forms |= {"more": "{no}", "part": "{peak[no]}"}
    assert lines(result, forms) == [("score", "1.2346 of 12,345")]


def test_an_evaluation_after_training_has_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80)
    monkeypatch.setattr(progress, "stderr", console)
    with TrainingView(20, 0) as view:
        view.step(20, 1.7, 1000.0)
        view.evaluation("float BPB", 1, 4)
        view.evaluation("float BPB", 4, 4)
        assert [task.percentage for task in view._bar.tasks] == [100]
    shown = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", file.getvalue())
    assert shown.rindex("training") < shown.index("float BPB") < shown.rindex("100%")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "secret"),
            ["secret", "Permission denied", "accessible"],
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"), ["gone", "check the path"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"xxx"), ["xxx", "shorter"]),
        (IsADirectoryError(errno.EISDIR, "Is a directory", Path("folder")), ["folder", "name a file"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["No space left", "free some space"]),
        (OSError(errno.EMFILE, "Too many open files"), ["Too many open files", "ulimit"]),
        (UnicodeEncodeError("utf-8", "lat\udce9/r", 3, 4, "surrogates not allowed"), ["lat", "rename"]),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), ["byte 1", "UTF-8"]),
        (ValueError("embedded null byte"), ["NUL"]),
        (RuntimeError("Symlink loop from '/a'"), ["/a"]),
    ],
)
def test_what_the_system_says_of_a_path_is_a_mistake(error: Exception, words: list[str]) -> None:
    with pytest.raises(PgolfError) as caught, paths_are_mistakes():
        raise error
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    "bug", [ValueError("shapes differ"), RuntimeError("bug"), OSError("odd"), KeyError("x")]
)
def test_a_bug_stays_a_bug(bug: Exception) -> None:
    with pytest.raises(type(bug), match=str(bug.args[0])), paths_are_mistakes():
        raise bug


def pgolf_in_shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's command line in which ``pgolf`` is the command."""
    words = f'pgolf() {{ "{sys.executable}" -m pgolf "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", words], capture_output=True, env={**os.environ, **environment})


def test_standard_output_that_is_closed_full_or_poor(tmp_path: Path) -> None:
    closed = pgolf_in_shell(f"cd {tmp_path}; pgolf help >&- 2>err; echo $? >status; cat err >&2; cat status")
    assert (closed.stdout, closed.stderr) == (b"0\n", b"")
    if Path("/dev/full").exists():
        full = pgolf_in_shell("pgolf help >/dev/full")
        assert full.returncode == 2 and full.stderr.startswith(
            b"pgolf: error: standard output: cannot be written (No"
        )
        assert full.stderr.count(b"\n") == 1
        assert pgolf_in_shell("pgolf help trian 2>/dev/full").returncode == 2
    enough = pgolf_in_shell("set -o pipefail; pgolf help | true")
    assert enough.returncode == 0 and enough.stderr == b""
    poor = pgolf_in_shell("pgolf recipes", PYTHONIOENCODING="ascii")
    assert poor.returncode == 0 and poor.stderr == b"" and b"+-" in poor.stdout and poor.stdout.isascii()


FULL_PIPE = """
import os, sys, threading, time

reading, writing = os.pipe()
os.set_blocking(writing, False)
os.dup2(writing, 1)
os.close(writing)
read = []

def reader():
    time.sleep(0.5)
    while block := os.read(reading, 1 << 16):
        read.append(block)
        time.sleep(0.001)

thread = threading.Thread(target=reader, daemon=True)
thread.start()

from pgolf.runtime.terminal import output, patient_streams

with patient_streams():
    for number in range(60_000):
        print(f"line {number}")
    print("x" * 300_000)
    assert output.lost is None
os.close(1)
thread.join()
lines = "".join(f"line {number}\\n" for number in range(60_000))
assert b"".join(read).decode() == lines + "x" * 300_000 + "\\n"
"""


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    done = subprocess.run([sys.executable, "-c", FULL_PIPE], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
