"""`pgolf report`, `pgolf runs`, `pgolf diff` and event files, as a user types them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest

from pgolf.report.content import LineChart, Series, Table
from pgolf.runtime.run_files import recorded_data
from pgolf.study.analysis import Analysis
from pgolf.study.cells import Cell
from tests.e2e.conftest import pgolf, pgolf_json


@pytest.fixture(scope="module")
def shelf(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: the trained one, and a shorter one of another seed with event files."""
    folder = tmp_path_factory.mktemp("shelf")
    shutil.copytree(workshop / "run", folder / "runs" / "first")
    settings = ("--set", "train.steps=5", "--set", "train.seed=4", "--set", "train.tensorboard=true")
    out = folder / "runs" / "deeper" / "second"
    data = recorded_data(workshop / "run")
    pgolf("train", "--recipe", "tiny.toml", *settings, "--data", data, "--out", out, cwd=workshop)
    return folder


def test_a_report_of_a_run(shelf: Path) -> None:
    made = pgolf_json("report", "runs/first", "-o", "report.html", cwd=shelf)
    page = (shelf / "report.html").read_text(encoding="utf-8")
    assert made == {"report": "report.html", "of": "run", "format": "html", "bytes": len(page.encode())}
    assert "evaluation of the averaged weights" in page
    assert "What the model writes" in page
    assert "document 40" in page or "40 documents" in page
    shown = pgolf("report", "runs/first", "-o", "report.md", "--no-score", cwd=shelf).stdout
    assert "report.md" in shown
    assert (shelf / "report.md").read_text(encoding="utf-8").startswith("# tiny\n")


def test_a_report_needs_a_run_its_data_and_a_place(shelf: Path, workshop: Path) -> None:
    for arguments, words in (
        (("nothing", "-o", "x.html"), "nothing: no such run folder"),
        (("runs", "-o", "x.html"), "runs: holds no run"),
        (("runs/first", "-o", "runs"), "runs: is a folder"),
        (("runs/first", "-o", "x.html", "--format", "pdf"), "use html or md"),
        (("runs/first", "-o", "x.html", "--data", "gone"), "pass --data DIR, or --no-score"),
        (("runs/first", "-o", "x.pdf"), "say which by --format"),
    ):
        assert words in pgolf("report", *arguments, cwd=shelf, check=2).stderr
    assert not (shelf / "x.html").exists()


def test_runs_are_listed_and_filtered(shelf: Path) -> None:
    table = pgolf("runs", cwd=shelf).stdout
    assert "2 runs in runs" in table
    assert "runs/deeper/second" in table
    found = pgolf_json("runs", "runs", "--where", "recipe=tiny", "--where", "train.seed=4", cwd=shelf)
    assert [(run["name"], run["steps"], run["state"]) for run in found] == [("second", 5, "trained")]
    assert [run["name"] for run in pgolf_json("runs", "--sort", "-steps", cwd=shelf)] == ["first", "second"]
    assert "train.seed" in pgolf("runs", "--where", "train.seed>1", cwd=shelf).stdout
    assert "did you mean ttt?" in pgolf("runs", "--where", "ttl<2", cwd=shelf, check=2).stderr
    assert "no such folder" in pgolf("runs", "nowhere", cwd=shelf, check=2).stderr


def test_two_runs_are_compared(shelf: Path) -> None:
    found = pgolf_json("diff", "runs/first", "runs/deeper/second", cwd=shelf)
    assert {entry["key"]: (entry["a"], entry["b"]) for entry in found["recipe"]} == {
        "train.steps": (12, 5),
        "train.seed": (1337, 4),
        "train.tensorboard": (False, True),
    }
    assert found["data"] == []
    table = pgolf("diff", "runs/first", "runs/deeper/second", cwd=shelf).stdout
    for words in (
        "train.seed",
        "code and machine: the same",
        "training loss at step 5",
        "note: runs/deeper/second: trained",
    ):
        assert words in table
    assert "holds no run" in pgolf("diff", "runs/first", "runs", cwd=shelf, check=2).stderr


def test_training_writes_event_files(shelf: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = shelf / "runs" / "deeper" / "second"
    found = reader.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], pytest.approx(line["train_loss"])) for line in lines if "train_loss" in line]
    assert [(event.step, event.value) for event in found.Scalars("training/loss")] == losses
    assert not (shelf / "runs" / "first" / "tensorboard").exists()


def test_a_report_of_a_study(shelf: Path) -> None:
    for place, (name, seed, status) in enumerate(
        (("a", 1, "finished"), ("b", 2, "failed"), ("c", 3, "waiting"))
    ):
        folder = shelf / "study" / "cells" / name
        folder.mkdir(parents=True)
        about = {
            "place": place,
            "changes": {"model.layers": 2},
            "seed": seed,
            "status": status,
            "error": None,
        }
        if status == "failed":
            about["error"] = "the <loss> became nan"
        (folder / "cell.json").write_text(json.dumps(about))
    asked = 'title = "How deep?"\nquestion = "Are two layers enough?"\n'
    (shelf / "study" / "study.toml").write_text(asked)
    sums = {"val_loss": 1.0, "targets": 100, "bytes": 300}
    scores = {name: {"val_bpb": bpb, **sums} for name, bpb in (("float", 2.0), ("packed", 2.1), ("ttt", 1.9))}
    result = {"evaluations": scores, "pack": {"total_bytes": 900, "model_bytes": 800, "cap": 1000}}
    (shelf / "study" / "cells" / "a" / "result.json").write_text(json.dumps(result))
    shutil.copy(shelf / "runs" / "first" / "metrics.jsonl", shelf / "study" / "cells" / "a")

    def analyse(cells: Sequence[Cell], title: str) -> Analysis:
        table = Table("Means", ("cell", "BPB"), [(cell.name, 1.5) for cell in cells])
        points = [(1.0, 2.0), (2.0, 1.9)]
        band = [(x, y - 0.1, y + 0.1) for x, y in points]
        curve = LineChart("Fit", "steps", "BPB", [Series("fit", points)], band)
        return Analysis(title, ["Layers are worth 0.1."], [table], [curve])

    with mock.patch("pgolf.study.analysis.analyse", analyse):
        for name in ("study.html", "study.md"):
            made = pgolf_json("report", "study", "-o", name, cwd=shelf)
            assert made["of"] == "study"
    page, text = ((shelf / name).read_text(encoding="utf-8") for name in ("study.html", "study.md"))
    assert text.startswith("# How deep?\n\nAre two layers enough?\n\n* finished:")
    assert "<h1>How deep?</h1>" in page and "Every difference is new minus old" in page
    for words in ("Layers are worth 0.1.", "model.layers=2", "Means", "1.9000"):
        assert words in page
        assert words in text
    assert "the &lt;loss&gt; became nan" in page
    assert "opacity: 0.16" in page, "the band"
    assert "1 of 3" in page
