"""Folders are whole or absent, on file systems that can do less too."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pgolf.errors import PgolfError
from pgolf.runtime.processes import host_mark
from pgolf.runtime.writing import new_folder

HOLD = """
import sys, time
from pathlib import Path
from pgolf.runtime.writing import new_folder

with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(600)
"""


def _fails(number: int) -> Callable[..., Any]:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextmanager
def _other(out: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _make(out: Path, *, replace: bool = False) -> None:
    with new_folder(out, replace=replace) as folder:
        (folder / "file").write_text("whole")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["out", "o" * 255, "ü" * 127, "日" * 85, os.fsdecode(b"caf\xe9")])
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    with new_folder(tmp_path / name) as folder:
        (folder / "file").write_text("whole")
        assert _names(tmp_path) == [folder.name]
    assert _names(tmp_path) == [name] and _names(tmp_path / name) == ["file"]


def test_the_work_of_the_living_stays_and_that_of_the_dead_goes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _other(out) as process:
        [hidden] = _names(tmp_path)
        _make(out)
        assert _names(tmp_path) == [hidden, "out"]
        assert "half" in _names(tmp_path / hidden)
        process.kill()
        process.wait()
        assert _names(tmp_path) == [hidden, "out"]
        _make(out, replace=True)
    assert _names(tmp_path) == ["out"] and _names(out) == ["file"]


def test_names_that_begin_alike_are_not_leftovers(tmp_path: Path) -> None:
    long = "x" * 200
    mark = f"{host_mark()}-{2**22 + 1}-00000000.partial"
    others = [f".{long}a.{mark}", f".outer.{mark}", f"out.{mark}"]
    for name in others:
        (tmp_path / name).mkdir()
    for name in (f"{long}b", "out"):
        _make(tmp_path / name)
    assert _names(tmp_path) == sorted([*others, f"{long}b", "out"])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", _fails(number))
    _make(tmp_path / "out")
    assert _names(tmp_path / "out") == ["file"]


def test_a_rename_that_fails_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _make(out)
    rename = Path.rename

    def some(path: Path, target: Path) -> Path:
        if path.name.startswith(".out.") and not path.name.endswith("-old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", some)
    with pytest.raises(PgolfError, match="out: cannot be written"):
        _make(out, replace=True)
    assert _names(tmp_path) == ["out"] and (out / "file").read_text() == "whole"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file", "already exists"),
        ("file/out", "a part of the path is a file"),
        ("full", "already exists"),
        ("x" * 256, "choose a shorter name"),
        ("a\0b", "cannot be written"),
        ("loop/out", "cannot be written"),
    ],
)
def test_places_where_none_can_be(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(PgolfError, match=said):
        _make(tmp_path / place)
    assert _names(tmp_path) == ["file", "full", "loop"]


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o700), (0o002, 0o775)])
def test_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        _make(tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == mode


@pytest.mark.parametrize("failure", [PgolfError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_what_fails_leaves_no_folder_above_it(tmp_path: Path, failure: BaseException) -> None:
    (tmp_path / "mine").mkdir()
    for place in ("x/y/z", "mine/y/z"):
        with pytest.raises((PgolfError, KeyboardInterrupt)), new_folder(tmp_path / place) as folder:
            (folder / "half").touch()
            raise failure
        assert _names(tmp_path) == ["mine"] and _names(tmp_path / "mine") == []
    with pytest.raises(PgolfError), new_folder(tmp_path / "x" / "y" / "z"):
        (tmp_path / "x" / "other").touch()
        raise PgolfError("no")
    assert _names(tmp_path / "x") == ["other"]


def test_a_folder_that_cannot_be_begun_leaves_none_above_it(tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match="choose a shorter name"):
        _make(tmp_path / "x" / "y" / ("z" * 256))
    assert _names(tmp_path) == []


def test_folders_above_that_another_process_removes_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, removed = Path.mkdir, []

    def make(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name.startswith(".") and not removed:
            removed.append(path.parent.rmdir())
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", make)
    _make(tmp_path / "x" / "out")
    assert removed and _names(tmp_path / "x") == ["out"] and _names(tmp_path / "x" / "out") == ["file"]


def test_a_folder_that_one_may_write_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read anything: so the system's answer is acted.
    real_open = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    _make(tmp_path / "out")
    assert _names(tmp_path / "out") == ["file"]


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs a file system that takes no folders and says ENOENT"
)
def test_a_place_where_no_folder_can_be_is_one_line() -> None:
    with (
        pytest.raises(PgolfError, match="/proc/nowhere/data: cannot be written"),
        new_folder(Path("/proc/nowhere/data")),
    ):
        pass
