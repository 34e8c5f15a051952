"""The whole product on a text whose capital letters are operators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgolf.generate.model import Model
from pgolf.serve.analysis import analyse, shown, ways_of
from pgolf.serve.completions import Completion, asked
from tests.e2e.conftest import RECIPE, pgolf, pgolf_json, sentences

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caseops")
    text = [f"{sentence} NASA says: McCoy \ue011X" for sentence in sentences(120)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in text))
    (folder / "small.toml").write_text(
        RECIPE.replace("vocab_size = 320", "vocab_size = 340") + '[data]\ntransform = "caseops"\n'
        '[memory]\nenabled = true\nstored = "train"\nstored_bytes = 800\norder = 2\n'
    )
    prepared = pgolf(
        *("data", "prepare", "--text", "text.jsonl", "--val-fraction", "0.2", "--vocab-size", "340"),
        *("--transform", "caseops", "--out", "data"),
        cwd=folder,
    )
    assert "caseops" in prepared.stdout
    pgolf("run", "small.toml", "--data", "data", "--out", "run", "--no-audit", cwd=folder)
    return folder


def test_the_score_is_per_byte_of_the_text_as_it_was(run: Path) -> None:
    held_out = json.loads((run / "data" / "manifest.json").read_text())["splits"]["val"]["bytes_original"]
    scored = pgolf_json("eval", "run/artifact.pgolf", "--data", "data", "--mode", "sliding", cwd=run)
    # The last targets, less than a window, are left out.
    assert held_out - 32 * 8 < scored["bytes"] <= held_out
    pgolf("verify-ledger", "run/ledger.memory.jsonl", "--data", "data", cwd=run)
    pgolf("report", "run", "--data", "data", "--out", "page.html", "--targets", "300", cwd=run)
    assert "capital letters" in (run / "page.html").read_text()


def test_text_is_written_and_compressed_with_its_capitals(run: Path) -> None:
    text = "The cat at NASA sees McCoy.\n\n  \ue011X \u2581 \x00 aBC iPhone\r\n".encode() * 3 + b"\xff\xfe"
    (run / "book.txt").write_bytes(text)
    pgolf("compress", "book.txt", "--model", "run", "--memory", "--ttt", "--out", "book.pgz", cwd=run)
    pgolf("decompress", "book.pgz", "--model", "run", "--out", "again.txt", cwd=run)
    assert (run / "again.txt").read_bytes() == text
    written = pgolf_json("generate", "run", "--prompt", "The cat", "--tokens", "80", "--seed", "3", cwd=run)
    text = written["samples"][0]["text"]
    assert not set("\ue011\ue012\ue013") & set(text)
    assert any(character.isupper() for character in text)


def test_the_server_shows_capitals(run: Path) -> None:
    model = Model(run / "run")
    text = "The cat at NASA sees McCoy. \u2603 \ue011X"
    found = list(analyse(model, ways_of(model), text))[-1]
    assert found is not None and "".join(span["text"] for span in found["tokens"]) == text
    assert len(found["tokens"]) < found["tokens"][-1]["end"] == len(model.encode(text)) - 1
    names = "".join(shown(model.tokenizer))
    assert "\u2191" in names and not set("\ue011\ue012\ue013") & set(names)
    request = asked({"prompt": "The cat", "max_tokens": 80, "seed": 3, "temperature": 0.8, "logprobs": 0})
    answer = Completion(model, "small", request, 80)
    choice = answer.whole(chunk for chunk in answer.steps() if chunk)["choices"][0]
    assert choice["text"] == model.generate("The cat", max_tokens=80, seed=3)
    assert len(choice["logprobs"]["tokens"]) == answer.usage()["completion_tokens"]


def test_it_is_valid(run: Path) -> None:
    how = ("--data", "data", "--mode", "sliding", "--targets", "200")
    found = pgolf_json("audit", "run/artifact.pgolf", *how, cwd=run)
    assert {entry["verdict"] for entry in found["findings"]} <= {"ok", "not tested"}, found
