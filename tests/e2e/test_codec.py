"""`pgolf compress`, `pgolf decompress` and `pgolf bench compressors`, as typed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import pgolf, pgolf_json, sentences

MODEL = ("--model", "model.pgolf", "--tokenizer", "data/tokenizer.model")


@pytest.fixture(scope="module")
def place(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, its tokenizer, a text and the compressed text."""
    place = tmp_path_factory.mktemp("codec")
    (place / "data").mkdir()
    shutil.copy(workshop / "model.pgolf", place)
    shutil.copy(workshop / "data" / "tokenizer.model", place / "data")
    (place / "text.txt").write_text(" ".join(sentences(10, seed=5)))
    pgolf("compress", "text.txt", *MODEL, "--out", "text.pgz", cwd=place)
    return place


@pytest.mark.parametrize("options", [(), ("--ttt", "--memory"), ("--threads", "1")])
def test_a_text_there_and_back(place: Path, options: tuple[str, ...]) -> None:
    there = pgolf_json("compress", "text.txt", *MODEL, *options, "--out", "new/x.pgz", cwd=place)
    size = (place / "text.txt").stat().st_size
    assert (there["bytes"], there["run_bytes"], there["ttt"]) == (size, 0, "--ttt" in options)
    assert there["memory"] == ("--memory" in options)
    assert there["compressed_bytes"] == (place / "new" / "x.pgz").stat().st_size < size
    assert 8 * there["payload_bytes"] <= 1.005 * there["ledger_bits"] + 512
    assert there["tokens_per_second"] > 0
    back = pgolf_json("decompress", "new/x.pgz", *MODEL, "--out", "new/text.txt", cwd=place)
    assert (place / "new" / "text.txt").read_bytes() == (place / "text.txt").read_bytes()
    assert (back["tokens"], back["ledger_bits"]) == (there["tokens"], there["ledger_bits"])


def test_the_price_is_what_strict_evaluation_says(place: Path, workshop: Path) -> None:
    pgolf(
        *("data", "prepare", "--text", "text.txt", "--val-text", "text.txt"),
        *("--tokenizer", "data/tokenizer.model", "--out", "shards"),
        cwd=place,
    )
    there = pgolf_json("compress", "text.txt", *MODEL, "--out", "x.pgz", cwd=place)
    scored = pgolf_json("eval", "model.pgolf", "--data", "shards", "--strict", cwd=place)
    # Evaluation cuts the text to whole windows.
    assert there["ledger_bits"] / there["bytes"] == pytest.approx(scored["val_bpb"], rel=0.02)


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff\xfe \r\n  x", bytes(range(256)) * 3])
def test_any_bytes_there_and_back(place: Path, content: bytes) -> None:
    (place / "any").write_bytes(content)
    pgolf("compress", "any", *MODEL, "--out", "any.pgz", cwd=place)
    shown = pgolf("decompress", "any.pgz", *MODEL, "--out", "again", cwd=place).stdout
    assert (place / "again").read_bytes() == content
    assert f"{len(content):,}" in shown


def fails(place: Path, *arguments: str) -> str:
    before = sorted(path.name for path in place.iterdir())
    done = pgolf(*arguments, cwd=place, check=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("pgolf: error: ")]
    assert len(lines) == 1, done.stderr
    assert sorted(path.name for path in place.iterdir()) == before, "something was written"
    return lines[0]


def test_mistakes_are_one_line_and_nothing_is_written(place: Path, workshop: Path) -> None:
    packed = (place / "text.pgz").read_bytes()
    (place / "cut.pgz").write_bytes(packed[:-5])
    (place / "damaged.pgz").write_bytes(packed[:-5] + b"oops!")
    (place / "newer.pgz").write_bytes(packed[:7] + b"\x63" + packed[8:])
    out = ("--out", "nothing")
    for name, words in (
        ("cut.pgz", "cut short"),
        ("damaged.pgz", "payload is damaged"),
        ("newer.pgz", "format that this version"),
        ("text.txt", "not a file that `pgolf compress` wrote"),
        ("missing.pgz", "missing.pgz: cannot be read"),
    ):
        message = fails(place, "decompress", name, *MODEL, *out)
        assert name in message
        assert words in message
    assert "--tokenizer" in fails(place, "compress", "text.txt", "--model", "model.pgolf", *out)
    assert "missing.pgolf" in fails(place, "compress", "text.txt", "--model", "missing.pgolf", *out)
    assert "--out" in fails(place, "compress", "text.txt", *MODEL, "--out", "text.txt")
    other = ("--model", str(workshop / "run"), "--tokenizer", "data/tokenizer.model")
    assert "another model" in fails(place, "decompress", "text.pgz", *other, *out)


def test_the_run_folder_knows_its_tokenizer(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"The cat sees a quiet river.")
    pgolf("compress", tmp_path / "text", "--model", "run", "--out", tmp_path / "x.pgz", cwd=workshop)
    pgolf("decompress", tmp_path / "x.pgz", "--model", "run", "--out", tmp_path / "back", cwd=workshop)
    assert (tmp_path / "back").read_bytes() == b"The cat sees a quiet river."


def test_bench_compressors(place: Path) -> None:
    (found,) = pgolf_json("bench", "compressors", "text.txt", *MODEL, "--out", "table.json", cwd=place)
    assert (place / "table.json").is_file()
    sizes = {row["compressor"]: row["bytes"] for row in found["compressors"]}
    assert 0 < sizes["pgolf"] < (place / "text.txt").stat().st_size
    shown = pgolf("bench", "compressors", "text.txt", *MODEL, cwd=place).stdout
    assert all(name in shown for name in sizes)
    assert f"{sizes['pgolf']:,}" in shown
