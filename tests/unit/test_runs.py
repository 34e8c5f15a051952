"""Run folders: found and read whatever their state; conditions, sorting, differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pgolf.errors import PgolfError
from pgolf.recipe.recipe import load_recipe
from pgolf.runs.records import FIELDS, RunRecord, diff_runs, find_runs, parse_condition, read_run, select


def run_folder(
    folder: Path,
    *settings: str,
    steps: int = 4,
    trained: bool = True,
    ttt: float | None = None,
    packed: bool = False,
    more: dict[str, Any] | None = None,
) -> RunRecord:
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(load_recipe("tiny", list(settings)).to_toml())
    environment = {"pgolf": "0.1.0", "code_sha256": "c" * 64, "torch": "2.13.0"} | (more or {})
    data = {"folder": "D", "fingerprint": "f" * 64, "tokenizer_sha256": "t" * 64}
    made = {"started": "2026-01-02T03:04:05+00:00", "command": [], "environment": environment, "data": data}
    (folder / "provenance.json").write_text(json.dumps(made))
    lines = [
        {"step": s, "train_loss": 6 / s, "lr_scale": 1.0, "tokens_per_second": 10.0 * s}
        for s in range(1, steps + 1)
    ]
    lines.append({"step": steps, "val_loss": 3.0, "val_bpb": 2.0 + steps / 100})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result: dict[str, Any] = {"evaluations": {}}
    if trained:
        (folder / "model.safetensors").write_bytes(b"")
        result["train"] = {"steps": steps, "seconds": 2.0}
    if packed or ttt:
        result["pack"] = {"total_bytes": 900, "model_bytes": 700, "cap": 1000, "seconds": 1.0}
    if ttt:
        names = ("float", "packed", "sliding", "ttt")
        score = {"val_loss": 1.0, "targets": 10, "bytes": 20, "seconds": 1.0}
        result["evaluations"] = {
            name: score | {"val_bpb": ttt + 0.1 * (3 - i)} for i, name in enumerate(names)
        }
    if trained:
        (folder / "result.json").write_text(json.dumps(result))
    return read_run(folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunRecord]:
    run_folder(tmp_path / "a", "train.seed=10", ttt=1.75)
    run_folder(tmp_path / "deep" / "b", "train.seed=9", "model.mlp=relu2", ttt=1.85, steps=6)
    run_folder(tmp_path / "c", trained=False)
    run_folder(tmp_path / "d", packed=True)
    run_folder(tmp_path / "e")
    (tmp_path / "not a run").mkdir()
    (tmp_path / ".hidden").mkdir()
    return find_runs(tmp_path)[0]


def test_runs_are_found_at_any_depth_with_their_state(runs: list[RunRecord]) -> None:
    wanted = [("a", "finished"), ("c", "training"), ("d", "packed"), ("b", "finished"), ("e", "trained")]
    assert [(run.name, run.state) for run in runs] == wanted
    first = runs[0].to_json()
    assert set(first) == {"folder", *FIELDS}
    assert (first["recipe"], first["steps"], first["ttt"], first["bytes"]) == ("tiny", 4, 1.75, 900)
    # Before it is scored, the raw weights' score is their last validation.
    assert next(run for run in runs if run.name == "c").score("raw") == 2.04
    assert next(run for run in runs if run.name == "c").score("ttt") is None


def names(runs: list[RunRecord], *conditions: str, sort: str | None = "name") -> list[str]:
    return [run.name for run in select(runs, [parse_condition(text) for text in conditions], sort)]


def test_conditions(runs: list[RunRecord]) -> None:
    assert names(runs, "ttt<1.8") == ["a"]
    assert names(runs, "ttt>=1.75") == ["a", "b"]
    assert names(runs, "state=finished", "train.seed != 10") == ["b"]
    assert names(runs, "train.seed<10") == ["b"]
    assert names(runs, "train.seed=9.0") == ["b"]
    assert names(runs, "recipe=t*y", "state!=finished") == ["c", "d", "e"]
    assert names(runs, "model.mlp=relu2") == ["b"]
    assert names(runs, "train.compile=true", "steps=6") == ["b"]
    assert names(runs, "date>=2026-01-03") == []
    assert names(runs, "date<2026-01-03", "name=a") == ["a"]


def test_sorting_puts_the_unknown_last(runs: list[RunRecord]) -> None:
    assert names(runs, sort="ttt")[:2] == ["a", "b"]
    assert names(runs, sort="-ttt")[:2] == ["b", "a"]
    # Numbers are sorted as numbers: 9 before 10 before the default.
    assert names(runs, sort="train.seed")[:2] == ["b", "a"]
    assert names(runs, sort="-steps")[0] == "b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ttt", "write it as KEY=VALUE"),
        ("tt<1", "did you mean ttt"),
        ("=1", "write it as"),
        ("train.sed=1", "train.seed"),
    ],
)
def test_wrong_conditions(text: str, words: str) -> None:
    with pytest.raises(PgolfError, match=words):
        parse_condition(text)


def test_wrong_sort_key(runs: list[RunRecord]) -> None:
    with pytest.raises(PgolfError, match="--sort bpb"):
        select(runs, [], "bpb")


def test_a_recipe_of_another_version_is_shown_as_it_stands(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "a")
    path = run.folder / "recipe.toml"
    path.write_text(path.read_text().replace("[train]\n", "[train]\nfrom_the_future = 3\n"))
    later = read_run(run.folder)
    assert later.recipe["train.from_the_future"] == 3
    assert later.field("model.layers") == 2


def test_lines_that_are_no_metrics_are_left_out(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "a")
    path = run.folder / "metrics.jsonl"
    odd = ["5", "{}", '{"step": null}', '{"step": "x"}', '{"step": 1, "train_loss": []}', '{"step": NaN}']
    path.write_text("\n".join([*odd, path.read_text(), "[" * 100_000]))
    assert read_run(run.folder).metrics == run.metrics


def test_damaged_runs_are_named_and_do_not_hide_others(tmp_path: Path) -> None:
    run_folder(tmp_path / "a")
    run_folder(tmp_path / "b")
    (tmp_path / "b" / "result.json").write_text('{"evaluations": {"ttt": {"val_bpb": "low"}}}')
    run_folder(tmp_path / "c")
    (tmp_path / "c" / "recipe.toml").write_text("no toml [")
    run_folder(tmp_path / "d")
    (tmp_path / "d" / "provenance.json").write_text('{"data": 5}')
    found, problems = find_runs(tmp_path)
    assert [run.name for run in found] == ["a"]
    assert "result.json: damaged (evaluations.ttt.val_bpb)" in problems[0]
    assert "recipe.toml: damaged" in problems[1]
    assert "provenance.json: damaged (data)" in problems[2]
    for folder, words in ((tmp_path / "none", "no such run"), (tmp_path, "holds no run")):
        with pytest.raises(PgolfError, match=words):
            read_run(folder)
    with pytest.raises(PgolfError, match="no such folder"):
        find_runs(tmp_path / "none")


def test_a_difference_of_two_runs(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", ttt=1.75)
    b = run_folder(tmp_path / "b", "train.seed=9", ttt=1.70, steps=6, more={"torch": "2.14.0", "new": 1})
    found = diff_runs(a, b)
    assert [(entry.key, entry.a, entry.b) for entry in found.recipe] == [("train.seed", 1337, 9)]
    assert [(entry.key, entry.a, entry.b) for entry in found.code] == [
        ("torch", "2.13.0", "2.14.0"),
        ("new", None, 1),
    ]
    assert found.data == []
    metrics = {metric.key: metric for metric in found.metrics}
    assert metrics["TTT BPB"].change == pytest.approx(-0.05)
    assert metrics["training loss at step 4"].change == 0
    assert metrics["tokens per second (median)"].a == 30.0
    assert "raw float BPB" not in metrics
    assert found.notes == []
    assert diff_runs(a, a).notes == ["A and B are the same run"]
    assert json.loads(json.dumps(found.to_json()))["metrics"][0] == {
        "key": "steps",
        "a": 4,
        "b": 6,
        "change": 2,
    }


def test_unfinished_runs_and_other_texts_are_noted(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", trained=False), run_folder(tmp_path / "b", ttt=1.8)
    found = diff_runs(a, b)
    metrics = {metric.key: metric for metric in found.metrics}
    assert (metrics["TTT BPB"].a, metrics["TTT BPB"].change) == (None, None)
    assert len(found.notes) == 1
    assert "training, 4 steps so far" in found.notes[0]
    c = run_folder(tmp_path / "c", ttt=1.8)
    result = json.loads((c.folder / "result.json").read_text())
    result["evaluations"]["ttt"]["targets"] = 11
    (c.folder / "result.json").write_text(json.dumps(result))
    assert "the ttt scores do not compare: 10 targets" in diff_runs(b, read_run(c.folder)).notes[0]
