"""A model with the document mask through every command that reads text with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import pgolf, pgolf_json, sentences

MASK = ("--set", "model.document_mask=true")


@pytest.fixture(scope="module")
def place(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and a trained run and an artifact of a model with the mask."""
    place = tmp_path_factory.mktemp("masked")
    shutil.copytree(workshop / "data", place / "data")
    shutil.copy(workshop / "tiny.toml", place)
    pgolf("train", "--recipe", "tiny.toml", *MASK, "--data", "data", "--out", "run", cwd=place)
    pgolf("pack", "run", "--out", "model.pgolf", cwd=place)
    return place


def test_every_evaluation_uses_it_block_by_block_and_target_by_target(place: Path) -> None:
    for mode in ("standard", "sliding", "ttt"):
        command = ("eval", "model.pgolf", "--data", "data", "--mode", mode, "--limit-targets", "160")
        command += ("--set", "ttt.chunk_tokens=64")
        block = pgolf_json(*command, cwd=place)
        strict = pgolf_json(*command, "--strict", cwd=place)
        assert strict["val_bpb"] == pytest.approx(block["val_bpb"], rel=1e-5), mode


def test_the_mask_is_part_of_the_model(place: Path, workshop: Path) -> None:
    losses = [
        pgolf_json("eval", folder / "run", "--data", place / "data", cwd=place)["val_loss"]
        for folder in (place, workshop)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)
    command = ("eval", "run", "--data", "data", "--set", "model.document_mask=false")
    assert "model.document_mask" in pgolf(*command, cwd=place, check=2).stderr


def test_it_decodes_what_it_encodes(place: Path) -> None:
    (place / "text.txt").write_text("\n\n".join(sentences(4, seed=5)))
    model = ("--model", "model.pgolf", "--tokenizer", "data/tokenizer.model")
    pgolf("compress", "text.txt", *model, "--out", "text.pgz", cwd=place)
    pgolf("decompress", "text.pgz", *model, "--out", "again.txt", cwd=place)
    assert (place / "again.txt").read_bytes() == (place / "text.txt").read_bytes()


def test_documents_that_begin_otherwise_are_a_mistake(place: Path) -> None:
    command = ("train", "--recipe", "tiny.toml", *MASK, "--set", "model.bos=7", "--data", "data")
    words = pgolf(*command, "--out", "other", cwd=place, check=2).stderr
    assert "begins with token 1, but the recipe's model.bos is 7" in words
    assert "--set model.bos=1" in words
    assert not (place / "other").exists()
