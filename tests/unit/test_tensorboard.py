"""Event files hold what metrics.jsonl holds, even after an interruption; no package, no run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from pgolf.errors import PgolfError
from pgolf.recipe.recipe import load_recipe
from pgolf.train.metrics import Metrics, read_metrics
from pgolf.train.tensorboard import FOLDER, TAGS, EventFiles, event_files


def recorded(folder: Path, from_step: int, steps: range) -> None:
    """Train in make-believe: a step each, a validation after the last."""
    events = EventFiles(folder / FOLDER, from_step)
    metrics = Metrics(folder / "metrics.jsonl", from_step, 100, events)
    for step in steps:
        metrics.step(step, torch.tensor(6.0 / step), 1.0 / step)
    metrics.validation(steps[-1], 3.0 + steps[-1], 2.0)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself shows."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder / FOLDER), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def test_event_files_hold_the_metrics(tmp_path: Path) -> None:
    recorded(tmp_path, 0, range(1, 5))
    found = read(tmp_path)
    assert set(found) == set(TAGS.values())
    for key, tag in TAGS.items():
        wanted = [
            (entry["step"], entry[key]) for entry in read_metrics(tmp_path / "metrics.jsonl") if key in entry
        ]
        assert [step for step, _ in found[tag]] == [step for step, _ in wanted]
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in wanted])


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    recorded(tmp_path, 0, range(1, 7))
    # It was interrupted after step 6, the last checkpoint is of step 4.
    recorded(tmp_path, 4, range(5, 9))
    found = read(tmp_path)
    assert [step for step, _ in found["training/loss"]] == list(range(1, 9))
    assert found["training/loss"][4] == (5, pytest.approx(6 / 5))
    assert [step for step, _ in found["validation/loss"]] == [8]


def test_only_on_request(tmp_path: Path) -> None:
    assert event_files(load_recipe("tiny"), tmp_path, 0) is None
    asked = load_recipe("tiny", ["train.tensorboard=true"])
    pytest.importorskip("tensorboard")
    assert event_files(asked, tmp_path, 0) is not None
    # Nothing is written before there is something to write.
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else real(name, *rest)
    )
    with pytest.raises(PgolfError, match=r"train\.tensorboard: .* not installed; install it"):
        event_files(load_recipe("tiny", ["train.tensorboard=true"]), tmp_path, 0)


def test_recipes_made_before_have_the_same_digest() -> None:
    assert load_recipe("tiny", ["train.tensorboard=false"]).digest() == load_recipe("tiny").digest()
