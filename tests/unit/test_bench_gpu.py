"""The GPU's benchmark runs to its end, whatever its parts do, and can be rehearsed without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pgolf.bench import gpu
from pgolf.bench.gpu_parts import PARTS, Ask, Part, Row

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name", ("environment", "curves", "sliding", "ttt", "train-eager", "memory", "packing")
)
def test_a_part_measures_on_tiny_shapes(name: str) -> None:
    rows = list(PARTS[name].work(Ask(CPU)))
    assert all(row["says"] for row in rows)
    json.dumps(rows)
    found = {key: row[key] for row in rows for key in row}
    if name == "curves":
        assert found["largest"] < 1e-3
    if name in ("sliding", "ttt"):
        assert found["apart"] < 1e-4 and found["targets_per_second"] > 0
    if name == "train-eager":
        assert found["tokens_per_second"] > 0 and found["recompilations"] == 0 and found["operations"]


def test_what_is_compiled_once_before_measures_nothing() -> None:
    rows = list(PARTS["train-eager"].work(Ask(CPU, prime=True)))
    assert [set(row) for row in rows] == [{"says", "first_seconds", "graphs"}]


def _never(ask: Ask) -> Iterator[Row]:
    raise AssertionError("a part runs in its own process")


def test_parts_that_fail_or_hang_cost_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "fails": Part(_never, needs_cuda=False),
        "hangs": Part(_never, limit=1, needs_cuda=False, alone=False),
        "device": Part(_never),
        "works": Part(_never, needs_cuda=False),
    }
    # The processes of the parts are copies of a small program: one that imports torch takes seconds.
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, time\n"
        "name, out = sys.argv[4], sys.argv[8]\n"
        "says = {'fails': 'half of it', 'hangs': 'begins', 'works': 'done'}[name]\n"
        'open(out, \'w\').write(\'{"says": "%s", "graphs": 2}\\n\' % says)\n'
        "time.sleep(60 if name == 'hangs' else 0)\n"
        "sys.exit('the other half broke' if name == 'fails' else 0)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    report = gpu.run_parts(parts, CPU, 30, tmp_path / "gpu.json")
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    states = {name: found["state"] for name, found in report["parts"].items()}
    assert states == {"device": "needs CUDA", "hangs": "stopped after 1 s", "fails": "failed", "works": "ok"}
    assert report["parts"]["fails"]["error"] == ["the other half broke"]
    assert report["parts"]["hangs"]["rows"][0]["says"] == "begins"
    assert "works: 2 graphs; TORCH_LOGS=graph_breaks says why" in report["advice"]
    console = Console(width=120)
    with console.capture() as printed:
        gpu.show(report, console)
    text = printed.get()
    assert "half of it" in text and "the other half broke" in text and "needs CUDA" in text


def test_a_budget_that_is_used_up_is_said(tmp_path: Path) -> None:
    report = gpu.run_parts({"works": Part(_never, needs_cuda=False)}, CPU, -1, tmp_path / "gpu.json")
    assert report["parts"]["works"]["state"] == "no time left"


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--only", "sliding,slide", "--device", "cpu"])
    assert "no such part: slide" in capsys.readouterr().err
