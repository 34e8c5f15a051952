"""Trackers have what metrics.jsonl has, even after an interruption; no package, no run."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pgolf.errors import PgolfError
from pgolf.recipe.recipe import load_recipe
from pgolf.train.metrics import Metrics, read_metrics
from pgolf.train.trackers import FOLDER, TAGS, EventFiles, Tracker, WandbRun, trackers


def recorded(folder: Path, from_step: int, steps: range, tracker: Tracker | None = None) -> None:
    """Train in make-believe: a step each, a validation after the last."""
    tracker = tracker or EventFiles(folder / FOLDER, from_step)
    metrics = Metrics(folder / "metrics.jsonl", from_step, 100, [tracker])
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


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The real package, which keeps everything in the run's folder."""
    wandb = pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield wandb
    wandb.teardown()


def kept(folder: Path) -> list[dict[str, Any]]:
    """The rows of the only offline run in a folder: its file has a header, then records behind 7 bytes."""
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    rows, last, deadline = list[dict[str, Any]](), None, time.monotonic() + 60
    while last != "exit":  # A process of W&B's own writes, and may still be at it after ``finish``.
        assert time.monotonic() < deadline
        time.sleep(0.05)
        content, place = path.read_bytes(), 7
        rows.clear()
        while len(content) >= (end := place + 7 + int.from_bytes(content[place + 4 : place + 6], "little")):
            record = records.Record.FromString(content[place + 7 : end])
            place, last = end, record.WhichOneof("record_type")
            found = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows += [found] if found else []
            if last == "exit":
                break
    return rows


def test_weights_and_biases_has_the_metrics_offline(tmp_path: Path, offline: Any) -> None:
    tracker = WandbRun(tmp_path, load_recipe("tiny"))
    recorded(tmp_path, 0, range(1, 5), tracker)
    begun = tracker._run
    assert begun.offline and (begun.project, begun.name) == ("pgolf", tmp_path.name)
    assert begun.config["train"]["steps"] == load_recipe("tiny").train.steps
    begun.finish()
    found = kept(tmp_path)
    for key, tag in TAGS.items():
        wanted = [
            (entry["step"], entry[key]) for entry in read_metrics(tmp_path / "metrics.jsonl") if key in entry
        ]
        assert [(row["_step"], row[tag]) for row in found if tag in row] == wanted
    assert begun.id == (tmp_path / "wandb" / "id").read_text()


def test_who_goes_on_with_a_run_goes_on_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []

    def init(**how: Any) -> Any:
        begun.append(how)
        return SimpleNamespace(log=lambda *_, **__: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict, Error=ValueError))
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        WandbRun(tmp_path / folder, load_recipe("tiny")).add([{"step": 1, "train_loss": 1.0}])
    first, second, other = (how["id"] for how in begun)
    assert first == second != other and all(how["resume"] == "allow" for how in begun)


def test_weights_and_biases_may_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusal(Exception):
        pass

    def init(**_: Any) -> None:
        raise Refusal("api_key not configured")

    stand_in = SimpleNamespace(Error=Refusal, init=init, Settings=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    with pytest.raises(PgolfError, match=r"train\.wandb: api_key not configured; run `wandb login`"):
        WandbRun(tmp_path, load_recipe("tiny")).add([{"step": 1, "train_loss": 1.0}])


@pytest.mark.parametrize(("package", "kind"), [("tensorboard", EventFiles), ("wandb", WandbRun)])
def test_only_on_request(tmp_path: Path, package: str, kind: type) -> None:
    assert trackers(load_recipe("tiny"), tmp_path, 0) == []
    asked = load_recipe("tiny", [f"train.{package}=true"])
    pytest.importorskip(package)
    assert [type(tracker) for tracker in trackers(asked, tmp_path, 0)] == [kind]
    # Nothing is written before there is something to write.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest)
    )
    with pytest.raises(PgolfError, match=rf"train\.{package}: .* not installed; install it"):
        trackers(load_recipe("tiny", [f"train.{package}=true"]), tmp_path, 0)


def test_recipes_made_before_have_the_same_digest() -> None:
    off = ["train.tensorboard=false", "train.wandb=false"]
    assert load_recipe("tiny", off).digest() == load_recipe("tiny").digest()
