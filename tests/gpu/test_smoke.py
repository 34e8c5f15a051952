"""The same code on a CUDA device: bf16 autocast, compiled, trained, packed and scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import RECIPE, pgolf, sentences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_whole_job_on_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(sentences(300)))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    options = ("--split", "blank-lines", "--val-fraction", "0.1", "--vocab-size", "320")
    pgolf("data", "prepare", "--text", "text.txt", *options, "--out", "data", cwd=tmp_path)
    for device in ("cuda", "cpu"):
        pgolf("run", "tiny.toml", "--data", "data", "--out", device, "--device", device, cwd=tmp_path)
    scores = {
        device: json.loads((tmp_path / device / "result.json").read_text())["evaluations"]
        for device in ("cuda", "cpu")
    }
    for name, on_cpu in scores["cpu"].items():
        assert scores["cuda"][name]["val_bpb"] == pytest.approx(on_cpu["val_bpb"], rel=0.03), name
