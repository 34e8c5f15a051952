"""The whole product in the tokens of a Hugging Face tokenizer and of a tiktoken encoding."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import RECIPE, pgolf, pgolf_json, sentences
from tests.unit.foreign_tokenizers import KINDS

pytestmark = pytest.mark.usefixtures("no_pictures")
MEMORY = '[memory]\nenabled = true\nstored = "train"\nstored_bytes = 800\norder = 2\n'
# Of each kind: sizes, and the token that begins documents, for the mask.
KIND = {
    "byte level without beginning": "vocab_size = 331\nbos = 330\ndocument_mask = true",
    "encoding": "vocab_size = 601",
    "wordpiece": "vocab_size = 150",
}


@pytest.fixture(scope="module", params=KIND)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with data in the tokens of a kind, and a trained run."""
    folder, kind = tmp_path_factory.mktemp("tokens"), request.param
    (folder / "tokenizer.json").write_text(KINDS[kind]())
    text = [f"{sentence} naïve 日本 \ufffd <|endoftext|>" for sentence in sentences(100)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in text))
    (folder / "small.toml").write_text(RECIPE.replace("vocab_size = 320", KIND[kind]) + MEMORY)
    pgolf(
        *("data", "prepare", "--text", "text.jsonl", "--val-fraction", "0.2"),
        *("--tokenizer", "tokenizer.json", "--out", "data"),
        cwd=folder,
    )
    pgolf("train", "--recipe", "small.toml", "--data", "data", "--out", "run", cwd=folder)
    return folder, kind


def test_scores_divide_by_bytes_of_the_text(place: tuple[Path, str]) -> None:
    folder, kind = place
    split = json.loads((folder / "data" / "manifest.json").read_text())["splits"]["val"]
    scored = pgolf_json("eval", "run", "--data", "data", "--mode", "sliding", cwd=folder)
    # The last targets, less than a window, are left out.
    assert split["bytes_normalized"] - 32 * 8 < scored["bytes"] <= split["bytes_normalized"]
    lossless = kind != "wordpiece"
    assert (split["bytes_normalized"] == split["bytes_original"]) == lossless
    shown = pgolf_json("data", "inspect", "data", cwd=folder)
    assert shown["errors"] == {} and (shown["val"]["normalisation"] == "changes nothing") == lossless
    assert ("as many as the documents decode to" in shown["byte_counts"]["evidence"]) == lossless


@pytest.mark.parametrize("place", ["byte level without beginning"], indirect=True)
def test_a_whole_job_is_valid(place: tuple[Path, str]) -> None:
    folder, _ = place
    job = ("run", "small.toml", "--data", "data", "--out", "whole", "--score", "memory", "--no-audit")
    pgolf(*job, cwd=folder)
    pgolf("verify-ledger", "whole/ledger.memory.jsonl", "--data", "data", cwd=folder)
    found = pgolf_json(
        *("audit", "whole/artifact.pgolf", "--data", "data", "--mode", "sliding", "--targets", "128"),
        cwd=folder,
    )
    assert {entry["verdict"] for entry in found["findings"]} <= {"ok", "not tested"}, found
    pgolf("report", "whole", "--data", "data", "--out", "page.html", "--targets", "200", cwd=folder)


def test_files_come_back_and_text_is_written(place: tuple[Path, str]) -> None:
    folder, _ = place
    content = "The cat sees a quiet river.\n\n  日本 \ufffd <|endoftext|> \x00\r\n".encode() * 3 + b"\xff\xfe"
    (folder / "book.txt").write_bytes(content)
    pgolf("compress", "book.txt", "--model", "run", "--memory", "--out", "book.pgz", cwd=folder)
    pgolf("decompress", "book.pgz", "--model", "run", "--out", "again.txt", cwd=folder)
    assert (folder / "again.txt").read_bytes() == content
    written = pgolf_json("generate", "run", "--prompt", "the cat", "--past-document", cwd=folder)
    assert written["samples"][0]["text"]


def test_an_absent_package_is_one_line(place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, kind = place
    package = "tiktoken" if kind == "encoding" else "tokenizers"
    monkeypatch.setitem(sys.modules, package, None)
    done = pgolf("eval", "run", "--data", "data", cwd=folder, check=2)
    assert (
        f'needs the package {package}, which is not installed; pip install "pgolf[tokenizers]"' in done.stderr
    )
