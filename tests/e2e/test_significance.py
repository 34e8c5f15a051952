"""`pgolf significance`, as a user types it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from pgolf.recipe.recipe import load_recipe
from tests.e2e.conftest import pgolf, pgolf_json


def run_folder(place: Path, seed: int, loss: float, **changes: int) -> None:
    """What a finished run leaves that this command reads."""
    place.mkdir(parents=True)
    settings = [f"train.seed={seed}", *(f"model.{key}={value}" for key, value in changes.items())]
    (place / "recipe.toml").write_text(load_recipe("tiny", settings).to_toml())
    score = {"val_loss": loss, "val_bpb": loss / 2, "targets": 1000, "bytes": 2900}
    (place / "result.json").write_text(
        json.dumps({"evaluations": {"ttt": score, "float": {**score, "val_loss": 3.0}}})
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, noise in ((1, 0.0), (2, 0.0004), (3, 0.0009)):
        run_folder(tmp_path / f"old-{seed}", seed, 3.5 + noise)
        run_folder(tmp_path / f"new-{seed}", seed, 3.49 + 0.9 * noise, mlp_hidden=48)
    return tmp_path


NEW, OLD = ("new-1", "new-2", "new-3"), ("old-1", "old-2", "old-3")


def test_a_record(runs: Path) -> None:
    found = pgolf_json("significance", *NEW, "--against", *OLD, cwd=runs)
    assert found["record"]
    assert found["pairs"] == 3
    assert found["improvement"] == pytest.approx(0.01, abs=1e-4)
    text = pgolf("significance", *NEW, "--against", *OLD, cwd=runs).stdout
    assert "the claim holds" in text
    assert "paired" in text
    assert "-0.01004 nats per target (the claim: below -0.00500)" in text


def test_no_record_exits_with_one(runs: Path) -> None:
    done = pgolf("significance", *OLD, "--against", *NEW, cwd=runs, check=1)
    assert "the claim does not hold" in done.stdout
    assert pgolf("significance", *NEW, "--against", *OLD, "--margin", "0.02", cwd=runs, check=1)


def test_published_losses(runs: Path) -> None:
    published = (
        "1.87311066",
        "1.87298163",
        "1.87220704",
        "--against",
        "1.88276292",
        "1.88156874",
        "1.88220393",
    )
    found = pgolf_json("significance", *published)
    assert found["welch"]["p"] == pytest.approx(0.000353, abs=5e-7)
    assert found["paired"] is None
    assert pgolf_json("significance", *NEW, "--against", "3.6", "3.601", cwd=runs)["record"]


def test_mistakes(runs: Path) -> None:
    def mistake(*arguments: str) -> str:
        done = pgolf("significance", *arguments, cwd=runs, check=2)
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    assert "result.json is missing" in mistake("nowhere", "--against", *OLD)
    assert "is no loss" in mistake("0", "--against", *OLD)
    assert "mixes losses and run folders" in mistake("new-1", "3.4", "--against", *OLD)
    assert "more than the seed" in mistake("new-1", "old-2", "--against", "3.5")
    assert "choose one of raw" in mistake(*NEW, "--against", *OLD, "--evaluation", "best")
    assert "no sliding loss" in mistake(*NEW, "--against", *OLD, "--evaluation", "sliding")
    shutil.copytree(runs / "new-1", runs / "again")
    assert "has seed 1 like another run" in mistake("new-1", "again", "--against", *OLD)
    assert "is on both sides" in mistake("new-1", "--against", str(runs / "new-1"))
    assert "old-2: is on both sides" in mistake("old-1", "old-2", "--against", "old-2", "old-3")
    assert "--margin" in mistake(*NEW, "--against", *OLD, "--margin", "nan")
    run_folder(runs / "diverged", 9, math.nan)
    assert "diverged" in mistake(*NEW, "--against", "diverged")
    result = json.loads((runs / "old-1" / "result.json").read_text())
    result["evaluations"]["ttt"]["targets"] = 999
    (runs / "old-1" / "result.json").write_text(json.dumps(result))
    assert "different texts or tokens (targets: 1000 and 999)" in mistake(*NEW, "--against", *OLD)
    assert "different texts or tokens" in mistake(*NEW, "--against", "old-1")
