"""Reports of a run: what each target costs adds up to the ledger, however it is divided; wrong data is
noticed.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pgolf.compress.weights import load_weights
from pgolf.data.dataset import Dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluate import evaluate
from pgolf.evaluate.ledger import read_ledger
from pgolf.report.content import Card, Table
from pgolf.report.html import html_page
from pgolf.report.job import Wanted, _scored, report_job
from pgolf.report.run_report import Evidence, check_ledgers, evidence_cards, run_report
from pgolf.report.text_analysis import (
    CLASSES,
    Piece,
    TargetCosts,
    class_table,
    document_tables,
    documents_of,
    kind_of,
    length_table,
    passages,
    pieces_of,
    score_targets,
    spelled,
    text_section,
    visible,
)
from pgolf.runs.records import read_run
from tests.unit.run_stand_in import CPU, HOSTILE, VOCABULARY, finished_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    return finished_run(tmp_path_factory.mktemp("run") / "made")


@pytest.fixture(scope="module")
def run(made: tuple[Path, Dataset]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def dataset(made: tuple[Path, Dataset]) -> Dataset:
    return made[1]


@pytest.fixture(scope="module")
def pieces(dataset: Dataset) -> list[Piece]:
    return pieces_of(dataset.tokenizer)


@pytest.fixture(scope="module")
def costs(run: Path, dataset: Dataset) -> TargetCosts:
    return scored(run, dataset, "sliding")


def scored(run: Path, dataset: Dataset, mode: str, limit: int = 10**6) -> TargetCosts:
    name = {"standard": "packed"}.get(mode, mode)
    return score_targets(
        load_weights(run / "artifact.pgolf"), dataset, mode, limit, run / f"ledger.{name}.jsonl", CPU
    )


@pytest.mark.parametrize("mode", ["standard", "sliding", "ttt"])
def test_the_costs_add_up_to_the_ledger(run: Path, dataset: Dataset, mode: str) -> None:
    found = scored(run, dataset, mode)
    entries = read_ledger(run / f"ledger.{'packed' if mode == 'standard' else mode}.jsonl")[1]
    assert found.agrees
    assert "to the last digit" in found.check or "within" in found.check
    for entry in entries:
        inside = slice(entry.first, entry.first + entry.targets)
        assert found.nats[inside].sum() == pytest.approx(entry.nats, rel=1e-6)
        assert found.bytes[inside].sum() == entry.bytes
    assert len(found.nats) == found.announced == len(found.tokens) - 1


@pytest.mark.parametrize("mode", ["sliding", "ttt"])
def test_a_beginning_is_scored_as_in_the_whole(run: Path, dataset: Dataset, mode: str) -> None:
    whole, part = scored(run, dataset, mode), scored(run, dataset, mode, 130)
    ends = [entry.first + entry.targets for entry in read_ledger(run / f"ledger.{mode}.jsonl")[1]]
    assert len(part.nats) == max(end for end in ends if end <= 130)
    assert part.agrees
    assert part.announced == whole.announced
    assert part.nats == pytest.approx(whole.nats[: len(part.nats)], abs=1e-5)


def test_another_ledger_is_noticed(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (run / "ledger.sliding.jsonl").read_text().splitlines()]
    weights = load_weights(run / "artifact.pgolf")

    def check(**changes: object) -> TargetCosts:
        changed = [*lines[:2], lines[2] | changes, *lines[3:]]
        (tmp_path / "ledger.sliding.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
        return score_targets(weights, dataset, "sliding", 10**6, tmp_path / "ledger.sliding.jsonl", CPU)

    near = check(nats=lines[2]["nats"] * 1.001)
    assert not near.agrees
    assert "0.100 %" in near.check
    for wrong, words in (
        ({"nats": lines[2]["nats"] * 1.1}, "another model"),
        ({"text": "0" * 64}, "not those of the data"),
    ):
        with pytest.raises(PgolfError, match=words):
            check(**wrong)


def test_without_a_ledger_that_is_said(run: Path, dataset: Dataset) -> None:
    found = score_targets(load_weights(run), dataset, "standard", 50, None, CPU)
    assert (len(found.nats), found.agrees, found.weights) == (50, False, "averaged weights")
    assert "no ledger" in found.check


def test_every_division_of_the_text_holds_all_of_it(
    costs: TargetCosts, dataset: Dataset, pieces: list[Piece]
) -> None:
    for table in (class_table(costs, pieces), length_table(costs)):
        columns = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
        assert sum(columns["tokens"]) == len(costs.nats)
        assert sum(columns["bytes"]) == costs.bytes.sum()
        bits = sum(
            count * each for count, each in zip(columns["tokens"], columns["bits per token"], strict=True)
        )
        assert bits == pytest.approx(costs.nats.sum() / math.log(2))
        assert sum(columns["share of bits"]) == pytest.approx(1.0)
        assert sum(columns["share of bytes"]) == pytest.approx(1.0)
    documents = documents_of(costs, dataset.tokenizer.bos_id)
    assert len(documents) == 8 + len(HOSTILE)
    rows = [row for table in document_tables(costs, documents, pieces) for row in table.rows]
    assert sorted(row[0] for row in rows) == list(range(1, len(documents) + 1))
    assert sum(row[4] for row in rows) == costs.bytes.sum()
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_a_document_ends_with_the_start_of_the_next(costs: TargetCosts, dataset: Dataset) -> None:
    bos, documents = dataset.tokenizer.bos_id, documents_of(costs, dataset.tokenizer.bos_id)
    targets = costs.tokens[1:]
    assert all(targets[document.stop - 1] == bos for document in documents[:-1])
    assert all(bos not in targets[document.start : document.stop - 1] for document in documents)
    assert [document.start for document in documents[1:]] == [document.stop for document in documents[:-1]]


def test_classes_of_pieces(pieces: list[Piece], dataset: Dataset) -> None:
    assert len(pieces) == VOCABULARY
    kinds = Counter(piece.kind for piece in pieces)
    assert kinds["byte fallback"] == 256
    assert kinds["document start"] == 4
    assert set(kinds) <= set(CLASSES)
    words = {
        " the": "word, lower case",
        " The": "word, Capitalised",
        " NASA": "word, UPPER CASE",
        " I": "word, Capitalised",
    }
    parts = {
        "ing": "word part",
        "ING": "word part, upper case",
        "X": "word part, upper case",
        "3": "digits",
        " 3": "digits",
    }
    rest = {
        " ": "white space",
        "\n": "white space",
        ",": "punctuation",
        " (": "punctuation",
        "é": "not ASCII",
        "a1": "mixed",
    }
    for text, kind in (words | parts | rest).items():
        assert kind_of(text) == kind, text
    table = dataset.tokenizer.byte_table
    counted = table.count(np.full(VOCABULARY, 10), np.arange(VOCABULARY))
    assert [len(piece.text) for piece in pieces] == counted.tolist()


def test_text_is_spelled_as_it_is(costs: TargetCosts, dataset: Dataset, pieces: list[Piece]) -> None:
    count = len(costs.nats)
    found = spelled(costs, slice(0, count), pieces)
    assert sum(bits for _, bits in found) == pytest.approx(costs.nats.sum() / math.log(2))
    text = "".join(text for text, _ in found)
    for document in HOSTILE:
        assert visible(document) in text
    assert ("\u2603", pytest.approx(sum_of(costs, pieces, b"\xe2\x98\x83"))) in found
    assert text.count("\u00b6") == 7 + len(HOSTILE)
    # A stretch may begin in the middle of a character.
    start = next(i for i in range(count) if pieces[costs.tokens[i + 1]].text == b"\x98")
    assert spelled(costs, slice(start, start + 2), pieces)[0][0].startswith("\N{REPLACEMENT CHARACTER}")


def sum_of(costs: TargetCosts, pieces: list[Piece], character: bytes) -> float:
    """Bits of the bytes of a character, where it occurs first."""
    texts = [pieces[token].text for token in costs.tokens[1:]]
    at = next(i for i in range(len(texts)) if b"".join(texts[i : i + len(character)]) == character)
    return float(costs.nats[at : at + len(character)].sum() / math.log(2))


def test_what_turns_or_hides_text_is_replaced() -> None:
    assert visible("a\u202eb\u200bc\x07d\x1b[31m") == "a\ufffdb\ufffdc\ufffdd\ufffd[31m"
    assert visible("a\n\tb é\u2603") == "a\n\tb é\u2603"


def test_passages_are_ordered_and_do_not_overlap(
    costs: TargetCosts, dataset: Dataset, pieces: list[Piece]
) -> None:
    hard, easy = passages(costs, documents_of(costs, dataset.tokenizer.bos_id), pieces)
    places, scores = [], []
    for passage in (*hard.passages, *easy.passages):
        numbers = re.findall(r"[\d.]+", passage.title.replace(",", ""))
        scores.append(float(numbers[0]))
        places.append((int(numbers[2]), int(numbers[3])))
    assert scores[: len(hard.passages)] == sorted(scores[: len(hard.passages)], reverse=True)
    assert scores[len(hard.passages) :] == sorted(scores[len(hard.passages) :])
    assert min(scores[: len(hard.passages)]) >= max(scores[len(hard.passages) :])
    ordered = sorted(places)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ordered))


def test_a_stretch_without_bytes_breaks_nothing(costs: TargetCosts, pieces: list[Piece]) -> None:
    few = replace(costs, tokens=costs.tokens[:2], nats=costs.nats[:1], bytes=np.zeros(1, dtype=np.int64))
    section = text_section(few, pieces, 1)
    assert section.key == "text"
    assert passages(few, documents_of(few, 1), pieces) == []


def test_ledgers_are_verified(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    evaluations = read_run(run).evaluations
    checked = check_ledgers(run, evaluations, dataset)
    assert [found.name for found in checked] == ["float", "packed", "sliding", "ttt"]
    assert all(found.verification.problem is None for found in checked)
    assert "target by target" in checked[0].against
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "ledger.ttt.jsonl"
    path.write_text(path.read_text().replace('"bytes":', '"bytes": ', 1).replace('"nats":1', '"nats":2', 1))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    result["evaluations"]["packed"]["val_bpb"] += 1e-6
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    (tmp_path / "run" / "model.safetensors").write_bytes(b"other weights")
    problems = {
        found.name: found.verification.problem
        for found in check_ledgers(tmp_path / "run", result["evaluations"], None)
    }
    assert "result.json" in (problems["packed"] or "")
    assert "another artifact" in (problems["float"] or "")
    assert "chain" in (problems["ttt"] or "")
    assert problems["sliding"] is None
    cards = {card.label: card for card in run_report(read_run(tmp_path / "run")).cards}
    assert cards["ledgers"].value == "3 of 4 wrong"
    assert cards["ledgers"].mood == "bad"


@pytest.mark.parametrize(
    "content", ["", "{}", "no json", '{"format": "pgolf-ledger-1", "targets": 1}\n{}\n{}\n', "[]"]
)
def test_what_is_no_ledger_is_a_clear_mistake(tmp_path: Path, content: str) -> None:
    (tmp_path / "l.jsonl").write_text(content)
    with pytest.raises(PgolfError, match=r"l\.jsonl: no ledger, or damaged"):
        read_ledger(tmp_path / "l.jsonl")
    with pytest.raises(PgolfError, match="cannot be read"):
        read_ledger(tmp_path / "none.jsonl")


def test_an_audit_beside_the_run_is_shown(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    finding = {
        "condition": "C1",
        "test": "future tokens",
        "verdict": "violation",
        "evidence": "<b>0.5 nats</b>",
    }
    audit = {"ok": False, "violated": ["C1"], "findings": [finding], "targets": 64, "seed": 7, "subject": "s"}
    (tmp_path / "run" / "audit.json").write_text(json.dumps(audit))
    report = run_report(read_run(tmp_path / "run"))
    assert Card("audit", "violation", "C1", mood="bad") in report.cards
    assert "&lt;b&gt;0.5 nats&lt;/b&gt;" in html_page(report)
    (tmp_path / "run" / "audit.json").write_text(json.dumps(audit | {"ok": True, "violated": []}))
    good = run_report(read_run(tmp_path / "run"))
    assert Card("audit", "no violation", "64 targets, seed 7", mood="good") in good.cards
    for damaged, where in (({}, "ok"), (audit | {"findings": [5]}, "findings.0")):
        (tmp_path / "run" / "audit.json").write_text(json.dumps(damaged))
        with pytest.raises(PgolfError, match=rf"audit.json: damaged \({where}\); write it with"):
            run_report(read_run(tmp_path / "run"))
    assert [card.label for card in evidence_cards(Evidence([], None, ""))] == ["ledgers", "audit"]


def test_the_whole_report(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    made = report_job(run, out, "html", Wanted(), CPU)
    page = out.read_text(encoding="utf-8")
    assert made == {"report": str(out), "of": "run", "format": "html", "bytes": len(page.encode())}
    for key in ("scores", "training", "ttt", "bytes", "text", "samples", "evidence", "provenance", "repeat"):
        assert f'<section id="{key}"' in page
    assert "<script>document.title" not in page
    assert "pgolf eval artifact.pgolf" in page and "pgolf verify-ledger ledger." in page
    assert "&lt;script&gt;document" in page
    score = read_run(run).score("ttt")
    assert f'<div class="value">{score:.4f}</div>' in page
    again = tmp_path / "again.html"
    report_job(run, again, "html", Wanted(), CPU)
    assert again.read_bytes() == out.read_bytes()


def test_what_a_memory_wins(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    weights = load_weights(run / "artifact.pgolf")
    recipe = weights.recipe.with_overrides(["memory.enabled=true"])
    weights = replace(weights, recipe=recipe)
    text, start = dataset.validation_text(recipe.evaluation_length), weights.memory_start(dataset.tokenizer)
    mixed = evaluate(weights.model(), recipe, *text, "ttt", memory=start)
    (tmp_path / "run" / "ledger.memory.jsonl").write_bytes(mixed.ledger.content())
    result = json.loads((run / "result.json").read_text())
    result["evaluations"]["memory"] = mixed.to_json()
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    made = read_run(tmp_path / "run")
    assert mixed.val_bpb < 0.9 * result["evaluations"]["ttt"]["val_bpb"]
    won = (result["evaluations"]["ttt"]["val_loss"] - mixed.val_loss) * mixed.targets / math.log(2)

    sections = {section.key: section for section in run_report(made, dataset).sections}
    (places,) = sections["memory"].blocks
    scored = {each.key: each for each in _scored(made, weights, dataset, Wanted(mode="ttt"), CPU)}
    (orders,) = scored["orders"].blocks
    for table in (places, orders):
        assert isinstance(table, Table)
        assert sum(row[1] for row in table.rows) == mixed.targets  # type: ignore[misc]
        # Each row is rounded to bits.
        assert sum(row[5] for row in table.rows) == pytest.approx(won, abs=6)  # type: ignore[misc]
    # The text's costs are those of the final score, which has a ledger of its own.
    assert f"{mixed.val_bpb:.4f} bits per byte" in scored["text"].blocks[0].text  # type: ignore[union-attr]
    assert "ledger.memory.jsonl" in scored["text"].blocks[0].text  # type: ignore[union-attr]


def test_data_that_is_gone_or_wrong(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    made = json.loads((moved / "provenance.json").read_text())
    made["data"]["folder"] = str(tmp_path / "gone")
    (moved / "provenance.json").write_text(json.dumps(made))
    out = tmp_path / "report.html"
    with pytest.raises(PgolfError, match="pass --data DIR, or --no-score"):
        report_job(moved, out, "html", Wanted(), CPU)
    assert not out.exists()
    report_job(moved, out, "md", Wanted(score=False), CPU)
    assert "## What the text costs" not in out.read_text(encoding="utf-8")
    report_job(moved, out, "md", Wanted(data=dataset.folder), CPU)
    assert "## What the text costs" in out.read_text(encoding="utf-8")
    for wanted, form, words in ((Wanted(mode="x"), "html", "--mode x"), (Wanted(), "pdf", "--format pdf")):
        with pytest.raises(PgolfError, match=words):
            report_job(moved, out, form, wanted, CPU)
    with pytest.raises(PgolfError, match="no such run folder"):
        report_job(tmp_path / "nothing", out, "html", Wanted(), CPU)


def test_a_run_in_training_has_a_report(run: Path, tmp_path: Path) -> None:
    for name in ("recipe.toml", "provenance.json", "metrics.jsonl"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(run / name, tmp_path / "run" / name)
    report_job(tmp_path / "run", tmp_path / "r.md", "md", Wanted(), CPU)
    text = (tmp_path / "r.md").read_text()
    assert "No scores yet: the run is training." in text
    assert "validation BPB: **3.0000**" in text
