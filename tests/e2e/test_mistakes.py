"""Mistakes: one clear line on standard error, exit status 2, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import pgolf


def fails(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must fail with one line; return that line."""
    done = pgolf(*arguments, cwd=cwd, check=2)
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("pgolf: error: "), done.stderr
    assert sum(line.startswith("pgolf: error: ") for line in lines) == 1
    return lines[-1]


def shards_copy(workshop: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workshop / "data", tmp_path / "data"))


def first_shard(folder: Path, split: str) -> Path:
    return sorted(folder.glob(f"*_{split}_*.bin"))[0]


TRAIN = ("train", "--recipe", "tiny.toml", "--out", "new")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), ["trian"]),
        (("train", "--recipe", "quickstar", "--out", "new"), ["quickstart"]),
        ((*TRAIN, "--data", "data", "--set", "model.widht=3"), ["model.widht", "model.width"]),
        ((*TRAIN, "--data", "data", "--set", "model.heads=5"), ["model.heads"]),
        ((*TRAIN, "--data", "data", "--set", "model.vocab_size=500"), ["--set model.vocab_size=320 ", "500"]),
        ((*TRAIN, "--data", "missing"), ["missing"]),
        (TRAIN, ["--data"]),
        (("train", "--recipe", "tiny.toml", "--data", "data", "--out", "run"), ["run", "--init"]),
        (("train", "--resume", "--out", "missing"), ["missing", "resume"]),
        (
            ("train", "--recipe", "tiny.toml", "--data", "data", "--out", "new", "--device", "cuda:99"),
            ["cuda:99"],
        ),
        (("eval", "missing.pgolf", "--data", "data"), ["missing.pgolf"]),
        (("eval", "run", "--data", "data", "--mode", "best"), ["best", "ttt"]),
        (("eval", "run", "--data", "data", "--set", "model.width=64"), ["model.width"]),
        (("eval", "run", "--data", "data", "--stride", "33"), ["33", "32"]),
        (("pack", "run", "--out", "small.pgolf", "--cap", "100"), ["100", "smallest"]),
        (("pack", "model.pgolf", "--out", "twice.pgolf"), ["already"]),
        (("data", "prepare", "--text", "train.txt", "--out", "fresh"), ["--tokenizer", "--vocab-size"]),
        (("data", "prepare", "--text", "none.txt", "--vocab-size", "300", "--out", "fresh"), ["none.txt"]),
        (("data", "inspect", "missing"), ["missing"]),
        (("import", "train.txt", "--recipe", "seed_644", "--out", "imported"), ["train.txt"]),
        (("recipes", "seed_645"), ["seed_644"]),
    ],
)
def test_one_line_and_nothing_written(workshop: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    before = sorted(path.name for path in workshop.iterdir())
    line = fails(*arguments, cwd=workshop)
    assert all(word in line for word in words), line
    assert sorted(path.name for path in workshop.iterdir()) == before


def test_damaged_shards(workshop: Path, tmp_path: Path) -> None:
    folder = shards_copy(workshop, tmp_path)
    command = ("train", "--recipe", workshop / "tiny.toml", "--data", folder, "--out", tmp_path / "new")
    shard = first_shard(folder, "train")
    whole = shard.read_bytes()
    wrong_magic = np.frombuffer(whole[:1024], "<i4").copy()
    wrong_magic[0] = 7
    too_large = np.frombuffer(whole[1024:], "<u2").copy()
    too_large[10] = 5000
    for content in (
        whole[:-3],
        whole[:500],
        wrong_magic.tobytes() + whole[1024:],
        b"",
        whole[:1024] + too_large.tobytes(),
    ):
        shard.write_bytes(content)
        assert shard.name in fails(*command)
        assert not (tmp_path / "new").exists()


def test_a_damaged_artifact_is_noticed(workshop: Path, tmp_path: Path) -> None:
    whole = (workshop / "model.pgolf").read_bytes()
    for position in (9, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        (tmp_path / "bad.pgolf").write_bytes(bytes(damaged))
        assert "bad.pgolf" in fails("eval", tmp_path / "bad.pgolf", "--data", workshop / "data")


def test_text_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n\n ")
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": ')
    for name in ("latin.txt", "empty.txt", "broken.jsonl"):
        line = fails("data", "prepare", "--text", name, "--vocab-size", "300", "--out", "data", cwd=tmp_path)
        assert name in line
        assert not (tmp_path / "data").exists()


def test_data_of_another_tokenizer(workshop: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(
        "\n\n".join(f"Completely different words {n} about quarks and gluons." for n in range(300))
    )
    options = ("--split", "blank-lines", "--val-fraction", "0.2", "--vocab-size", "320")
    pgolf("data", "prepare", "--text", other, *options, "--out", tmp_path / "data")
    assert "tokenizer" in fails("eval", workshop / "model.pgolf", "--data", tmp_path / "data")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.layers=100000000", "model.layers must be at most 256"),
        ("model.width=1048576", "parameters, and an artifact holds at most"),
        ("model.bigram.buckets=99999999999", "model.bigram.buckets must be at most"),
        ("train.batch_tokens=1073741824", "training takes more than"),
    ],
)
def test_a_recipe_without_end_is_refused_by_every_command(
    workshop: Path, tmp_path: Path, setting: str, words: str
) -> None:
    more = ("--set", setting, "--set", "model.width=1024") if "batch" in setting else ("--set", setting)
    data, out = ("--data", "data"), ("--out", tmp_path / "new")
    assert words in fails("train", "--recipe", "tiny.toml", *more, *data, *out, cwd=workshop)
    assert words in fails("run", "tiny.toml", *more, *data, *out, cwd=workshop)
    assert not (tmp_path / "new").exists()
    if "batch" in setting:
        return  # What it is short of is this machine's memory, and cells may run elsewhere.
    key, _, value = setting.partition("=")
    (tmp_path / "tiny.toml").write_text((workshop / "tiny.toml").read_text())
    study = tmp_path / "study.toml"
    study.write_text(f'title = "A study"\nrecipe = "tiny.toml"\nseeds = [1]\n[grid]\n"{key}" = [{value}]\n')
    line = fails("study", study, "--data", workshop / "data", *out, "--dry-run")
    assert words in line
    if "parameters" not in words:
        assert words in fails("recipes", workshop / "tiny.toml", "--set", setting)
