"""Who says how many bytes of text a target stands for, and what happens where that is wrong."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from pgolf.api import evaluate
from pgolf.data.dataset import open_dataset
from pgolf.data.inspect import check_bytes, inspect_dataset
from pgolf.data.prepare import prepare
from pgolf.data.shards import read_shard
from pgolf.data.tokenizer import ByteTable
from pgolf.errors import PgolfError
from pgolf.runs.verify import verify_job
from tests.e2e.conftest import pgolf, sentences
from tests.shards import write_shard


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(60)))
    (folder / "val.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in sentences(30, seed=3))
    )
    prepare([folder / "train.jsonl"], folder / "data", val_text=[folder / "val.jsonl"], vocab_size=320)
    return folder / "data"


@pytest.fixture
def bare(prepared: Path, tmp_path: Path) -> Path:
    """The layout of the official data sets, with a tokenizer beside the shards and no manifest; two val
    shards.
    """
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(prepared / "tokenizer.model", folder)
    shutil.copy(prepared / "text_train_000000.bin", folder / "web_train_000000.bin")
    tokens = np.asarray(read_shard(prepared / "text_val_000000.bin"))
    write_shard(folder / "web_val_000000.bin", tokens[:500])
    write_shard(folder / "web_val_000001.bin", tokens[500:])
    return folder


def write_byte_files(folder: Path, change: Any = lambda counts: counts) -> np.ndarray:
    """Side-cars that say what the tokenizer says, after ``change``; returns the counts of all tokens."""
    dataset = open_dataset(folder)
    tokens = np.asarray(dataset.validation_tokens(1))
    counts = change(
        np.concatenate(([0], dataset.tokenizer.byte_table.count_stream(tokens))).astype(np.uint16)
    )
    write_shard(folder / "web_val_bytes_000000.bin", counts[:500])
    write_shard(folder / "web_val_bytes_000001.bin", counts[500:])
    return counts


def test_side_cars_are_the_authority_and_no_tokens(bare: Path) -> None:
    plain = open_dataset(bare).validation_text(1)

    def fewer(counts: np.ndarray) -> np.ndarray:
        changed = counts.copy()
        changed[20:700] //= 2
        return changed

    counts = write_byte_files(bare, fewer)
    dataset = open_dataset(bare)
    assert [path.name for path in dataset.val_shards] == ["web_val_000000.bin", "web_val_000001.bin"]
    text = dataset.validation_text(1)
    assert text.tokens.tolist() == plain.tokens.tolist()
    assert text.byte_counts.tolist() == counts[1:].tolist() != plain.byte_counts.tolist()
    limited = dataset.validation_text(16, limit_targets=40)
    assert limited.byte_counts.tolist() == counts[1:41].tolist()
    found = inspect_dataset(bare)
    assert found["byte_counts"]["source"] == "byte files"
    assert found["byte_counts"]["bytes"] == counts.sum()
    assert "web_val_bytes_000000.bin and 1 more" in found["byte_counts"]["evidence"]
    assert found["val"]["bytes"] == counts.sum()
    assert found["val"]["bytes_per_token"] == counts.sum() / len(counts)
    for path in bare.glob("*_bytes_*"):
        path.unlink()
    again = inspect_dataset(bare)["byte_counts"]
    assert (again["source"], again["bytes"]) == ("tokenizer", plain.byte_counts.sum())


def test_other_files_beside_the_shards_are_no_shards(bare: Path) -> None:
    before = open_dataset(bare).validation_tokens(1).tolist()
    for name in ("web_val_ids_000000.bin", "web_train_bytes_000000.bin", "web_train_val_.bin"):
        shutil.copy(bare / "web_val_000000.bin", bare / name)
    dataset = open_dataset(bare)
    assert dataset.validation_tokens(1).tolist() == before
    assert [path.name for path in dataset.train_shards] == ["web_train_000000.bin"]
    shutil.copy(bare / "web_val_000000.bin", bare / "web_train_val_000000.bin")
    assert [path.name for path in open_dataset(bare).train_shards] == ["web_train_000000.bin"]


def test_side_cars_that_do_not_fit_are_named(bare: Path) -> None:
    counts = write_byte_files(bare)
    write_shard(bare / "web_val_bytes_000001.bin", counts[501:])
    with pytest.raises(
        PgolfError, match=r"web_val_bytes_000001.bin: has \d+ entries, web_val_000001.bin has \d+ tok"
    ):
        open_dataset(bare).validation_text(1)
    assert "web_val_bytes_000001.bin" in inspect_dataset(bare)["errors"]["validation text"]
    (bare / "web_val_bytes_000001.bin").unlink()
    with pytest.raises(PgolfError, match=r"web_val_bytes_000001.bin: absent, but there are files of bytes"):
        open_dataset(bare)
    (bare / "web_val_bytes_000000.bin").rename(bare / "web_val_bytes_000007.bin")
    with pytest.raises(PgolfError, match=r"web_val_bytes_000000.bin: absent"):
        open_dataset(bare)
    (bare / "web_val_bytes_000007.bin").unlink()
    write_byte_files(bare)
    shutil.copy(bare / "web_val_bytes_000000.bin", bare / "web_val_bytes_000007.bin")
    with pytest.raises(
        PgolfError, match=r"web_val_bytes_000007.bin: holds bytes per token of a shard that is not th"
    ):
        open_dataset(bare)
    for path in bare.glob("*_bytes_*"):
        path.unlink()

    def of_bos(counts: np.ndarray) -> np.ndarray:
        return np.maximum(counts, 1)

    write_byte_files(bare, of_bos)
    with pytest.raises(PgolfError, match=r"counts 1 bytes for token 0, which begins a document"):
        open_dataset(bare).validation_text(1)
    (bare / "web_val_bytes_000000.bin").write_bytes(b"cut")
    with pytest.raises(PgolfError, match=r"web_val_bytes_000000.bin: only 3 bytes"):
        open_dataset(bare).validation_text(1)


def test_side_cars_that_make_a_score_too_good_are_refused(bare: Path) -> None:
    write_byte_files(bare, lambda counts: counts + (counts > 0))
    with pytest.raises(
        PgolfError, match=r"web_val_bytes_000000.bin: says that .* so a score would be too good"
    ):
        open_dataset(bare).validation_text(1)


def test_bytes_that_are_taken_from_what_is_not_scored_are_refused(bare: Path) -> None:
    def moved(counts: np.ndarray) -> np.ndarray:
        changed = counts.copy()
        changed[1] += changed[-10:].sum()
        changed[-10:] = 0
        return changed

    write_byte_files(bare, moved)
    dataset = open_dataset(bare)
    assert dataset.validation_text(1).byte_counts.sum() == open_dataset(
        bare
    ).tokenizer.byte_table.count_stream(dataset.validation_tokens(1)).sum(dtype=np.int64)
    with pytest.raises(PgolfError, match="a score would be too good"):
        dataset.validation_text(1, limit_targets=100)


def test_side_cars_that_count_nothing_are_refused(bare: Path) -> None:
    write_byte_files(bare, np.zeros_like)
    assert "counts no bytes at all" in inspect_dataset(bare)["errors"]["validation text"]


def test_ledgers_are_held_against_side_cars(workshop: Path, bare: Path) -> None:
    folder = bare.parent / "side"
    folder.mkdir()
    for path in (workshop / "data").glob("*.bin"):
        shutil.copy(path, folder / path.name.replace("text", "web"))
    shutil.copy(workshop / "data" / "tokenizer.model", folder)
    dataset = open_dataset(folder)
    tokens = dataset.validation_tokens(1)
    counts = np.concatenate(([0], dataset.tokenizer.byte_table.count_stream(tokens))).astype(np.uint16)
    counts[100:200] = 0
    write_shard(folder / "web_val_bytes_000000.bin", counts)
    ledger = bare.parent / "ledger.jsonl"
    pgolf("eval", workshop / "run", "--data", folder, "--mode", "standard", "--ledger", ledger)
    found = verify_job(ledger, folder, None, None)
    assert found.problem is None
    assert "an entry for every token" in dict(found.checks)["bytes per target"]
    scorer = ("audit", workshop / "run", "--data", folder, "--mode", "standard", "--targets", "128", "--json")
    findings = json.loads(pgolf(*scorer).stdout)["findings"]
    assert {entry["verdict"] for entry in findings if entry["condition"] == "bytes"} == {"ok"}
    # Its table of token pairs is not what counts here.
    plugin = bare.parent / "plugin.py"
    plugin.write_text("def make(context):\n    return lambda tokens, byte_table: None\n")
    done = pgolf("audit", plugin, "--data", folder, "--scorer", f"{plugin}:make", check=2)
    assert "cannot count those of this data" in done.stderr
    assert found.score.bytes == counts[1 : found.score.targets + 1].sum()
    (folder / "web_val_bytes_000000.bin").unlink()
    assert "bytes claimed, the text has" in str(verify_job(ledger, folder, None, None).problem)


# Tokenizers that are odd


def trained(folder: Path, name: str, **options: Any) -> Path:
    model = io.BytesIO()
    common = {
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "minloglevel": 3,
        "vocab_size": 60,
        "hard_vocab_limit": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(200)), model_writer=model, **(common | options)
    )
    (folder / name).write_bytes(model.getvalue())
    return folder / name


def test_a_tokenizer_without_plain_pieces_is_not_compared_by_decoding(tmp_path: Path) -> None:
    text = jsonl(tmp_path / "a.jsonl", sentences(30))
    model = trained(tmp_path, "word.model", model_type="word")
    prepare([text], tmp_path / "data", val_fraction=0.2, tokenizer=model)
    found = inspect_dataset(tmp_path / "data")
    assert found["errors"] == {} and "no document could be decoded" in found["byte_counts"]["evidence"]


def test_a_tokenizer_without_bos_is_refused_wherever_it_is_given(bare: Path, tmp_path: Path) -> None:
    model = trained(tmp_path, "nobos.model", model_type="bpe", bos_id=-1)
    done = pgolf("data", "inspect", bare, "--tokenizer", model, check=2)
    assert "nobos.model: has no BOS piece, which begins every document" in done.stderr


# Normalisation


def nfkc(folder: Path) -> Path:
    """A tokenizer that makes some characters longer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(80)),
        model_writer=model,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=3,
    )
    (folder / "nfkc.model").write_bytes(model.getvalue())
    return folder / "nfkc.model"


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_what_normalisation_adds_and_loses_is_counted_apart(tmp_path: Path) -> None:
    # U+FDFA becomes 33 bytes from 3; of two spaces one is lost.
    train = jsonl(tmp_path / "train.jsonl", ["the cat \ufdfa sat", "the  dog   sat", "nothing here"])
    val = jsonl(tmp_path / "val.jsonl", ["the  cat", "the dog sat"])
    manifest = prepare([train], tmp_path / "data", val_text=[val], tokenizer=nfkc(tmp_path))
    split = manifest["splits"]["train"]
    assert split["bytes_normalized"] - split["bytes_original"] == 30 - 3
    assert split["bytes_added"] == 30
    dataset = open_dataset(tmp_path / "data")
    found = dataset.normalisation("train")
    assert found is not None and (found.added, found.lost, found.makes_longer) == (30, 3, True)
    assert str(found) == "adds 73.2 % and loses 7.3 % of the text's bytes"
    dataset.validation_text(1)  # training text may become longer: it is not scored
    assert inspect_dataset(tmp_path / "data")["train"]["bytes_lost_by_normalisation"] == 3


def test_longer_validation_text_is_refused_unless_asked_for(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", sentences(40))
    val = jsonl(tmp_path / "val.jsonl", ["the cat \ufdfa sat", "the dog sat"])
    model = nfkc(tmp_path)
    common = (
        "data",
        "prepare",
        "--text",
        train,
        "--val-text",
        val,
        "--tokenizer",
        model,
        "--out",
        tmp_path / "data",
    )
    done = pgolf(*common, check=2)
    assert "--allow-added-bytes" in done.stderr and "too good" in done.stderr
    assert not (tmp_path / "data").exists()
    pgolf(*common, "--allow-added-bytes")
    dataset = open_dataset(tmp_path / "data")
    check = check_bytes(dataset, dataset.validation_text(1))
    assert check.problem is None and check.normalisation is not None and check.normalisation.makes_longer
    # Data that an earlier version made without a word.
    path = tmp_path / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["added_bytes_allowed"], manifest["splits"]["val"]["bytes_added"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(PgolfError, match="bits per byte of longer text are too good"):
        open_dataset(tmp_path / "data").validation_text(1)
    assert "too good" in inspect_dataset(tmp_path / "data")["errors"]["validation text"]
    manifest["splits"]["val"]["bytes_added"] = "x"
    path.write_text(json.dumps(manifest))
    with pytest.raises(PgolfError, match="a damaged manifest"):
        open_dataset(tmp_path / "data")


def test_every_command_that_scores_says_that_a_score_is_too_good(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", sentences(40))
    val = jsonl(tmp_path / "val.jsonl", ["the cat \ufdfa sat on the mat, number 7", "the dog sat"] * 4)
    made = ("--tokenizer", nfkc(tmp_path), "--allow-added-bytes", "--out", tmp_path / "data")
    pgolf("data", "prepare", "--text", train, "--val-text", val, *made)
    small = ("model.vocab_size=320", "train.steps=2", "train.warmdown_steps=1")
    run = (
        "--recipe",
        "tiny",
        *(word for text in small for word in ("--set", text)),
        "--out",
        tmp_path / "run",
    )
    pgolf("train", *run, "--data", tmp_path / "data")
    ledger = tmp_path / "ledger.jsonl"
    where = ("--data", tmp_path / "data")
    done = pgolf("eval", tmp_path / "run", *where, "--mode", "standard", "--ledger", ledger)
    for printed in (done.stdout, done.stderr):
        assert "the score is too good: normalisation adds" in " ".join(printed.split())
    score = evaluate(tmp_path / "run", tmp_path / "data", mode="standard")
    assert score.warning.startswith("the score is too good") and score.to_json()["warning"] == score.warning
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())["evaluations"]["float"]
    assert recorded["warning"] == score.warning
    assert "normalisation" in pgolf("verify-ledger", ledger, *where).stdout
    audit = json.loads(pgolf("audit", tmp_path / "run", *where, "--json", check=1).stdout)
    finding = next(entry for entry in audit["findings"] if entry["test"] == "normalisation")
    assert finding["verdict"] == "violation" and "adds" in finding["evidence"]


# Counts that do not add up


def test_a_tokenizer_whose_counts_do_not_add_up_is_refused(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ByteTable.count_stream
    monkeypatch.setattr(ByteTable, "count_stream", lambda self, tokens: right(self, tokens) + 1)
    train = jsonl(tmp_path / "train.jsonl", sentences(5))
    with pytest.raises(
        PgolfError, match=r"the pieces of a document count \d+ bytes, its normalised text has \d+"
    ):
        prepare([train], tmp_path / "data", tokenizer=prepared / "tokenizer.model")
    dataset = open_dataset(prepared)
    problem = check_bytes(dataset, dataset.validation_text(1)).problem
    assert problem is not None and "document 0 counts" in problem
    assert "no score in these tokens is exact" in inspect_dataset(prepared)["errors"]["validation text"]


def test_audit_and_verify_ledger_find_a_miscount(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ByteTable.count_stream

    def more(self: ByteTable, tokens: np.ndarray) -> np.ndarray:
        counts = right(self, tokens)
        counts[-1] += 1  # in the last document alone
        return counts

    monkeypatch.setattr(ByteTable, "count_stream", more)
    job = (workshop / "run", "--data", workshop / "data", "--mode", "standard")
    pgolf("eval", *job, "--ledger", tmp_path / "l.jsonl")
    done = pgolf("verify-ledger", tmp_path / "l.jsonl", "--data", workshop / "data", check=1)
    assert "WRONG" in done.stdout and "document 39 counts" in " ".join(done.stdout.split())
    findings = json.loads(pgolf("audit", *job, "--targets", "128", "--json", check=1).stdout)["findings"]
    assert [entry["test"] for entry in findings if entry["verdict"] == "violation"] == ["bytes per target"]


def test_a_single_document_is_looked_at(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "one.txt").write_text("\n".join(sentences(60)))
    prepare(
        [tmp_path / "one.txt"], tmp_path / "data", val_fraction=0.2, tokenizer=prepared / "tokenizer.model"
    )
    dataset = open_dataset(tmp_path / "data")
    assert (
        "as many as the documents decode to (compared: 1)"
        in check_bytes(dataset, dataset.validation_text(1)).evidence
    )
