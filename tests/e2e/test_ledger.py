"""`pgolf eval --ledger` and `pgolf verify-ledger` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import pgolf, pgolf_json
from tests.e2e.test_mistakes import fails

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("mode", ["standard", "sliding", "ttt"])
def test_the_score_is_in_the_ledger(workshop: Path, tmp_path: Path, mode: str) -> None:
    file = tmp_path / "ledger.jsonl"
    result = pgolf_json(
        "eval", "model.pgolf", "--data", "data", "--mode", mode, "--ledger", file, cwd=workshop
    )
    assert result["ledger"] == str(file)
    verify = ("verify-ledger", file, "--data", "data", "--artifact", "model.pgolf")
    found = pgolf_json(*verify, cwd=workshop)
    assert found["valid"] and found["problem"] is None
    assert found["val_bpb"] == result["val_bpb"]
    assert {"chain", "coverage and order", "text", "bytes", "artifact", "tokenizer"} <= set(found["checks"])
    shown = pgolf(*verify, cwd=workshop)
    assert "valid" in shown.stdout and f"{result['val_bpb']:.4f} bits per byte" in shown.stdout


def test_strict_evaluation_gives_the_same_score(workshop: Path, tmp_path: Path) -> None:
    scores = []
    for strict in ([], ["--strict"]):
        file = tmp_path / f"{len(strict)}.jsonl"
        command = (
            "eval",
            "model.pgolf",
            "--data",
            "data",
            "--mode",
            "ttt",
            "--limit-targets",
            "400",
            "--ledger",
            file,
        )
        scores.append(pgolf_json(*command, *strict, cwd=workshop)["val_bpb"])
        entries = len(file.read_text().splitlines()) - 2
        assert (entries == 400) == bool(strict)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_what_is_wrong_is_named_with_status_1(workshop: Path, tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    evaluate = ("eval", "model.pgolf", "--data", "data", "--mode", "standard", "--set", "evaluate.batch=1")
    pgolf(*evaluate, "--ledger", file, cwd=workshop)
    lines = file.read_text().splitlines()
    entry = json.loads(lines[3])
    lines[3] = json.dumps(entry | {"nats": entry["nats"] / 2})
    file.write_text("\n".join(lines) + "\n")
    done = pgolf("verify-ledger", file, cwd=workshop, check=1)
    assert "not valid" in done.stdout
    assert f"line 4: the entry of targets {entry['first']} on" in " ".join(done.stdout.split())
    assert pgolf("verify-ledger", file, "--json", cwd=workshop, check=1).stdout.startswith('{"valid": false')
    # The run's float weights are not what was scored.
    pgolf(*evaluate, "--ledger", file, cwd=workshop)
    done = pgolf("verify-ledger", file, "--artifact", "run", cwd=workshop, check=1)
    assert "another artifact" in done.stdout


def test_a_run_keeps_a_ledger_of_every_score(workshop: Path, tmp_path: Path) -> None:
    result = pgolf_json(
        *("run", workshop / "tiny.toml", "--data", workshop / "data", "--out", "r", "--no-audit"),
        cwd=tmp_path,
    )
    for name, source in (
        ("float", "model.safetensors"),
        ("packed", "artifact.pgolf"),
        ("ttt", "artifact.pgolf"),
    ):
        ledger = tmp_path / "r" / f"ledger.{name}.jsonl"
        found = pgolf_json(
            "verify-ledger",
            ledger,
            "--data",
            workshop / "data",
            "--artifact",
            tmp_path / "r" / source,
            cwd=tmp_path,
        )
        assert found["val_bpb"] == result["evaluations"][name]["val_bpb"]


def test_mistakes_are_one_line(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    evaluate = ("eval", "model.pgolf", "--data", "data", "--mode", "ttt")
    assert "folder" in fails(*evaluate, "--ledger", tmp_path / "folder", cwd=workshop)
    assert "missing.jsonl" in fails("verify-ledger", "missing.jsonl", cwd=workshop)
    assert "not a ledger" in fails("verify-ledger", "train.txt", cwd=workshop)
    file = tmp_path / "ledger.jsonl"
    pgolf(*evaluate, "--ledger", file, "--limit-targets", "40", cwd=workshop)
    assert "no such file" in fails("verify-ledger", file, "--artifact", "missing.pgolf", cwd=workshop)
    assert "missing" in fails("verify-ledger", file, "--data", "missing", cwd=workshop)
