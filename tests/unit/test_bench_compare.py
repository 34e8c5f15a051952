"""Two measurements beside each other: a verdict only where the repeats carry it."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from pgolf.bench.compare import FASTER, SAME, SLOWER, UNKNOWN, compare_benches
from pgolf.errors import PgolfError
from tests.e2e.conftest import pgolf, pgolf_json
from tests.e2e.test_mistakes import fails

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def write(path: Path, times: list[float], **changed: Any) -> Path:
    found = {
        "bench": "train",
        "recipe": "tiny",
        "scope": "a step",
        "settings": {"model": {"width": 64}},
        "milliseconds": statistics.median(times),
        "milliseconds_repeats": times,
        "figure": 5.5,
        "environment": {"torch": "2.13.0", "device": "cpu"},
    }
    path.write_text(json.dumps(found | changed))
    return path


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ([50.0, 51.0, 52.0, 49.0, 50.5], FASTER),
        ([150.0, 151.0, 152.0, 149.0, 150.5], SLOWER),
        ([100.0, 104.0, 96.0, 101.0, 99.0], SAME),
        ([50.0, 52.0], FASTER),
        ([80.0, 101.0], SAME),
    ],
)
def test_verdicts(tmp_path: Path, times: list[float], verdict: str) -> None:
    first = write(tmp_path / "a.json", [98.0, 100.0, 102.0, 99.0, 101.0])
    found = compare_benches(first, write(tmp_path / "b.json", times))
    assert found.verdict == verdict
    assert found.interval is not None and found.interval[0] <= found.ratio <= found.interval[1]
    assert ("resampled" in found.method) == (len(times) == 5)


def test_other_environments_are_named_and_other_work_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", [100.0] * 5)
    other = write(tmp_path / "b.json", [90.0] * 5, environment={"torch": "2.12.0", "device": "cpu"})
    found = pgolf_json("bench", "compare", first, other)
    assert found["environment"] == {"torch": ["2.13.0", "2.12.0"]}
    shown = pgolf("bench", "compare", first, other).stdout
    assert "differs: torch" in shown and "faster" in shown
    for what, changed in {
        "scope": {"scope": "two steps"},
        "model.width: 64 and 32": {"settings": {"model": {"width": 32}}},
        "computed figure": {"figure": 7.0},
    }.items():
        line = fails("bench", "compare", first, write(tmp_path / "c.json", [90.0] * 5, **changed))
        assert "different work" in line and what in line
    assert "no measurement of speed" in fails("bench", "compare", first, BENCHMARKS / "fuzz_container.json")
    newer = write(tmp_path / "d.json", [90.0] * 5, settings={"model": {"width": 64, "fresh": 1}})
    assert compare_benches(first, newer).verdict == FASTER


def test_a_file_of_before_has_no_single_repeats(tmp_path: Path) -> None:
    found = json.loads((BENCHMARKS / "train_quickstart_cpu.json").read_text())
    file = tmp_path / "before.json"
    file.write_text(
        json.dumps({key: value for key, value in found.items() if "repeats" not in key or key == "repeats"})
    )
    assert compare_benches(file, file).verdict == UNKNOWN
    with pytest.raises(PgolfError, match="different work"):
        compare_benches(file, BENCHMARKS / "eval_quickstart_cpu.json")
