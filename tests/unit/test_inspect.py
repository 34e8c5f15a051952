"""What `data inspect` finds: counts, bytes, damaged files, and documents in both splits."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from pgolf.data.dataset import open_dataset
from pgolf.data.inspect import inspect_dataset
from pgolf.data.prepare import prepare
from pgolf.data.readers import Reading
from pgolf.data.shards import read_shard
from pgolf.data.tokenizer import Tokenizer
from tests.shards import write_shard

TEXT = "\n\n".join(f"Document number {n} tells of {n % 7} birds and {n % 5} fish." for n in range(120))
BOS = 1
PARAGRAPHS = Reading(split="blank-lines")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.txt").write_text(TEXT)
    (folder / "val.txt").write_text(
        "A document that is only here.\n\nDocument number 3 tells of 3 birds and 3 fish."
    )
    prepare(
        [folder / "text.txt"],
        folder / "data",
        val_text=[folder / "val.txt"],
        vocab_size=300,
        reading=PARAGRAPHS,
    )
    return folder / "data"


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


@pytest.fixture
def bare(prepared: Path, tmp_path: Path) -> Path:
    """A folder with a tokenizer and no shards yet."""
    (tmp_path / "bare").mkdir()
    return Path(shutil.copy(prepared / "tokenizer.model", tmp_path / "bare")).parent


def test_inspection_counts_text_and_overlap(prepared: Path) -> None:
    found = inspect_dataset(prepared)
    size = sum(len(document.encode()) for document in TEXT.split("\n\n"))
    assert found["train"]["documents"] == 120
    assert found["train"]["bytes"] == found["train"]["bytes_original"] == size
    assert found["train"]["bytes_lost_by_normalisation"] == 0
    assert found["train"]["bytes_per_token"] == pytest.approx(size / found["train"]["tokens"])
    assert found["val"]["documents"] == 2
    assert found["overlap"] == {"documents": 1, "share_of_validation": 0.5}
    assert found["errors"] == {}


def test_documents_may_run_from_shard_to_shard(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgolf.data.prepare.TOKENS_PER_SHARD", 37)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "val.txt").write_text("Document number 3 tells of 3 birds and 3 fish.")
    prepare(
        [tmp_path / "text.txt"],
        tmp_path / "data",
        val_text=[tmp_path / "val.txt"],
        reading=PARAGRAPHS,
        tokenizer=prepared / "tokenizer.model",
    )
    found = inspect_dataset(tmp_path / "data")
    assert found["train"]["shards"] > 10
    assert found["train"]["documents"] == 120
    assert found["overlap"]["documents"] == 1


def test_inspection_reports_damaged_files_and_goes_on(copy: Path) -> None:
    shard = next(copy.glob("*_train_*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1])
    found = inspect_dataset(copy)
    assert "cut short" in found["errors"][shard.name]
    assert found["train"]["shards"] == 0
    assert found["val"]["documents"] == 2
    json.dumps(found)


def test_every_kind_of_header_error_is_reported(copy: Path) -> None:
    good = next(copy.glob("*_train_*.bin")).read_bytes()
    foreign = np.frombuffer(good[:1024], "<i4").copy()
    foreign[0] = 20240519
    tokens = np.array([BOS, 299, 300], np.uint16)
    (copy / "text_train_000001.bin").write_bytes(foreign.tobytes() + good[1024:])
    (copy / "text_train_000002.bin").write_bytes(b"PNG")
    write_shard(copy / "text_val_000001.bin", tokens)
    found = inspect_dataset(copy)
    assert set(found["errors"]) == {"text_train_000001.bin", "text_train_000002.bin", "text_val_000001.bin"}
    assert "not a token shard" in found["errors"]["text_train_000001.bin"]
    assert "too short for a shard's header" in found["errors"]["text_train_000002.bin"]
    assert "token 300 at position 2 is beyond the vocabulary of 300" in found["errors"]["text_val_000001.bin"]
    assert (found["train"]["shards"], found["val"]["shards"]) == (1, 1)
    assert found["train"]["documents"] == 120


def test_a_listed_but_absent_shard_is_reported(copy: Path) -> None:
    next(copy.glob("*_train_*.bin")).unlink()
    found = inspect_dataset(copy)
    assert "absent" in found["errors"]["text_train_000000.bin"]
    assert found["train"]["tokens"] == 0


def test_each_copy_of_a_validation_document_counts(bare: Path) -> None:
    write_shard(bare / "x_train_000000.bin", np.array([BOS, 5, 6, BOS, 7, 8], np.uint16))
    write_shard(bare / "x_val_000000.bin", np.array([BOS, 5, 6, BOS, 9, BOS, 5, 6, BOS, 5], np.uint16))
    assert inspect_dataset(bare)["overlap"] == {"documents": 2, "share_of_validation": 0.5}


def test_documents_are_not_joined_across_an_unusable_shard(bare: Path) -> None:
    write_shard(bare / "x_train_000000.bin", np.array([BOS, 7, BOS, 5], np.uint16))
    (bare / "x_train_000001.bin").write_bytes(b"damaged")
    write_shard(bare / "x_train_000002.bin", np.array([6, BOS, 8], np.uint16))
    write_shard(bare / "x_val_000000.bin", np.array([BOS, 5, 6, BOS, 7, BOS, 5, BOS, 8], np.uint16))
    # [5, 6] would be the join of the two halves, and [5] the first half taken for a whole document.
    assert inspect_dataset(bare)["overlap"] == {"documents": 2, "share_of_validation": 0.5}


def test_an_empty_validation_split(bare: Path) -> None:
    write_shard(bare / "x_train_000000.bin", np.array([BOS, 7], np.uint16))
    found = inspect_dataset(bare)
    assert found["val"] == {"shards": 0, "tokens": 0, "documents": 0, "bytes": 0, "bytes_per_token": 0.0}
    assert found["overlap"] == {"documents": 0, "share_of_validation": 0.0}


def test_bytes_do_not_depend_on_how_the_work_is_cut(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inspect_dataset(prepared)
    monkeypatch.setattr("pgolf.data.tokenizer._BLOCK", 7)
    assert inspect_dataset(prepared) == whole


def test_bytes_of_the_golden_shards_are_those_of_their_decoded_documents(shared: Path) -> None:
    folder, model = shared / "golden" / "shards", shared / "tokenizers" / "fineweb_1024_bpe.model"
    found = inspect_dataset(folder, model)
    tokenizer = Tokenizer.load(model)
    for split in ("train", "val"):
        tokens = np.concatenate([read_shard(path) for path in sorted(folder.glob(f"*_{split}_*.bin"))])
        documents = np.split(tokens, np.flatnonzero(tokens == BOS))[1:]
        assert found[split]["documents"] == len(documents)
        assert found[split]["tokens"] == sum(map(len, documents))
        assert found[split]["bytes"] == sum(len(tokenizer.decode(d[1:].tolist()).encode()) for d in documents)
    assert found["overlap"]["documents"] == 0
    assert found["errors"] == {}


def test_more_shards_than_files_that_may_be_open(prepared: Path, bare: Path) -> None:
    for split in ("train", "val"):
        tokens = read_shard(prepared / f"text_{split}_000000.bin")
        for index, part in enumerate(np.array_split(tokens, 80)):
            write_shard(bare / f"text_{split}_{index:06d}.bin", part)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 45, hard))
    try:
        found = inspect_dataset(bare)
        tokens = open_dataset(bare).validation_tokens(8)
        stream = open_dataset(bare).train_stream()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    whole = inspect_dataset(prepared)
    assert found["errors"] == {} and (found["train"]["shards"], found["val"]["shards"]) == (80, 80)
    assert (
        found["overlap"] == whole["overlap"]
        and found["train"]["tokens"] == whole["train"]["tokens"] == stream.total
    )
    assert np.array_equal(tokens, open_dataset(prepared).validation_tokens(8))
