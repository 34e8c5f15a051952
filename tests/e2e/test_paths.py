"""Paths as users have them: absent, of another kind, too long, forbidden, in names that are no UTF-8."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from pgolf.runtime.run_files import recorded_data
from tests.e2e.conftest import pgolf, pgolf_json

pytestmark = pytest.mark.usefixtures("quick_python")  # Plug-ins run in a process of their own.
LATIN = os.fsdecode(b"lat\xe9")
BAD = {
    "absent": "no/such",
    "NUL": "a\0b",
    "control characters": "a\nb\x1b[31m",
    "too long": "x" * 300,
    "a folder": "folder",
    "a file": "file",
    "below a file": "file/x",
    "a link to itself": "loop",
}
# @ is the path.
COMMANDS = (
    "data inspect @",
    "data inspect data --tokenizer @",
    "data prepare --text @ --vocab-size 290 --out new",
    "data prepare --text train.txt --tokenizer @ --out new",
    "recipes @",
    "train --recipe @ --out new",
    "train --recipe tiny.toml --data @ --out new",
    "train --recipe tiny.toml --data data --init @ --out new",
    "train --resume --out @",
    "pack @ --out new",
    "pack run --data @ --out new",
    "pack run --tokenizer @ --out new",
    "eval @",
    "eval run --data @",
    "audit @",
    "audit run --data data --scorer @:make",
    "verify-ledger @",
    "significance @ --against @",
    "report @ -o new.html",
    "diff @ run",
    "diff run @",
    "generate @",
    "generate run --tokenizer @",
    "compress train.txt --model @ --out new",
    "decompress train.txt --model @ --out new",
    "decompress @ --model run --out new",
    "import @ --recipe tiny --out new",
    "study @",
    "launch local @ --data data",
    "submit @ -o new",
    "bench coders @",
    "bench compare @ @",
)


@pytest.fixture(scope="module")
def place(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths")
    for name in ("data", "run"):
        (folder / name).symlink_to(workshop / name)
    for name in ("tiny.toml", "train.txt"):
        shutil.copy(workshop / name, folder)
    (folder / "file").write_text("x")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_path_is_one_line(place: Path, command: str) -> None:
    before = sorted(path.name for path in place.iterdir())
    for kind, path in BAD.items():
        done = pgolf(*(word.replace("@", path) for word in command.split()), cwd=place, check=None)
        assert done.returncode == 2, (kind, done)
        assert done.stdout == "" and done.stderr.count("\n") == 1, (kind, done)
        assert done.stderr.startswith("pgolf: error: ") and done.stderr[:-1].isprintable()
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if "decompress train.txt" not in command]
)
def test_a_file_that_is_no_utf8_is_named(place: Path, command: str, tmp_path: Path) -> None:
    for name in ("bad.toml", "bad.json", "bad.jsonl", "bad.txt", "bad.py"):
        path = tmp_path / name
        path.write_bytes("# déjà vu".encode("latin-1"))
        done = pgolf(*(word.replace("@", str(path)) for word in command.split()), cwd=place, check=None)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done
        assert str(path) in done.stderr, done


@pytest.mark.parametrize(
    "command",
    [
        "data inspect data",
        "recipes tiny.toml",
        "train --recipe tiny.toml --data data --out new",
        "pack run --out new",
        "eval run --data data",
        "runs run",
        "diff run run",
        "generate run",
        "compress train.txt --model run --out new",
        "report run --no-score -o new.html",
    ],
)
def test_a_path_without_permission_is_one_line(
    place: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests may be run by root, whom no permission stops: so the system's answer is acted.
    real_stat = Path.stat

    def refuse(path: object) -> None:
        if str(path).endswith(("model.safetensors", "recipe.toml", "tiny.toml", "manifest.json", ".bin")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def stat(self: Path, **options: bool) -> os.stat_result:
        refuse(self)
        return real_stat(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    done = pgolf(*command.split(), cwd=place, check=None)
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.count("\n") == 1 and "Permission denied" in done.stderr, done


@pytest.mark.skipif(sys.platform != "linux", reason="the file system must take any bytes as a name")
def test_names_that_are_no_utf8_work_everywhere(workshop: Path, tmp_path: Path) -> None:
    folder = tmp_path / LATIN
    folder.mkdir()
    shutil.copy(workshop / "train.txt", folder / f"{LATIN}.txt")
    shutil.copy(workshop / "tiny.toml", folder / f"{LATIN}.toml")
    data, run = folder / "data", folder / "run"
    prepare = ("--text", folder / f"{LATIN}.txt", "--val-fraction", "0.2", "--vocab-size", "320")
    pgolf("data", "prepare", *prepare, "--out", data)
    pgolf("data", "inspect", data)
    job = ("run", folder / f"{LATIN}.toml", "--data", data, "--out", run)
    done = pgolf(*job, "--score", "packed", "--no-audit")
    assert "lat\\xe9" in done.stdout and LATIN not in done.stdout
    # What was recorded is found again, without --data.
    assert recorded_data(run) == data
    assert pgolf_json("recipes", run / "recipe.toml")["recipe"]["name"] == "lat\\xe9"
    ledger, packed = folder / "ledger.jsonl", folder / "model.pgolf"
    pgolf("pack", run, "--out", packed)
    pgolf("eval", packed, "--data", data, "--ledger", ledger, "--limit-targets", "200")
    pgolf("verify-ledger", ledger, "--data", data, "--artifact", packed)
    pgolf("inspect", packed, "--picture", folder / "picture.png")
    pgolf("generate", run, "--tokens", "3")
    (folder / f"short{LATIN}.txt").write_text("The cat sees a quiet river.\n")
    pgolf("compress", folder / f"short{LATIN}.txt", "--model", run, "--out", folder / "c.pgz")
    pgolf("decompress", folder / "c.pgz", "--model", run, "--out", folder / "again.txt")
    assert (folder / "again.txt").read_text() == "The cat sees a quiet river.\n"
    for name in ("report.html", "report.md"):
        pgolf("report", run, "--no-score", "-o", folder / name)
        assert "lat\\xe9" in (folder / name).read_text(encoding="utf-8")
    pgolf("diff", run, run)
    pgolf("bench", "coders", run / "model.safetensors")
    assert [Path(found["folder"]) for found in pgolf_json("runs", folder)] == [run]
    study = 'title = "t"\nrecipe = "' + str(workshop / "tiny.toml") + '"\nscores = ["packed"]\nseeds = [1]\n'
    (folder / f"{LATIN}.study.toml").write_text(study)
    pgolf("study", folder / f"{LATIN}.study.toml", "--data", data, "--out", folder / "study")
    told = pgolf("submit", run, "-o", folder / "submission", "--no-audit", "--force", check=2)
    place = f"{tmp_path}/lat\\xe9/run"
    remedy = "has no sliding evaluation; continue the run with `pgolf run`"
    assert told.stderr == f"pgolf: error: {place}: {remedy}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the file system must take any bytes as a name")
@pytest.mark.parametrize("ending", [".txt.gz", ".txt.zst", ".jsonl", ".json", ".parquet", ".arrow"])
def test_text_of_every_kind_in_names_that_are_no_utf8(workshop: Path, tmp_path: Path, ending: str) -> None:
    text = (workshop / "train.txt").read_text()
    path = tmp_path / f"{LATIN}{ending}"
    if ending in (".parquet", ".arrow"):
        table = pytest.importorskip("pyarrow").table({"text": [text]})
        with path.open("wb") as file:
            if ending == ".parquet":
                pytest.importorskip("pyarrow.parquet").write_table(table, file)
            else:
                with pytest.importorskip("pyarrow.ipc").new_stream(file, table.schema) as stream:
                    stream.write_table(table)
    else:
        plain = text.encode() if ".txt" in ending else json.dumps({"text": text}).encode()
        path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(plain))
    tokenizer = workshop / "data" / "tokenizer.model"
    out = tmp_path / LATIN
    manifest = pgolf_json("data", "prepare", "--text", path, "--tokenizer", tokenizer, "--out", out)
    assert manifest["splits"]["train"]["bytes_original"] == len(text.encode())


def test_a_name_that_matplotlib_takes_for_a_formula(workshop: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "$\\frac{.toml"
    recipe.write_text((workshop / "tiny.toml").read_text().replace("Seconds", "\\u001b[31m [bold] Seconds"))
    run = tmp_path / "run"
    job = ("run", recipe, "--data", workshop / "data", "--out", run)
    done = pgolf(*job, "--score", "packed", "--no-audit")
    assert (run / "curve.png").is_file() and "$\\frac{" in done.stdout
    for text in (
        done.stdout,
        pgolf("recipes", recipe).stdout,
        (run / "report.md").read_text(),
        (run / "report.html").read_text(),
    ):
        assert "\x1b" not in text
    assert json.loads((run / "result.json").read_text())["recipe"] == "$\\frac{"


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    yield
    assert not Path("a\nb\x1b[31m").exists()
