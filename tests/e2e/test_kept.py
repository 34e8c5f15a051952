"""A run's folder is enough: it finds its data, and keeps artifact, scores and audit that are made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import pgolf as library
from pgolf.compress.container import decode_artifact, encode_artifact
from tests.e2e.conftest import pgolf, pgolf_json

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def run(workshop: Path, tmp_path: Path) -> Path:
    """A trained run, in a place where nothing else is."""
    return shutil.copytree(workshop / "run", tmp_path / "runs" / "mine")


def kept(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


def test_all_of_it_without_data_tokenizer_or_out(run: Path, workshop: Path, tmp_path: Path) -> None:
    packed = pgolf_json("pack", "runs/mine", cwd=tmp_path)
    assert (run / "artifact.pgolf").read_bytes() == (workshop / "model.pgolf").read_bytes()
    assert kept(run)["pack"]["total_bytes"] == packed["total_bytes"]
    scores = {}
    for name, mode in (("packed", "standard"), ("sliding", "sliding"), ("ttt", None)):
        found = pgolf_json("eval", "runs/mine", *(("--mode", mode) if mode else ()), cwd=tmp_path)
        assert found["kept"] == f"in runs/mine/result.json and ledger.{name}.jsonl"
        scores[name] = found["val_bpb"]
        elsewhere = pgolf_json(
            *("eval", "model.pgolf", "--data", "data", "--mode", found["mode"]), cwd=workshop
        )
        assert found["val_bpb"] == elsewhere["val_bpb"] and "kept" not in elsewhere
        ledger = ("verify-ledger", f"runs/mine/ledger.{name}.jsonl", "--artifact", run / "artifact.pgolf")
        assert pgolf_json(*ledger, cwd=tmp_path)["valid"]
    assert {name: kept(run)["evaluations"][name]["val_bpb"] for name in scores} == scores
    shown = pgolf("audit", "runs/mine", "--targets", "96", cwd=tmp_path).stdout
    assert "pgolf ttt on 96 targets" in shown and "kept in runs/mine/audit.json" in shown
    made = pgolf_json("report", "runs/mine", "--targets", "300", cwd=tmp_path)
    assert made["report"] == "runs/mine/report.html"
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("no violation", "4 of 4 valid", "packed BPB", "TTT BPB", "What the model writes"):
        assert words in page, words
    assert "finished" in pgolf("runs", cwd=tmp_path).stdout
    pgolf("generate", "runs/mine", "--tokens", "3", cwd=tmp_path)
    (tmp_path / "text").write_text("The cat sees.")
    pgolf("compress", "text", "--model", "runs/mine", "--out", "text.pgz", cwd=tmp_path)
    pgolf("decompress", "text.pgz", "--model", "runs/mine/artifact.pgolf", "--out", "again", cwd=tmp_path)
    assert (tmp_path / "again").read_text() == "The cat sees."


def test_only_a_runs_own_scores_are_kept(run: Path, workshop: Path, tmp_path: Path) -> None:
    before = kept(run)
    assert "pack it first" in pgolf_json("eval", run, "--mode", "sliding")["kept"]
    pgolf("pack", run)
    for arguments, why in (
        (("--limit-targets", "64"), "only the first targets"),
        (("--stride", "4", "--mode", "sliding"), "other settings"),
        (("--data", shutil.copytree(workshop / "data", tmp_path / "copy")), "other data"),
    ):
        assert why in pgolf_json("eval", run, *arguments)["kept"]
    assert kept(run)["evaluations"] == before["evaluations"]
    assert not list(run.glob("ledger.[pst]*"))
    # What was made of an artifact goes with it.
    pgolf("eval", run, "--mode", "standard")
    pgolf("audit", run, "--targets", "64", "--mode", "standard")
    pgolf("pack", run)
    assert "packed" in kept(run)["evaluations"] and (run / "audit.json").is_file()
    pgolf("pack", run, "--cap", "100000", "--set", "compress.calibration=none")
    assert kept(run)["pack"]["cap"] == 100000 and kept(run)["evaluations"] == before["evaluations"]
    assert not (run / "audit.json").exists() and not (run / "ledger.packed.jsonl").exists()


def test_a_file_has_no_place_for_an_artifact_and_gone_data_is_named(run: Path, tmp_path: Path) -> None:
    done = pgolf("pack", run / "model.safetensors", check=2)
    assert "is no run's folder" in done.stderr and "--out" in done.stderr
    made = json.loads((run / "provenance.json").read_text())
    made["data"]["folder"] = str(tmp_path / "gone")
    (run / "provenance.json").write_text(json.dumps(made))
    for verb in ("eval", "audit", "pack"):
        assert "gone: the data of" in pgolf(verb, run, check=2).stderr
    # The tokenizer is the run's own.
    assert pgolf("generate", run, "--tokens", "2", "--seed", "1").stderr == ""


def test_shards_without_a_tokenizer_find_it_in_the_run(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for shard in (workshop / "data").glob("*.bin"):
        shutil.copy(shard, tmp_path / "bare")
    tokenizer = ("--tokenizer", workshop / "data" / "tokenizer.model")
    train = ("train", workshop / "tiny.toml", "--data", "bare", "--set", "train.steps=6")
    pgolf(*train, *tokenizer, cwd=tmp_path)
    pgolf("pack", "runs/tiny", cwd=tmp_path)
    assert "kept" in pgolf_json("eval", "runs/tiny", "--mode", "standard", cwd=tmp_path)
    pgolf("report", "runs/tiny", "--targets", "64", cwd=tmp_path)
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()


def test_an_artifact_carries_its_tokenizer(run: Path, tmp_path: Path) -> None:
    without = pgolf_json("pack", run, "--out", tmp_path / "without.pgolf")
    free = pgolf_json("pack", run, "--out", tmp_path / "with.pgolf", "--with-tokenizer")
    assert free["total_bytes"] == without["total_bytes"] and free["tokenizer_bytes"] > 500
    assert free["model_bytes"] == without["model_bytes"] + free["tokenizer_bytes"]
    assert free["model_bytes"] == (tmp_path / "with.pgolf").stat().st_size
    cap = without["total_bytes"] + 500
    counted = pgolf_json("pack", run, "--out", tmp_path / "c.pgolf", "--count-tokenizer", "--cap", str(cap))
    assert counted["total_bytes"] == counted["model_bytes"] + counted["code_bytes"] <= cap
    assert counted["tokenizer_counts"] and counted["model_bytes"] < free["model_bytes"]
    how, tokenizer = ("--tokens", "9", "--seed", "1"), ("--tokenizer", run / "tokenizer.model")
    written = pgolf("generate", tmp_path / "with.pgolf", *how).stdout
    assert written == pgolf("generate", tmp_path / "without.pgolf", *tokenizer, *how).stdout
    assert "not known" in pgolf("generate", tmp_path / "without.pgolf", check=2).stderr
    content = (tmp_path / "with.pgolf").read_bytes()
    other = decode_artifact(content, "x")
    given = other.stored, other.recipe, "0" * 64, other.coder, 1, other.origin, other.memory
    wrong = tmp_path / "wrong.pgolf"
    for carried, words in ((other.tokenizer, "is not the tokenizer of"), (b"no zstd", "cannot be decoded")):
        wrong.write_bytes(encode_artifact(*given, carried))
        assert words in pgolf("generate", wrong, check=2).stderr
    assert library.load(tmp_path / "with.pgolf").tokenizer.digest == library.load(run).tokenizer.digest
    assert ", in the file: " in pgolf("inspect", tmp_path / "with.pgolf").stdout
    assert "not in the file" in pgolf("inspect", tmp_path / "without.pgolf").stdout
    shown = pgolf("pack", run, "--out", tmp_path / "again.pgolf", "--with-tokenizer").stdout
    assert "bytes in the artifact, not counted" in shown


def test_run_and_train_name_a_recipe_alike(workshop: Path, tmp_path: Path) -> None:
    data = ("--data", workshop / "data", "--set", "train.steps=2", "--set", "train.warmdown_steps=1")
    pgolf("train", workshop / "tiny.toml", *data, cwd=tmp_path)
    again = pgolf("train", "--recipe", workshop / "tiny.toml", *data, cwd=tmp_path, check=2).stderr
    assert "runs/tiny: training is already finished" in again and "--init runs/tiny" in again
    result = pgolf_json(
        *("run", "--recipe", workshop / "tiny.toml", *data, "--score", "packed", "--no-audit"), cwd=tmp_path
    )
    assert result["train"]["steps"] == 2 and "packed" in result["evaluations"]
    longer = ("run", workshop / "tiny.toml", *data, "--set", "train.steps=3")
    refused = pgolf(*longer, cwd=tmp_path, check=2).stderr
    assert "train.steps in runs/tiny/recipe.toml" in refused and "--init runs/tiny" in refused
    on = ("--out", "runs/on", "--init", "runs/tiny", "--score", "float", "--no-audit")
    first = pgolf_json(*longer, *on, cwd=tmp_path)
    start = json.loads((tmp_path / "runs/on/metrics.jsonl").read_text().splitlines()[0])
    assert first["train"]["steps"] == 3 and start["step"] == 0
    assert start["val_bpb"] == pytest.approx(result["evaluations"]["float"]["val_bpb"], abs=1e-6)
    for words, why in (
        (("train", "tiny", "--recipe", "tiny"), "leave one of them out"),
        (("run",), "name a recipe"),
        (("train", "--resume"), "name a recipe"),
        (("train", "--out", "x"), "no recipe is named"),
    ):
        assert why in pgolf(*words, cwd=tmp_path, check=2).stderr
