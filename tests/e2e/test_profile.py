"""`pgolf train --profile`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.conftest import pgolf, pgolf_json
from tests.e2e.test_launch import same_weights

TRAIN = ("train", "--recipe", "tiny.toml", "--data", "data", "--profile")


def test_a_trace_and_a_table_and_the_same_weights(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shown = pgolf(*TRAIN, "--out", run, cwd=workshop)
    assert (
        "slowest operations" in shown.stdout and "aten::mm" in shown.stdout and "GPU ms" not in shown.stdout
    )
    events = json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"].startswith("ProfilerStep") and event["ph"] == "X" for event in events) == 5
    assert "| `aten::mm` |" in (run / "profile" / "operations.md").read_text()
    assert same_weights(run, workshop / "run")


def test_shares_and_a_session_too_short(workshop: Path, tmp_path: Path) -> None:
    found = pgolf_json(*TRAIN, "--out", tmp_path / "run", cwd=workshop)["profile"]["operations"]
    assert 0 < sum(operation["cpu_share"] for operation in found) <= 1
    assert found == sorted(found, key=lambda operation: -operation["cpu_milliseconds"])
    assert all(operation["calls"] > 0 for operation in found)
    steps = ("--set", "train.steps=3", "--set", "train.warmdown_steps=1")
    done = pgolf(*TRAIN, *steps, "--out", tmp_path / "short", cwd=workshop)
    assert "nothing was profiled" in " ".join(done.stderr.split())
    assert not (workshop / "run" / "profile").exists()
