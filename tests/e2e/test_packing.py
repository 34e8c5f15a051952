"""`pgolf pack`, as a user types it: caps, schemes, and where the calibration text comes from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pgolf.bench import quantizers
from pgolf.compress.calibrate import calibration_for
from pgolf.compress.container import read_artifact
from pgolf.compress.weights import load_weights, save_weights
from pgolf.data.dataset import open_dataset
from pgolf.data.shards import read_shard
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import load_recipe
from pgolf.runs import pipeline
from pgolf.runs.pipeline import training_text
from tests.e2e.conftest import pgolf, pgolf_json
from tests.e2e.test_mistakes import fails
from tests.shards import write_shard

ROWWISE = ["--set", "compress.scheme=rowwise"]


@pytest.fixture
def room(workshop: Path, tmp_path: Path) -> Path:
    """The run, its data and its weights alone in a folder that knows of no data."""
    shutil.copytree(workshop / "run", tmp_path / "run")
    (tmp_path / "alone").mkdir()
    shutil.copy(workshop / "run" / "model.safetensors", tmp_path / "alone" / "w.safetensors")
    return tmp_path


def origin(path: Path) -> dict[str, Any]:
    return read_artifact(path).origin


def test_a_cap_is_used_up_and_explained(room: Path) -> None:
    largest = pgolf_json("pack", "run", "--out", "a.pgolf", "--cap", "300000", cwd=room)["total_bytes"]
    cap = largest - 6000
    found = pgolf_json("pack", "run", "--out", "b.pgolf", "--cap", str(cap), cwd=room)
    assert 0.998 * cap <= found["total_bytes"] <= cap
    assert origin(room / "b.pgolf")["calibration"]["source"] == "train"
    printed = pgolf("pack", "run", "--out", "c.pgolf", "--cap", str(cap), cwd=room).stdout
    for tensor in found["tensors"]:
        if tensor["width"] <= 8:
            line = next(line for line in printed.splitlines() if tensor["name"] in line)
            assert f"{tensor['bits_per_weight']:.2f}" in line
            assert f"{tensor['bytes']:,}" in line
            assert f"{tensor['predicted']:+.5f}" in line
            assert f"{tensor['measured']:+.5f}".replace("-0.00000", "+0.00000") in line
    assert (room / "b.pgolf").read_bytes() == (room / "c.pgolf").read_bytes()


def test_a_place_that_cannot_be_written_is_said_before_the_work(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_pack", lambda *_: pytest.fail("it packs first"))
    assert "alone: is a folder; name a file" in fails("pack", "run", "--out", "alone", cwd=room)


def test_a_cap_chooses_the_solver_unless_a_scheme_is_named(room: Path) -> None:
    fixed = load_recipe("seed_1232").compress
    assert (fixed.scheme, fixed.codec, fixed.rounding) == ("rowwise", "zstd", "nearest")
    weights = load_weights(room / "run")
    recipe = weights.recipe.with_overrides(["compress.scheme=rowwise", "compress.codec=zstd"])
    save_weights(room / "run" / "fixed.safetensors", weights.state, recipe, weights.tokenizer_digest)
    pgolf("pack", "run/fixed.safetensors", "--out", "a.pgolf", "--cap", "120000", cwd=room)
    assert (origin(room / "a.pgolf")["scheme"], read_artifact(room / "a.pgolf").coder) == ("budget", "range")
    pgolf("pack", "run/fixed.safetensors", "--out", "b.pgolf", cwd=room)
    assert (origin(room / "b.pgolf")["scheme"], read_artifact(room / "b.pgolf").coder) == ("rowwise", "zstd")
    pgolf("pack", "run/fixed.safetensors", "--out", "c.pgolf", "--cap", "120000", *ROWWISE, cwd=room)
    assert origin(room / "c.pgolf")["scheme"] == "rowwise"


def test_weights_without_data_say_what_to_do(room: Path, workshop: Path) -> None:
    alone = "alone/w.safetensors"
    message = fails("pack", alone, "--out", "a.pgolf", cwd=room)
    for remedy in ("--data DIR", "compress.calibration=self", "compress.calibration=none"):
        assert remedy in message
    assert not (room / "a.pgolf").exists()
    pgolf("pack", alone, "--out", "a.pgolf", "--data", workshop / "data", cwd=room)
    assert origin(room / "a.pgolf")["calibration"]["source"] == "train"
    settings = ["--set", "compress.calibration=self", "--set", "compress.calibration_tokens=128"]
    pgolf("pack", alone, "--out", "b.pgolf", *settings, cwd=room)
    assert origin(room / "b.pgolf")["calibration"] | {"sha256": ""} == {
        "source": "self",
        "tokens": 128,
        "sha256": "",
    }
    pgolf("pack", alone, "--out", "c.pgolf", "--set", "compress.calibration=none", cwd=room)
    assert "calibration" not in origin(room / "c.pgolf")


def test_calibration_never_reads_validation_text(workshop: Path, tmp_path: Path) -> None:
    weights = load_weights(workshop / "run")
    shutil.copytree(workshop / "data", tmp_path / "data")
    before = calibration_for(weights.model(), weights.recipe, open_dataset(tmp_path / "data"))
    for path in (tmp_path / "data").glob("*_val_*.bin"):
        write_shard(path, read_shard(path)[::-1].copy())
    after = calibration_for(weights.model(), weights.recipe, open_dataset(tmp_path / "data"))
    for path in (tmp_path / "data").glob("*_train_*.bin"):
        write_shard(path, read_shard(path)[::-1].copy())
    other = calibration_for(weights.model(), weights.recipe, open_dataset(tmp_path / "data"))
    assert before is not None
    assert after is not None
    assert other is not None
    assert before.source == after.source != other.source


def test_the_quantizers_are_compared_at_equal_bytes(room: Path) -> None:
    asked = "bench", "quantizers", "run", "--bits", "6", "--limit-targets", "200", "--effort", "2"
    assert "std + GPTQ" in pgolf(*asked, "--out", "found.json", cwd=room).stdout
    found = json.loads((room / "found.json").read_text())
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == ["absmax", "std", "std + GPTQ", "pgolf", "pgolf, tuned"]
    cap = 6 * found["parameters"] / 8
    assert all(0.9 * cap < row["bytes"] <= cap for row in rows.values())
    assert all(row["kl"] > 0 for row in rows.values())
    assert rows["pgolf"]["share_kl"] == pytest.approx(rows["pgolf"]["kl"] / rows["std + GPTQ"]["kl"])
    weights = load_weights(room / "run")
    text = training_text(room / "run", weights.recipe, None, None)
    calibration = calibration_for(weights.model(), weights.recipe, text)
    assert calibration is not None
    with pytest.raises(PgolfError, match="ask for more bits"):
        quantizers._fit(weights, quantizers._targets("std", weights, calibration, 1.0), 100, "std")
