"""Data folders: prepared, official, and wrong ones; and what `data inspect` finds in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pgolf.data.dataset import open_dataset
from pgolf.data.inspect import inspect_dataset
from pgolf.data.prepare import prepare
from pgolf.data.shards import read_shard, write_shard
from pgolf.errors import PgolfError

TEXT = "\n\n".join(f"Document number {n} tells of {n % 7} birds and {n % 5} fish." for n in range(120))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.txt").write_text(TEXT)
    (folder / "val.txt").write_text("A document that is only here.\n\nDocument number 3 tells of 3 birds and 3 fish.")
    prepare([folder / "text.txt"], folder / "data", val_text=[folder / "val.txt"], vocab_size=300)
    return folder / "data"


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def test_a_prepared_folder(prepared: Path) -> None:
    dataset = open_dataset(prepared, vocab_size=300)
    tokens = np.concatenate([read_shard(path) for path in dataset.train_shards])
    documents = np.split(tokens, np.flatnonzero(tokens == dataset.tokenizer.bos_id))[1:]
    assert [dataset.tokenizer.decode(document[1:].tolist()) for document in documents] == TEXT.split("\n\n")


def test_validation_keeps_whole_windows(prepared: Path) -> None:
    dataset = open_dataset(prepared)
    everything = dataset.validation_tokens(1)
    assert len(dataset.validation_tokens(16)) == (len(everything) - 1) // 16 * 16 + 1
    assert len(dataset.validation_tokens(10_000)) == len(everything), "shorter than a window: kept whole"
    assert dataset.validation_tokens(16, limit_targets=5).tolist() == everything[:6].tolist()


def test_the_official_layout(prepared: Path, tmp_path: Path) -> None:
    bare, tokenizers = tmp_path / "datasets" / "bare", tmp_path / "tokenizers"
    bare.mkdir(parents=True)
    for path in prepared.glob("*.bin"):
        shutil.copy(path, bare)
    with pytest.raises(PgolfError, match="pass --tokenizer MODEL"):
        open_dataset(bare)
    assert open_dataset(bare, prepared / "tokenizer.model").manifest is None
    tokenizers.mkdir()
    shutil.copy(prepared / "tokenizer.model", tokenizers / "only.model")
    assert open_dataset(bare).tokenizer.path == tokenizers / "only.model"


def test_folders_that_do_not_fit(prepared: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match="no such data folder"):
        open_dataset(tmp_path / "missing")
    with pytest.raises(PgolfError, match="holds no shards"):
        open_dataset(tmp_path)
    with pytest.raises(PgolfError, match=r"has 300 pieces.*model\.vocab_size is 1024"):
        open_dataset(prepared, vocab_size=1024)
    (copy / "tokenizer.model").write_bytes((prepared / "tokenizer.model").read_bytes() + b"\0")
    with pytest.raises(PgolfError, match=r"not the tokenizer|not a SentencePiece"):
        open_dataset(copy)
    for path in copy.glob("*_val_*.bin"):
        path.unlink()
    shutil.copy(prepared / "tokenizer.model", copy)
    with pytest.raises(PgolfError, match="no validation tokens"):
        open_dataset(copy).validation_tokens(16)


def test_the_fingerprint_follows_the_training_data(prepared: Path, copy: Path) -> None:
    assert open_dataset(copy).fingerprint() == open_dataset(prepared).fingerprint()
    shard = next(copy.glob("*_train_*.bin"))
    tokens = read_shard(shard).copy()
    tokens[-1] = 5
    write_shard(shard, tokens)
    assert open_dataset(copy).fingerprint() != open_dataset(prepared).fingerprint()


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


def test_documents_may_run_from_shard_to_shard(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "val.txt").write_text("Document number 3 tells of 3 birds and 3 fish.")
    prepare(
        [tmp_path / "text.txt"],
        tmp_path / "data",
        val_text=[tmp_path / "val.txt"],
        tokenizer=prepared / "tokenizer.model",
        tokens_per_shard=37,
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
