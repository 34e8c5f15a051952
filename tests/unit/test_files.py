"""Files are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes, read_json, read_text, sha256_file
from pgolf.runtime.paths import path_error, read_error, write_error
from pgolf.runtime.writing import atomic_write, check_writable, write_bytes, write_json


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    write_bytes(path, b"first")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert sha256_file(path) == hashlib.sha256(b"second").hexdigest()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(PgolfError, match="disk is full"):
        write_bytes(tmp_path / "file.bin", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PgolfError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "below.bin", b"")


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    with pytest.raises(PgolfError, match="cannot be read"):
        read_json(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(PgolfError, match="not valid JSON"):
        read_json(tmp_path / "c.json")


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644), (0o027, 0o640)])
def test_the_umask_decides(tmp_path: Path, mask: int, mode: int) -> None:
    path = tmp_path / "below" / "file.bin"
    before = os.umask(mask)
    try:
        write_bytes(path, b"first")
        write_bytes(path, b"second")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("name", ["f", "f" * 255, "ü" * 127, "日" * 85, os.fsdecode(b"caf\xe9.bin")])
def test_names_of_any_length_and_spelling(tmp_path: Path, name: str) -> None:
    write_bytes(tmp_path / name, b"content")
    check_writable(tmp_path / name)
    assert read_bytes(tmp_path / name) == b"content"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def _fsync_fails(monkeypatch: pytest.MonkeyPatch, number: int, *, folders: bool) -> None:
    plain = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == folders:
            raise OSError(number, os.strerror(number))
        plain(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("folders", [True, False])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_what_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, folders: bool
) -> None:
    _fsync_fails(monkeypatch, number, folders=folders)
    write_bytes(tmp_path / "file.bin", b"content")
    assert (tmp_path / "file.bin").read_bytes() == b"content"


def test_a_damaged_disk_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.bin"
    with monkeypatch.context() as patch:
        _fsync_fails(patch, errno.EIO, folders=False)
        with pytest.raises(PgolfError, match=r"cannot be written .*the disk is damaged"):
            write_bytes(path, b"content")
    assert list(tmp_path.iterdir()) == []
    _fsync_fails(monkeypatch, errno.EIO, folders=True)
    with pytest.raises(PgolfError, match="what was written is there, but the disk reports") as caught:
        write_bytes(path, b"content")
    assert "cannot be written" not in str(caught.value)
    assert path.read_bytes() == b"content"


def test_a_file_system_that_renames_only_to_free_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(path: Path, target: Path) -> Path:
        if target.exists():
            raise FileExistsError(errno.EEXIST, "File exists")
        return path.rename(target)

    monkeypatch.setattr(Path, "replace", replace)
    for content in (b"first", b"second"):
        write_bytes(tmp_path / "file.bin", content)
        assert (tmp_path / "file.bin").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


WRITE = """
import sys, time
from pathlib import Path
from pgolf.runtime.writing import atomic_write

with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_left_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    elsewhere = tmp_path / f".file.bin.00000000-{2**22 + 1}-00000000.partial"
    elsewhere.touch()  # Of a process of another machine: who knows.
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        write_bytes(path, b"whole")
        [hidden] = set(tmp_path.iterdir()) - {path, elsewhere}
        assert hidden.read_bytes() == b"half"
        write_bytes(tmp_path / "file", b"another file")
        assert hidden.exists()
    finally:
        process.kill()
        process.wait()
    write_bytes(tmp_path / "file", b"another file")
    assert hidden.exists(), "it is no leftover of that file"
    write_bytes(path, b"again")
    assert sorted(found.name for found in tmp_path.iterdir()) == [elsewhere.name, "file", "file.bin"]


def test_devices_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write_bytes(pipe, b"through")
    assert reader.communicate()[0] == b"through"
    check_writable(Path("/dev/null"))
    write_bytes(Path("/dev/null"), b"away")
    assert Path("/dev/null").is_char_device() and pipe.is_fifo()


READERS: list[Callable[[Path], object]] = [read_bytes, read_json, read_text, sha256_file]
WRITERS: list[Callable[[Path], object]] = [check_writable, lambda path: write_bytes(path, b"")]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("missing", "check the path"),
        (".", "it is a folder; name a file"),
        ("file/below", "a part of the path is a file"),
        ("x" * 256, "choose a shorter name"),
        ("a\0b", "check the path"),
        ("a\ud800b", "check the path"),
        ("loop", "leads back to itself"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, read: Callable[[Path], object], place: str, remedy: str
) -> None:
    _odd_places(tmp_path)
    with pytest.raises(PgolfError, match=f"cannot be read .*{remedy}") as caught:
        read(tmp_path / place)
    assert str(caught.value).startswith(str(tmp_path / place))


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        (".", "name a file"),
        ("file/below", "a part of the path is a file"),
        ("x" * 256, "choose a shorter name"),
        (f"{'x' * 256}/file", "choose a shorter name"),
        ("a\0b", "choose another folder"),
        ("a\ud800b", "choose another folder"),
        ("loop/file", "a broken link"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_nothing_is_left(
    tmp_path: Path, write: Callable[[Path], object], place: str, remedy: str
) -> None:
    _odd_places(tmp_path)
    with pytest.raises(PgolfError, match=remedy) as caught:
        write(tmp_path / place)
    assert str(caught.value).startswith(str(tmp_path / place))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def _odd_places(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ESTALE, 999]
)
def test_whatever_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    for act in (*READERS, *WRITERS):
        with pytest.raises(PgolfError, match=r"file: cannot be (read|written) \(.+\); .+"):
            act(tmp_path / "file")


def test_text_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes("ü\r\nb\n".encode())
    assert read_text(tmp_path / "a.toml") == "ü\nb\n"
    (tmp_path / "b.toml").write_bytes(b"abc\xff")
    with pytest.raises(PgolfError, match=r"b\.toml: not UTF-8 text \(byte 3\)"):
        read_text(tmp_path / "b.toml")


def test_json_that_is_too_deep(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(PgolfError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.EROFS, errno.EIO]
)
def test_an_error_has_the_same_remedy_wherever_it_is_met(number: int) -> None:
    error = OSError(number, os.strerror(number), "file")
    met = [read_error(Path("file"), error), write_error(Path("file"), error), path_error(error)]
    assert len({str(one).partition("; ")[2] for one in met}) == 1
