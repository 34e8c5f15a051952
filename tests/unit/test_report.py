"""Reports from what a run folder holds, complete or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgolf.recipe.recipe import load_recipe
from pgolf.report.draw import draw_curve, smoothed
from pgolf.report.job import write_report
from pgolf.report.markdown import markdown_page
from pgolf.report.run_report import run_report
from pgolf.runs.records import read_run

RECIPE = load_recipe("tiny")


def folder_with(tmp_path: Path, result: dict[str, object]) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE.to_toml())
    (tmp_path / "result.json").write_text(json.dumps(result))
    lines = [
        {"step": s, "train_loss": 6 / s, "lr_scale": 1.0, "tokens_per_second": 10.0} for s in range(1, 30)
    ]
    lines.append({"step": 29, "val_loss": 3.0, "val_bpb": 1.7})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    environment = dict.fromkeys(
        ("pgolf", "python", "torch", "numpy", "device_name", "platform", "cpu_cores"), "E"
    )
    made = {
        "command": ["pgolf", "run", "tiny", "--data", "my data"],
        "started": "2026-01-01",
        "environment": environment | {"code_sha256": "c" * 64},
        "data": {"folder": "D", "fingerprint": "f" * 64, "tokenizer_sha256": "t" * 64},
    }
    (tmp_path / "provenance.json").write_text(json.dumps(made))
    return tmp_path


def score(mode: str, bpb: float, **more: object) -> dict[str, object]:
    return {
        "mode": mode,
        "val_loss": 2.0,
        "val_bpb": bpb,
        "targets": 1234,
        "bytes": 5678,
        "seconds": 1.0,
        **more,
    }


def text_of(folder: Path) -> str:
    return markdown_page(run_report(read_run(folder)))


def test_a_complete_run(tmp_path: Path) -> None:
    pack = {
        "groups": {"mlp": {"tensors": 2, "entries": 99, "bytes": 77}},
        "model_bytes": 700,
        "code_bytes": 200,
    }
    pack |= {"total_bytes": 900, "cap": 1000}
    evaluations = {
        "float": score("standard", 1.91234),
        "packed": score("standard", 1.92),
        "sliding": score("sliding", 1.9),
        "ttt": score("ttt", 1.8, chunks=[2.0, 1.9, 1.8]),
    }
    folder = folder_with(
        tmp_path, {"evaluations": evaluations, "pack": pack, "train": {"steps": 29, "seconds": 3}}
    )
    text = write_report(folder).read_text()
    for words in (
        "1.9123",
        "| TTT BPB | 1.8000",
        "1,234 targets",
        "900 of 1,000 bytes (90.0 %)",
        "| 3 | 1.8000 |",
    ):
        assert words in text
    assert "**Artifact with scoring code: 900 of 1,000 bytes (90.0 %).**" in text
    assert "\npgolf run tiny --data 'my data'\n" in text
    assert "\npgolf run recipe.toml --data D --out again\n" in text
    assert "pgolf eval" not in text, "a score without a ledger cannot be verified"
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_only_trained(tmp_path: Path) -> None:
    text = text_of(folder_with(tmp_path, {"evaluations": {}}))
    assert "## Bytes" not in text
    assert "## Test-time training" not in text
    assert "pgolf eval" not in text


def test_scores_of_different_text_are_not_called_comparable(tmp_path: Path) -> None:
    evaluations = {"float": score("standard", 1.9), "sliding": score("sliding", 1.8) | {"targets": 99}}
    text = text_of(folder_with(tmp_path, {"evaluations": evaluations}))
    assert "do not compare: float 1,234, sliding 99" in text
    assert "the same 1,234 targets" not in text


def test_the_tokenizer_is_part_of_the_commands(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"evaluations": {}})
    made = json.loads((folder / "provenance.json").read_text())
    made["command"] += ["--tokenizer", "a b.model"]
    (folder / "provenance.json").write_text(json.dumps(made))
    assert "pgolf run recipe.toml --data D --tokenizer 'a b.model' --out again" in text_of(folder)


def test_the_smoothed_loss_does_not_lag() -> None:
    assert smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    falling = [10 - 0.01 * step for step in range(1000)]
    assert smoothed(falling)[300:700] == pytest.approx(falling[300:700], abs=1e-3)
    noisy = [5.0 + (-1) ** step for step in range(1000)]
    assert max(abs(value - 5.0) for value in smoothed(noisy)[100:900]) < 0.1
    assert smoothed([]) == []


def test_a_curve_of_nothing_is_a_picture_too(tmp_path: Path) -> None:
    draw_curve(tmp_path / "missing.jsonl", tmp_path / "curve.png", "nothing")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
