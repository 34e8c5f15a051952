"""Preparing data: the format, the splits, the counts, and what happens when it is interrupted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgolf.data import encode, prepare, vocabulary
from pgolf.data.dataset import open_dataset
from pgolf.data.encode import HoldOut, document_number
from pgolf.data.prepare import ShardWriter
from pgolf.data.readers import Reading
from pgolf.data.shards import read_shard
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError
from pgolf.runtime.processes import birth, host_mark
from pgolf.runtime.writing import new_folder

SENTENCE = (
    "the quick brown fox jumps over a lazy dog while seven owls watch from old oak trees and 1234 stars shine"
)


def _texts(count: int, seed: int = 0, words: int = 12) -> list[str]:
    choose = random.Random(seed)
    return [
        f"{number} " + " ".join(choose.choices(SENTENCE.split(), k=words)) + "\tÅ.\n\n  End"
        for number in range(count)
    ]


def _jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train_tokenizer(_texts(200), 320, path)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_shard_is_bos_and_tokens_of_each_document_after_the_header(tmp_path: Path, model: Path) -> None:
    texts = _texts(5)
    prepare.prepare([_jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "out", tokenizer=model)
    tokenizer = Tokenizer.load(model)
    tokens = [token for text in texts for token in (1, *tokenizer.encode(text))]
    expected = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253) + struct.pack(
        f"<{len(tokens)}H", *tokens
    )
    assert (tmp_path / "out" / "text_train_000000.bin").read_bytes() == expected


@pytest.mark.parametrize("name", ["fineweb_train_000000.bin", "fineweb_val_000000.bin"])
def test_an_official_shard_is_reproduced_byte_for_byte(shared: Path, tmp_path: Path, name: str) -> None:
    official, model = shared / "golden" / "shards" / name, shared / "tokenizers" / "fineweb_1024_bpe.model"
    tokenizer, tokens = Tokenizer.load(model), read_shard(official)
    documents = [
        tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, np.flatnonzero(tokens == 1)[1:])
    ]
    prepare.prepare([_jsonl(tmp_path / "a.jsonl", documents)], tmp_path / "out", tokenizer=model)
    assert (tmp_path / "out" / "text_train_000000.bin").read_bytes() == official.read_bytes()


def test_the_manifest_counts_everything(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "TOKENS_PER_SHARD", 2000)
    texts, val = _texts(300), _texts(20, seed=1)
    train_file, val_file = _jsonl(tmp_path / "a.jsonl", [*texts, "", " "]), _jsonl(tmp_path / "b.jsonl", val)
    done: list[tuple[int, int]] = []
    out = tmp_path / "new" / "out"
    manifest = prepare.prepare(
        [train_file], out, val_text=[val_file], tokenizer=model, progress=lambda *counts: done.append(counts)
    )
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert manifest["empty_documents"] == 2
    about = {"file": "tokenizer.model", "sha256": _digest(model), "vocab_size": 320, "transform": "none"}
    assert manifest["tokenizer"] == about
    assert (out / "tokenizer.model").read_bytes() == model.read_bytes()
    for split, documents in (("train", texts), ("val", val)):
        entry = manifest["splits"][split]
        size = sum(len(text.encode()) for text in documents)
        # The tokenizer that is trained here normalises nothing, so both counts are the text's own size.
        assert (entry["documents"], entry["bytes_original"], entry["bytes_normalized"]) == (
            len(documents),
            size,
            size,
        )
        paths = [out / shard["name"] for shard in entry["shards"]]
        assert paths == sorted(out.glob(f"*_{split}_*.bin"))
        assert [shard["sha256"] for shard in entry["shards"]] == [_digest(path) for path in paths]
        assert [shard["bytes"] for shard in entry["shards"]] == [path.stat().st_size for path in paths]
        tokens = [read_shard(path) for path in paths]
        assert [shard["tokens"] for shard in entry["shards"]] == [len(shard) for shard in tokens]
        assert all(len(shard) == 2000 for shard in tokens[:-1])
        stream = np.concatenate(tokens)
        assert entry["tokens"] == len(stream)
        parts = np.split(stream, np.flatnonzero(stream == 1)[1:])
        assert [Tokenizer.load(model).decode(part[1:]) for part in parts] == documents
    assert len(manifest["splits"]["train"]["shards"]) > 2
    assert [source["sha256"] for source in manifest["sources"]] == [_digest(train_file), _digest(val_file)]
    total = train_file.stat().st_size + val_file.stat().st_size
    assert done[-1] == (total, total) and done == sorted(done)
    assert _hidden(out.parent) == []


def test_normalisation_loss_shows_in_the_counts(shared: Path, tmp_path: Path) -> None:
    model = shared / "tokenizers" / "fineweb_1024_bpe.model"
    text = "two  spaces\n\nand a ligature: ﬁ"
    entry = prepare.prepare([_jsonl(tmp_path / "a.jsonl", [text])], tmp_path / "out", tokenizer=model)[
        "splits"
    ]["train"]
    assert entry["bytes_original"] == len(text.encode())
    assert entry["bytes_normalized"] == len("two spaces and a ligature: fi")


def test_processes_change_nothing(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_BATCH_CHARACTERS", 2000)
    source = _jsonl(tmp_path / "a.jsonl", _texts(500))
    manifests = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        manifests.append(prepare.prepare([source], out, val_fraction=0.2, tokenizer=model, workers=workers))
    assert manifests[0] == manifests[1]


def test_batches_under_way_are_bounded(tmp_path: Path, model: Path) -> None:
    taken = 0

    def batches() -> Iterator[list[encode.Document]]:
        nonlocal taken
        for text in _texts(50):
            taken += 1
            yield [("train", text)]

    results = encode.encode_all(model, HoldOut(), batches(), 2)
    next(results)
    assert taken <= 4
    assert sum(1 for _ in results) == 49


def test_the_held_out_part_depends_on_the_text_only(tmp_path: Path, model: Path) -> None:
    texts = _texts(1000)
    shuffled = random.Random(3).sample(texts, len(texts))
    tokens = []
    for name, documents in (("a", texts), ("b", shuffled)):
        source = _jsonl(tmp_path / f"{name}.jsonl", documents)
        manifest = prepare.prepare([source], tmp_path / name, val_fraction=0.1, tokenizer=model)
        stream = read_shard(tmp_path / name / "text_val_000000.bin")
        tokens.append(sorted(part.tobytes() for part in np.split(stream, np.flatnonzero(stream == 1)[1:])))
        assert 70 < manifest["splits"]["val"]["documents"] < 130
        assert manifest["splits"]["train"]["documents"] == 1000 - manifest["splits"]["val"]["documents"]
    assert tokens[0] == tokens[1]
    assert document_number(texts[0]) == int(hashlib.sha256(texts[0].encode()).hexdigest()[:16], 16)


def held_out(text: str, fraction: float) -> bool:
    return document_number(text) < fraction * 2**64


def _documents(folder: Path, split: str) -> list[str]:
    dataset = open_dataset(folder)
    tokens = np.concatenate([read_shard(path) for path in sorted(folder.glob(f"*_{split}_*.bin"))])
    return [dataset.tokenizer.decode(part[1:]) for part in np.split(tokens, np.flatnonzero(tokens == 1)[1:])]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fraction", [1e-9, 0.1, 1 - 1e-9])
def test_files_are_documents_and_each_side_gets_one(
    tmp_path: Path, model: Path, fraction: float, workers: int
) -> None:
    texts = [f"{text}\n\nmore of it" for text in _texts(6)]
    files = [tmp_path / f"{number}.txt" for number in range(6)]
    for path, text in zip(files, texts, strict=True):
        path.write_text(text)
    ordered = sorted(texts, key=document_number)
    held = {1e-9: ordered[:1], 1 - 1e-9: ordered[:-1]}.get(fraction) or [t for t in texts if held_out(t, 0.1)]
    for name, order in (("a", files), ("b", files[::-1])):
        manifest = prepare.prepare(
            order, tmp_path / name, val_fraction=fraction, tokenizer=model, workers=workers
        )
        assert sorted(_documents(tmp_path / name, "val")) == sorted(held or ordered[:1])
        assert sorted(_documents(tmp_path / name, "train") + _documents(tmp_path / name, "val")) == sorted(
            texts
        )
        assert manifest["documents"] == {"count": 6, "median_characters": sorted(map(len, texts))[2]}


def test_of_a_single_document_the_end_is_held_out(tmp_path: Path) -> None:
    # The held-out part has a word of its own, and so does every piece that a tokenizer would learn from it.
    lines = [f"{text}\n" for text in "\n".join(_texts(200)).splitlines()]
    source = tmp_path / "input.txt"
    source.write_text("".join(lines) + "wxwxwxwx wxwxwxwx\n" * 60)
    whole = source.read_text().removesuffix("\n")
    manifest = prepare.prepare([source], tmp_path / "out", vocab_size=340, val_fraction=0.1)
    (train,), (val,) = _documents(tmp_path / "out", "train"), _documents(tmp_path / "out", "val")
    assert train + val == whole and train.endswith("\n")
    assert len(val.encode()) - len(lines[0]) < 0.1 * len(whole.encode()) <= len(val.encode())
    assert manifest["documents"] == {"count": 1, "median_characters": len(whole)}
    assert "wx" not in train
    assert len(open_dataset(tmp_path / "out").tokenizer.encode("wxwxwxwx")) >= 8, (
        "held-out text taught no pieces"
    )
    source.write_text("A single line.\n\n")
    with pytest.raises(PgolfError, match=r"single document of one line.*--val-text"):
        prepare.prepare([source], tmp_path / "other", vocab_size=340, val_fraction=0.1)
    assert _hidden(tmp_path) == []


def test_bad_documents_are_left_out_on_request_and_counted_once(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(300))
    source.write_bytes(b'{"text": null}\n' + source.read_bytes() + b'{"text": "\xff"}\n{"text": null}\n')
    reading = Reading(bad_documents="skip")
    options: dict[str, Any] = {"val_fraction": 1e-9, "vocab_size": 320, "reading": reading}
    manifest = prepare.prepare([source], tmp_path / "out", **options)
    assert manifest["skipped_documents"] == {"null": 2, "not UTF-8": 1}
    assert manifest["documents"]["count"] == 300
    assert manifest["reading"] == {"split": "files", "text_column": "text", "bad_documents": "skip"}
    source.write_text('{"body": "x"}\n')
    with pytest.raises(PgolfError, match=r"no documents that can be used.*--bad-documents error"):
        prepare.prepare([source], tmp_path / "other", **options)


def test_validation_text_is_read_by_the_same_rules(tmp_path: Path, model: Path) -> None:
    reading = Reading(split="blank-lines", text_column="record.body")
    train = tmp_path / "a.json"
    train.write_text(json.dumps([{"record": {"body": text}} for text in _texts(3)]))
    val = tmp_path / "b.txt"
    val.write_text("one\n\ntwo\n")
    prepare.prepare([train], tmp_path / "out", val_text=[val], tokenizer=model, reading=reading)
    assert _documents(tmp_path / "out", "train") == _texts(3)
    assert _documents(tmp_path / "out", "val") == ["one", "two"]


@pytest.mark.parametrize("split_by", ["file", "hash"])
def test_the_tokenizer_is_trained_on_training_documents_only(tmp_path: Path, split_by: str) -> None:
    texts = _texts(300)
    marked = [text + " wxwxwxwx" * 20 if held_out(text + " wxwxwxwx" * 20, 0.3) else text for text in texts]
    assert 20 < sum("wxwx" in text for text in marked) < 200
    options: dict[str, Any] = {"val_fraction": 0.3}
    if split_by == "file":
        val = [text for text in marked if "wxwx" in text]
        marked = [text for text in marked if "wxwx" not in text]
        options = {"val_text": [_jsonl(tmp_path / "val.jsonl", val)]}
    source = _jsonl(
        tmp_path / "a.jsonl", [text for text in marked if "wxwx" in text or not held_out(text, 0.3)]
    )
    prepare.prepare([source], tmp_path / "out", vocab_size=340, **options)
    dataset = open_dataset(tmp_path / "out", vocab_size=340)
    ids = dataset.tokenizer.encode(" wxwxwxwx")
    assert len(ids) >= 8, "held-out text has no pieces of its own"
    assert len(dataset.tokenizer.encode("quick")) <= 2


def test_a_trained_tokenizer_loses_nothing_and_has_the_official_ids(tmp_path: Path) -> None:
    paths = [tmp_path / "a.model", tmp_path / "b.model"]
    for path in paths:
        train_tokenizer(_texts(200), 330, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    tokenizer = Tokenizer.load(paths[0])
    pieces = [tokenizer.pieces[index] for index in (0, 1, 2, 3, 4, 259)]
    assert pieces == ["<pad>", "<s>", "</s>", "<unk>", "<0x00>", "<0xFF>"]
    assert tokenizer.vocab_size == 330
    for text in ["two  spaces ", "\n\ttab\r\n", "ﬁ ½ é 中 🙂 \0", "1234"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == tokenizer.normalize(text)
        targets = np.array(ids)
        previous = np.array([1, *ids[:-1]])
        assert tokenizer.byte_table.count(previous, targets).sum() == len(text.encode())
    assert len(tokenizer.encode("1234")) == 4


def test_a_tokenizer_takes_a_bounded_sample_of_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "SAMPLE_BYTES", 3000)
    seen: list[str] = []
    monkeypatch.setattr(
        prepare, "make_tokenizer", lambda path, model, size, documents, transform: seen.extend(documents)
    )
    files = [_jsonl(tmp_path / f"{seed}.jsonl", _texts(100, seed)) for seed in range(3)]
    with pytest.raises(PgolfError, match="no such tokenizer"):
        prepare.prepare(files, tmp_path / "out", vocab_size=300)
    assert sum(len(text.encode()) for text in seen) <= 3000
    assert [text for text in seen if text.startswith("0 ")] == [_texts(1, seed)[0] for seed in range(3)]
    assert list(vocabulary.first_bytes(["ab", "cé"], 4)) == ["ab", "c"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "no tokenizer; pass --tokenizer MODEL, or --vocab-size N"),
        ({"vocab_size": 260}, "--vocab-size 260 must be above 260"),
        ({"vocab_size": 65537}, "at most 65,536"),
        ({"vocab_size": 5000}, "this text yields at most"),
        ({"vocab_size": 265}, "this text needs at least"),
        ({"vocab_size": 400, "use_model": True}, "has 320 pieces, not --vocab-size 400"),
        ({"use_model": True, "val_fraction": 1.0}, "--val-fraction 1.0 must be"),
        ({"use_model": True, "val_fraction": 0.1, "val_text": True}, "exclude each other"),
        ({"use_model": True, "workers": 0}, "--workers 0"),
    ],
)
def test_contradictory_or_impossible_arguments(
    tmp_path: Path, model: Path, options: dict[str, Any], expected: str
) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(30))
    if options.pop("use_model", False):
        options["tokenizer"] = model
    if options.pop("val_text", False):
        options["val_text"] = [source]
    with pytest.raises(PgolfError, match=expected):
        prepare.prepare([source], tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tokenizer", ["given", "trained"])
def test_bad_text_leaves_nothing_behind(tmp_path: Path, model: Path, workers: int, tokenizer: str) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(30))
    source.write_bytes(source.read_bytes() + b'{"text": "\xff"}\n')
    options: dict[str, Any] = {"tokenizer": model} if tokenizer == "given" else {"vocab_size": 320}
    with pytest.raises(PgolfError, match=r"a\.jsonl: line 31 is not UTF-8 .*offset \d+"):
        prepare.prepare([source], tmp_path / "out", workers=workers, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_an_empty_validation_file_is_an_error(tmp_path: Path, model: Path) -> None:
    (tmp_path / "val.txt").write_text("\n")
    source = _jsonl(tmp_path / "a.jsonl", _texts(3))
    with pytest.raises(PgolfError, match=r"val\.txt: holds no text"):
        prepare.prepare([source], tmp_path / "out", val_text=[tmp_path / "val.txt"], tokenizer=model)


def test_a_destination_that_exists_is_not_touched(tmp_path: Path, model: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(3))
    (tmp_path / "out").mkdir()
    prepare.prepare([source], tmp_path / "out", tokenizer=model)
    content = {path.name: _digest(path) for path in (tmp_path / "out").iterdir()}
    for taken in (tmp_path / "out", source):
        with pytest.raises(PgolfError, match="already exists; choose another folder or delete it"):
            prepare.prepare([source], taken, tokenizer=model)
    assert content == {path.name: _digest(path) for path in (tmp_path / "out").iterdir()}
    assert _hidden(tmp_path) == []


@pytest.mark.parametrize("moment", ["tokens", "manifest"])
def test_a_full_disk(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "tokens":
        monkeypatch.setattr(ShardWriter, "add", full)
    else:
        monkeypatch.setattr(prepare, "write_json", full)
    source = _jsonl(tmp_path / "a.jsonl", _texts(3))
    with pytest.raises(PgolfError, match="out: the disk is full"):
        prepare.prepare([source], tmp_path / "out", tokenizer=model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_worker_that_dies_is_reported(tmp_path: Path, model: Path) -> None:
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(PgolfError, match=r"a worker process died.* --workers, .*several files .*--split"):
        list(encode.encode_all(tmp_path / "broken.model", HoldOut(), iter([[("train", "x")]]), 2))


def test_a_document_too_large_for_the_machine_is_refused_before_any_work(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(_texts(20))
    source = tmp_path / "a.txt"
    source.write_text(text)
    there = 50 * len(text.encode()) / 2
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": int(there) - 1}.__getitem__)
    with pytest.raises(
        PgolfError, match=r"a\.txt: is a single document.* GiB.*several files, or with --split"
    ):
        prepare.prepare([source], tmp_path / "out", tokenizer=model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]
    prepare.prepare([source], tmp_path / "lines", tokenizer=model, reading=Reading(split="blank-lines"))
    prepare.prepare([_jsonl(tmp_path / "a.jsonl", [text, text])], tmp_path / "records", tokenizer=model)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": int(there) + 1}.__getitem__)
    prepare.prepare([source], tmp_path / "out", tokenizer=model)


def test_a_trainer_that_is_killed_is_reported_as_such(tmp_path: Path) -> None:
    before = _children(os.getpid())

    def texts() -> Iterator[str]:
        yield from _texts(5)
        for child in set(_children(os.getpid())).difference(before):
            os.kill(child, signal.SIGKILL)
        yield from _texts(5)

    with pytest.raises(
        PgolfError, match=r"trains the tokenizer was killed, perhaps for lack of memory; .*--tokenizer"
    ):
        train_tokenizer(texts(), 320, tmp_path / "small.model")


def test_a_trainer_whose_parent_is_gone_already_ends() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ""])
    parent.wait()
    words = [sys.executable, "-m", "pgolf.data.vocabulary", "320", str(parent.pid)]
    # Its text never ends.
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=_environment()) as trainer:
        assert trainer.wait(timeout=30) == 1


def test_leftovers_go_but_the_work_of_others_stays(tmp_path: Path) -> None:
    left = tmp_path / f".out.{host_mark()}-{2**22 + 1}-00000000.partial"
    left.mkdir()
    (left / "text_train_000000.bin").write_bytes(b"half")
    code = (
        "import sys, time; from pathlib import Path; from pgolf.runtime.writing import new_folder\n"
        "with new_folder(Path(sys.argv[1])): print('ready', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        with new_folder(tmp_path / "out") as folder:
            [theirs] = set(_hidden(tmp_path)) - {folder.name}
            assert theirs.startswith(f".out.{host_mark()}-{other.pid}-")
    finally:
        other.kill()
        other.wait()
    assert _hidden(tmp_path) == [theirs]
    with new_folder(tmp_path / "out"):
        pass
    assert _hidden(tmp_path) == []


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


KILLED = """
import sys, time
from pathlib import Path

source, out, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
counted = 0


def wait(*ignored):
    print("here", flush=True)
    time.sleep(60)


def progress(done, total):
    global counted
    counted += 1
    if moment == "while encoding" and counted == 5:
        wait()


if __name__ == "__main__":
    from pgolf.data import encode, prepare

    encode._BATCH_CHARACTERS = 2000
    if moment == "start":
        prepare.make_tokenizer = wait
    if moment == "tokens written":
        prepare.write_json = wait
    if moment == "before the rename":
        Path.rename = wait
    workers = 2 if moment == "while encoding" else 1
    prepare.prepare([source], out, vocab_size=320, val_fraction=0.1, workers=workers, progress=progress)
    if moment == "finished":
        wait()
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    source = _jsonl(folder / "a.jsonl", _texts(600))
    return source, prepare.prepare([source], folder / "out", vocab_size=320, val_fraction=0.1)


@pytest.mark.parametrize(
    "moment", ["start", "while encoding", "tokens written", "before the rename", "finished"]
)
def test_kill_at_any_moment_leaves_all_or_nothing(
    tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], moment: str
) -> None:
    source, expected = undisturbed
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(KILLED)
    run = subprocess.Popen(
        [sys.executable, str(script), str(source), str(out), moment],
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    assert run.stdout is not None and run.stdout.readline() == b"here\n"
    children = _children(run.pid)
    run.send_signal(signal.SIGKILL)
    run.wait()
    if moment == "finished":
        assert open_dataset(out).manifest == expected
        return
    assert not out.exists()
    assert len(_hidden(tmp_path)) == 1
    assert moment != "while encoding" or len(children) >= 2
    _wait_until_gone(children)
    assert prepare.prepare([source], out, vocab_size=320, val_fraction=0.1) == expected
    assert _hidden(tmp_path) == []
    assert open_dataset(out).manifest == expected


INTERRUPTED = """
import sys, time
from pathlib import Path
from pgolf.data import encode, prepare, vocabulary

moment = sys.argv.pop()


def wait(*ignored, **options):
    print("here", flush=True)
    time.sleep(60)


def texts(name, wanted):
    for number in range(10**9):
        if number == wanted:
            print("here", flush=True)
        yield f"document {number} of words that are hidden"


if moment == "reading for the tokenizer":
    vocabulary.first_bytes = lambda documents, limit: texts(moment, 1000)
if moment == "training":
    send = vocabulary._send
    vocabulary._send = lambda documents, pipe: (send(texts_of(), pipe), print("here", flush=True))
    texts_of = lambda: (f"w{n * 7919 % 1000003}x{n * 104729 % 1000003}" * 9 for n in range(20_000))
if moment == "hashing":
    prepare.sha256_file = wait
if moment == "encoding":
    encode.encode_batch = wait
if moment == "writing":
    prepare.write_json = wait

from pgolf.cli.main import main

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "moment", ["reading for the tokenizer", "training", "hashing", "encoding", "writing"]
)
def test_an_interruption_at_any_moment_leaves_nothing(
    tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    (tmp_path / "script.py").write_text(INTERRUPTED)
    source = _jsonl(tmp_path / "a.jsonl", _texts(300))
    words = ["data", "prepare", "--text", source, "--vocab-size", "320", "--val-fraction", "0.1"]
    run = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", *words, "--workers", "1", "--out", tmp_path / "out", moment],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        text=True,
    )
    assert run.stdout is not None and run.stdout.readline() == "here\n"
    children = _children(run.pid)
    assert moment != "training" or len(children) == 1
    run.send_signal(number)
    _, complaint = run.communicate(timeout=30)
    assert (run.returncode, complaint) == (130, "pgolf: interrupted; nothing was written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "script.py"]
    assert not any(Path(f"/proc/{child}").exists() for child in children), "the trainer outlives its parent"


def test_ctrl_c_reaches_the_workers_terminal_and_only_this_process_speaks(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(3000) * 20)
    model = tmp_path / "small.model"
    train_tokenizer(_texts(200), 320, model)
    script = "from pgolf.data import encode; encode._BATCH_CHARACTERS = 2000; "
    script += "from pgolf.cli.main import main; main()"
    words = ["data", "prepare", "--text", source, "--tokenizer", model, "--workers", "2"]
    words += ["--out", tmp_path / "out"]
    run = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stderr=subprocess.PIPE,
        env=_environment(),
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while (
        len(_children(run.pid)) < 3 and time.monotonic() < deadline
    ):  # The tracker of resources, and the workers.
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)
    _, complaint = run.communicate(timeout=30)
    assert (run.returncode, complaint) == (130, "pgolf: interrupted; nothing was written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "small.model"]


BUSY = """
import time
from pathlib import Path
from pgolf.data import encode


def busy(*ignored):
    Path("busy").touch()
    time.sleep(60)


encode.encode_batch = busy

from pgolf.cli.main import main

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_does_not_wait_for_what_the_workers_are_at(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    (tmp_path / "script.py").write_text(BUSY)
    # More than a pipe holds, and more than the workers have taken.
    source = _jsonl(tmp_path / "a.jsonl", ["x" * (1 << 20)] * 6)
    words = ["data", "prepare", "--text", source, "--tokenizer", model, "--workers", "2"]
    words += ["--out", tmp_path / "out"]
    run = subprocess.Popen(
        [sys.executable, "script.py", *words],
        stderr=subprocess.PIPE,
        env=_environment(),
        text=True,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "busy").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    children = _children(run.pid)
    run.send_signal(number)
    _, complaint = run.communicate(timeout=20)
    assert (run.returncode, complaint) == (130, "pgolf: interrupted; nothing was written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "busy", "script.py"]
    assert len(children) == 3
    _wait_until_gone(children)


def _wait_until_gone(children: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(birth(child) is not None for child in children):
        assert time.monotonic() < deadline, "the workers outlive their parent"
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_preparing_and_inspecting_start_without_torch() -> None:
    script = "import sys, pgolf.data.inspect, pgolf.data.prepare; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
