"""Each method of test-time training, as a user asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import pgolf, pgolf_json

EVAL = ("eval", "model.pgolf", "--data", "data", "--limit-targets", "600", "--mode")


@pytest.mark.parametrize("method", ["full", "lora", "lora_document", "phased"])
def test_methods_by_recipe(workshop: Path, method: str) -> None:
    chosen = ("--set", f"ttt.method={method}")
    sliding = pgolf_json(*EVAL, "sliding", cwd=workshop)
    result = pgolf_json(*EVAL, "ttt", *chosen, cwd=workshop)
    assert (result["targets"], result["bytes"]) == (sliding["targets"], sliding["bytes"])
    assert abs(result["val_bpb"] - sliding["val_bpb"]) > 1e-5
    assert result["chunks"][-1] == result["val_bpb"]
    still = ("--set", "ttt.lr=0", "--set", "ttt.lora.lr=0")
    frozen = pgolf_json(*EVAL, "ttt", *chosen, *still, cwd=workshop)
    assert frozen["val_bpb"] == pytest.approx(sliding["val_bpb"], abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "lora_document", "phased"])
def test_strict_mode_and_ledger(workshop: Path, tmp_path: Path, method: str) -> None:
    short = ("eval", "model.pgolf", "--data", "data", "--limit-targets", "200", "--mode", "ttt")
    chosen = ("--set", f"ttt.method={method}", "--set", "ttt.lora.chunk_tokens=24")
    ledger = tmp_path / "ledger.jsonl"
    block = pgolf_json(*short, *chosen, "--ledger", ledger, cwd=workshop)
    strict = pgolf_json(*short, *chosen, "--strict", cwd=workshop)
    assert strict["val_bpb"] == pytest.approx(block["val_bpb"], abs=1e-5)
    pgolf("verify-ledger", ledger, "--data", "data", "--artifact", "model.pgolf", cwd=workshop)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ttt.rank=4", "unknown key ttt.rank (did you mean ttt.lora.rank?)"),
        ("ttt.method=loRA", "ttt.method: input should be 'full', 'lora', 'lora_document' or 'phased'"),
        ("ttt.lora.rank=33", "ttt.lora.rank 33 exceeds 32, the smaller side of the query matrices"),
        ("ttt.frozen_blocks=2", "ttt.frozen_blocks 2 freezes all 2 blocks"),
    ],
)
def test_mistakes_are_a_line_each(workshop: Path, setting: str, message: str) -> None:
    method = () if "method" in setting else ("--set", "ttt.method=lora")
    done = pgolf(*EVAL, "ttt", *method, "--set", setting, cwd=workshop, check=2)
    first, *others = done.stderr.splitlines()
    assert message in done.stderr and first.startswith("pgolf: error: ")
    assert all(line.startswith("  ttt.") for line in others), "a line for each problem"
