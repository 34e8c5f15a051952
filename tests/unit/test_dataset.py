"""Data folders: prepared, official, and wrong ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgolf.api import load_recipe, train
from pgolf.compress.weights import load_weights
from pgolf.data.dataset import find_tokenizer, open_dataset
from pgolf.data.prepare import prepare
from pgolf.data.readers import Reading
from pgolf.data.shards import read_shard
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError
from tests.shards import write_shard

TEXT = "\n\n".join(f"Document number {n} tells of {n % 7} birds and {n % 5} fish." for n in range(120))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.txt").write_text(TEXT)
    (folder / "val.txt").write_text(
        "A document that is only here.\n\nDocument number 3 tells of 3 birds and 3 fish."
    )
    reading = Reading(split="blank-lines")
    prepare(
        [folder / "text.txt"], folder / "data", val_text=[folder / "val.txt"], vocab_size=300, reading=reading
    )
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
    with pytest.raises(
        PgolfError, match=r"has 300 pieces.*model\.vocab_size is 1024.* --set model\.vocab_size=300 "
    ):
        open_dataset(prepared, vocab_size=1024)
    train_tokenizer((f"other words about {n} quarks" for n in range(300)), 300, copy / "tokenizer.model")
    with pytest.raises(PgolfError, match=r"tokenizer\.model: is not the tokenizer that .* was prepared with"):
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


def test_a_score_needs_every_listed_shard(copy: Path, prepared: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["val"]["shards"].append({"name": "text_val_000001.bin"})
    (copy / "manifest.json").write_text(json.dumps(manifest))
    dataset = open_dataset(copy)
    assert dataset.missing_shards("train") == []
    with pytest.raises(PgolfError, match=r"text_val_000001\.bin: absent"):
        dataset.validation_tokens(16)


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.pop("tokenizer"),
        lambda m: m.update(tokenizer="tokenizer.model"),
        lambda m: m["splits"].pop("val"),
        lambda m: m["splits"]["train"].pop("bytes_normalized"),
        lambda m: m["splits"]["train"].update(shards=["text_train_000000.bin"]),
        lambda m: m["splits"]["train"].update(shards=None),
    ],
)
def test_a_damaged_manifest_is_named(copy: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    damage(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PgolfError, match=r"manifest\.json: a damaged manifest"):
        open_dataset(copy)


@pytest.mark.parametrize(
    "content", ["[1]", '"text"', "null", '{"tokenizer": "other.model"}', '{"splits": []}']
)
def test_a_manifest_of_another_program_is_ignored(copy: Path, content: str) -> None:
    (copy / "manifest.json").write_text(content)
    assert open_dataset(copy).manifest is None


def test_golden_shards_as_a_bare_folder(shared: Path) -> None:
    dataset = open_dataset(
        shared / "golden" / "shards", shared / "tokenizers" / "fineweb_1024_bpe.model", vocab_size=1024
    )
    assert dataset.train_stream().total == 553_475
    everything = np.fromfile(dataset.val_shards[0], "<u2", offset=1024)
    assert len(everything) == 16_385
    assert dataset.validation_tokens(2048).tolist() == everything.tolist()
    assert dataset.validation_tokens(1000).tolist() == everything[:16_001].tolist()


def test_a_tokenizer_beside_the_data_is_found_by_every_path(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "big" / "store"
    for folder in (tree / "datasets" / "web", tree / "tokenizers", elsewhere):
        folder.mkdir(parents=True)
    for path in prepared.glob("*.bin"):
        shutil.copy(path, tree / "datasets" / "web")
        shutil.copy(path, elsewhere)
    model = shutil.copy(prepared / "tokenizer.model", tree / "tokenizers" / "sp.model")
    (tree / "datasets" / "linked").symlink_to(elsewhere)
    (tmp_path / "short").symlink_to(tree / "datasets" / "web")
    monkeypatch.chdir(tree / "datasets" / "web")
    places = [
        Path(),
        Path("../web"),
        tree / "datasets" / "web",
        tree / "datasets" / "linked",
        tmp_path / "short",
    ]
    for place in places:
        found = find_tokenizer(place)
        assert found is not None and found.samefile(model), place
        assert open_dataset(place).validation_tokens(1).size
    shutil.copy(model, tree / "tokenizers" / "other.model")
    assert find_tokenizer(Path()) is None


def test_a_run_finds_the_tokenizer_beside_the_data_that_it_recorded(prepared: Path, tmp_path: Path) -> None:
    data, tokenizers = tmp_path / "datasets" / "web", tmp_path / "tokenizers"
    data.mkdir(parents=True)
    tokenizers.mkdir()
    for path in prepared.glob("*.bin"):
        shutil.copy(path, data)
    shutil.copy(prepared / "tokenizer.model", tokenizers / "sp.model")
    small = ["model.width=32", "train.sequence_length=24", "train.batch_tokens=48", "ttt.chunk_tokens=64"]
    short = ["train.steps=1", "train.warmdown_steps=1", "evaluate.stride=24"]
    recipe = load_recipe("tiny", ["model.vocab_size=300", *small, *short])
    train(recipe, tmp_path / "run", data, device="cpu")
    (tmp_path / "run" / "tokenizer.model").unlink()  # Its own comes first.
    assert load_weights(tmp_path / "run").tokenizer().path == tokenizers / "sp.model"
