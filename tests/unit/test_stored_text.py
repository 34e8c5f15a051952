"""The memory's part of an artifact: what it holds, how it is chosen, and what a run does with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgolf.compress.code_size import code_bytes, scorer_modules
from pgolf.compress.container import encode_artifact, read_artifact
from pgolf.compress.inspect import inspect_artifact
from pgolf.compress.weights import Weights, load_weights, save_weights
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.data.prepare import prepare
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluate import EvalResult
from pgolf.evaluate.ledger import read_header, verify_ledger
from pgolf.memory.memory import encode_tokens
from pgolf.memory.stored import read_section, read_start
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.report.content import Waterfall
from pgolf.report.histogram import summary_rows
from pgolf.report.run_report import run_report
from pgolf.runs.pipeline import eval_job, evaluate_weights, pack_job, run_all
from pgolf.runs.records import read_run
from pgolf.runs.stored_text import memory_part
from tests.unit.run_stand_in import CPU, SETTINGS
from tests.unit.stand_ins import small_model

VOCABULARY = 400
ROOM = 14_000
CAP = code_bytes(memory=True) + ROOM
MEMORY = [
    *("memory.enabled=true", "memory.stored=train", "memory.order=3", "memory.experts=[]"),
    *("memory.max_bytes=64000000", f"compress.cap={CAP}", "compress.scheme=budget"),
    *("compress.calibration_tokens=64", "compress.codec=range", "compress.level=1"),
]


def made_recipe(*overrides: str) -> Recipe:
    return load_recipe("seed_456", [*SETTINGS, *MEMORY, f"model.vocab_size={VOCABULARY}", *overrides])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Documents of words that follow each other in some order, but not always the same."""
    folder, generator = tmp_path_factory.mktemp("stored"), np.random.default_rng(1)
    words = ["".join(generator.choice(list("abcdefgh"), generator.integers(2, 7))) for _ in range(80)]
    for name, count in (("train", 300), ("val", 12)):
        texts = []
        for _ in range(count):
            place, text = 0, []
            for _ in range(25):
                place = (3 * place + int(generator.integers(12))) % len(words)
                text.append(words[place])
            texts.append(json.dumps({"text": " ".join(text)}))
        (folder / f"{name}.jsonl").write_text("\n".join(texts))
    made, val_text = folder / "data", [folder / "val.jsonl"]
    prepare([folder / "train.jsonl"], made, val_text=val_text, vocab_size=VOCABULARY, workers=1)
    return open_dataset(made)


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run_all(made_recipe("memory.stored_bytes=2000"), dataset.folder, None, out, CPU)
    return out


def training_tokens(dataset: Dataset) -> np.ndarray:
    stream = dataset.train_stream()
    return stream.take(0, stream.total)


def part(dataset: Dataset, recipe: Recipe, best: float | None = None) -> Any:
    """What is made for random weights; they are not packed, or that fails beside more than ``best`` bytes."""
    weights = small_model(recipe, seed=1).state_dict()

    def packed(taken: int) -> dict[str, Any]:
        if best is not None and taken > best:
            raise PgolfError("does not fit")
        return weights

    return memory_part(recipe, dataset, weights, packed, ROOM, lambda *_: None)


def test_the_text_is_whole_documents_of_the_training_text_and_fills_its_bytes(dataset: Dataset) -> None:
    recipe = made_recipe("memory.stored_bytes=2000")
    content, about = part(dataset, recipe)
    start = read_start(recipe.memory, content, VOCABULARY, "here")
    text = training_tokens(dataset)
    size = len(encode_tokens(recipe.memory, replace(start, stored=start.stored[:0]), start.stored))
    assert 1900 < size <= 2000
    assert np.array_equal(start.stored, text[: len(start.stored)])
    assert text[len(start.stored)] == dataset.tokenizer.bos_id
    assert about["tokens"] == len(start.stored)
    assert about["bytes"] == len(content)
    assert about["trust"] == pytest.approx(start.trust)


def test_all_text_is_stored_where_there_is_room(dataset: Dataset) -> None:
    content, _ = part(dataset, recipe := made_recipe("memory.stored_bytes=6000"))
    start = read_start(recipe.memory, content, VOCABULARY, "here")
    assert np.array_equal(start.stored, training_tokens(dataset))


def test_the_split_is_the_one_that_costs_least_on_held_out_training_text(dataset: Dataset) -> None:
    recipe = made_recipe()
    content, about = part(dataset, recipe)
    splits = about["split"]
    # The weights are random, so all text is better than less.
    assert [size for size, *_ in splits] == sorted(size for size, *_ in splits)
    assert len(splits) > 3
    assert splits[0][:2] == [0, 0]
    assert about["tokens"] == min(splits, key=lambda split: split[2])[1] == len(training_tokens(dataset))
    assert about["held_out"]["tokens"] < len(training_tokens(dataset)) / 3
    # Where the weights cannot be packed beside much text, there is less of it.
    _, less = part(dataset, recipe, best=7000)
    assert 0 < less["tokens"] < about["tokens"]
    assert read_section(content, VOCABULARY, "here").tokens == about["tokens"]


@pytest.mark.parametrize("stored", ["counts", "both"])
def test_counts_fill_their_bytes_and_text_what_they_leave(dataset: Dataset, stored: str) -> None:
    recipe = made_recipe("memory.stored_bytes=1800", f"memory.stored={stored}")
    content, about = part(dataset, recipe)
    found = read_section(content, VOCABULARY, "here")
    assert 1600 < len(found.coded_ngrams) + len(found.coded) <= 1800 + 8
    assert about["ngrams"] == found.ngrams[0] - VOCABULARY > 100
    assert about["tokens"] == found.tokens
    assert (found.tokens > 0) == (stored == "both")
    best = min(about["split"], key=lambda split: split[2])
    assert best[3] == len(found.coded_ngrams)
    assert (len(about["split"]) > 1) == (stored == "both")
    assert len(read_start(recipe.memory, content, VOCABULARY, "here").ngrams) == found.ngrams[0]


def test_a_run_with_counts_and_text_stays_under_its_cap(dataset: Dataset, tmp_path: Path) -> None:
    run_all(
        made_recipe("memory.stored=both", "memory.stored_bytes=1800"),
        dataset.folder,
        None,
        tmp_path / "run",
        CPU,
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    scores = {name: entry["val_bpb"] for name, entry in result["evaluations"].items()}
    assert scores["memory"] < scores["ttt"] - 0.3
    assert result["pack"]["total_bytes"] <= CAP
    info = inspect_artifact(tmp_path / "run" / "artifact.pgolf")
    assert info.stored_ngrams == info.artifact.origin["memory"]["ngrams"] > 100
    assert f"{info.stored_ngrams:,} n-grams, " in dict(summary_rows(info))["section memory"]


def test_validation_text_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    other = replace(dataset, val_shards=[], val_byte_files=[])
    recipe = made_recipe("memory.stored_bytes=800")
    assert part(dataset, recipe) == part(other, recipe)


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (20_000, "has only 10,000 bytes for text and weights; lower it or raise the cap"),
        (5, "no document of the training text fits; raise it"),
    ],
)
def test_no_room_for_any_text_is_a_mistake(dataset: Dataset, stored: int, problem: str) -> None:
    with pytest.raises(PgolfError, match=rf"memory\.stored_bytes {stored:,}: .*{problem}"):
        part(dataset, made_recipe(f"memory.stored_bytes={stored}"))


def test_an_artifact_keeps_the_section_and_notices_damage(run: Path, tmp_path: Path) -> None:
    whole = (run / "artifact.pgolf").read_bytes()
    artifact = read_artifact(run / "artifact.pgolf")
    assert whole.endswith(artifact.memory)
    assert len(artifact.memory) > 1900
    given = artifact.stored, artifact.recipe, artifact.tokenizer_digest, artifact.coder, 1, artifact.origin
    assert encode_artifact(*given, artifact.memory) == whole
    without = encode_artifact(*given)
    assert len(without) < len(whole) - len(artifact.memory)
    path = tmp_path / "a.pgolf"
    path.write_bytes(without)
    assert read_artifact(path).memory == b""
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PgolfError, match="section memory is damaged"):
        read_artifact(path)


def test_a_run_is_scored_without_and_with_its_memory(run: Path, dataset: Dataset) -> None:
    result = json.loads((run / "result.json").read_text())
    scores = {name: entry["val_bpb"] for name, entry in result["evaluations"].items()}
    assert list(scores) == ["raw", "float", "packed", "sliding", "ttt", "memory"]
    assert scores["memory"] < scores["ttt"] - 0.3
    assert result["pack"]["total_bytes"] <= CAP
    assert result["pack"]["code_bytes"] == code_bytes(memory=True)
    assert read_run(run).state == "finished"
    header = read_header(run / "ledger.memory.jsonl")
    assert header["settings"]["memory"]["order"] == 3
    assert len(header["memory"]) == 64
    assert "memory" not in read_header(run / "ledger.ttt.jsonl")
    text = dataset.validation_text(16)
    assert verify_ledger(run / "ledger.memory.jsonl", *text).problem is None
    report = run_report(read_run(run), dataset)
    waterfall = next(block for block in report.sections[0].blocks if isinstance(block, Waterfall))
    assert waterfall.steps[-1] == ("memory", scores["memory"])


def test_evaluation_can_leave_the_memory_out_or_change_it(run: Path, dataset: Dataset) -> None:
    scores = json.loads((run / "result.json").read_text())["evaluations"]

    def bpb(*overrides: str) -> float:
        where = run / "artifact.pgolf", dataset.folder, None, "ttt", None, None
        return eval_job(*where, overrides, CPU).val_bpb

    assert bpb() == scores["memory"]["val_bpb"]
    assert bpb("memory.enabled=false") == scores["ttt"]["val_bpb"]
    # The stored text is read by the settings that it was written with.
    assert bpb("memory.order=2") not in (scores["memory"]["val_bpb"], scores["ttt"]["val_bpb"])


def test_weights_that_are_not_packed_have_a_memory_without_text(run: Path, dataset: Dataset) -> None:
    def scored(weights: Weights, *overrides: str) -> EvalResult:
        recipe = weights.recipe.with_overrides(overrides)
        return evaluate_weights(weights, recipe, dataset, "ttt", CPU)

    weights = load_weights(run)
    assert weights.memory == b""
    assert len(weights.memory_start(dataset.tokenizer).stored) == 0
    assert scored(weights).val_bpb < scored(weights, "memory.enabled=false").val_bpb


def test_packing_says_what_it_stored(dataset: Dataset, tmp_path: Path) -> None:
    recipe = made_recipe()
    save_weights(tmp_path / "w.safetensors", small_model(recipe, seed=1).state_dict(), recipe, "")
    report = pack_job(tmp_path / "w.safetensors", tmp_path / "m.pgolf", None, [], dataset.folder)
    assert len(report.split_rows()) > 3
    assert dict(report.rows())["memory"].endswith(
        f"{report.origin['memory']['tokens']:,} tokens of training text"
    )
    info = inspect_artifact(tmp_path / "m.pgolf")
    assert info.stored_tokens == report.origin["memory"]["tokens"]
    size = info.section("memory").size
    assert size == report.origin["memory"]["bytes"]
    assert f"{100 * size / CAP:.1f} % of the cap" in dict(summary_rows(info))["section memory"]
    asked = ["memory.enabled=false"]
    plain = pack_job(tmp_path / "w.safetensors", tmp_path / "m.pgolf", None, asked, dataset.folder)
    assert "memory" not in plain.origin
    assert plain.split_rows() == []
    assert read_artifact(tmp_path / "m.pgolf").memory == b""


def test_the_code_of_the_memory_counts_where_there_is_one() -> None:
    more = set(scorer_modules(memory=True)) - set(scorer_modules())
    assert {"evaluate/memory_scorer.py", "memory/stored.py", "memory/mixing.py"} <= more
    assert not any("memory/" in name for name in scorer_modules())
    assert code_bytes() + 3000 < code_bytes(memory=True)
