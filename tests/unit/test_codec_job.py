"""Files compressed with real scorers: round trips, the user's mistakes, other compressors beside it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.codec import compare, job
from pgolf.codec.compare import compare_files
from pgolf.codec.container import decode_file, encode_file
from pgolf.codec.job import Job, compress_file, decompress_file
from pgolf.compress.weights import save_weights
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError
from pgolf.memory.stored import start_of, write_start
from pgolf.model.gpt import build_model
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runtime.writing import write_json

TEXT = (
    b"hello world and hello world again, this is a text.\r\nIt has \xe2\x9c\x93 signs \xff and 17 numbers.\n"
    * 3
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and the weights of a small model that was made with it."""
    folder = tmp_path_factory.mktemp("model")
    words = "hello world and hello world again, this is a text of some words; it has number {} in it."
    train_tokenizer((words.format(index) for index in range(300)), 320, folder / "tokenizer.model")
    train_tokenizer((words.format(index) for index in range(200)), 310, folder / "other.model")
    save(folder / "model.safetensors", recipe(), Tokenizer.load(folder / "tokenizer.model").digest, seed=0)
    return folder


def recipe() -> Recipe:
    settings = [
        "train.sequence_length=24",
        "train.batch_tokens=48",
        "evaluate.stride=6",
        "ttt.chunk_tokens=64",
    ]
    return load_recipe("tiny", [*settings, "model.width=32", "model.vocab_size=320"])


def save(path: Path, recipe: Recipe, digest: str, seed: int) -> None:
    network = build_model(recipe.model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_weights(path, network.state_dict(), recipe, digest)


@pytest.fixture(scope="module")
def ready(folder: Path) -> Job:
    return Job(folder / "model.safetensors")


@pytest.mark.parametrize("ttt", [False, True])
@pytest.mark.parametrize("content", [TEXT, b"", b"x", bytes(range(256)) * 3, b"\x00" * 70_000], ids=range(5))
def test_files_come_back(folder: Path, tmp_path: Path, content: bytes, ttt: bool) -> None:
    (tmp_path / "text").write_bytes(content)
    model, before = folder / "model.safetensors", torch.get_num_threads()
    done: list[tuple[int, int]] = []
    result = compress_file(
        tmp_path / "text", tmp_path / "x.pgz", model, None, ttt, 1, lambda *counts: done.append(counts)
    )
    assert torch.get_num_threads() == before
    assert result["compressed_bytes"] == (tmp_path / "x.pgz").stat().st_size
    assert (result["bytes"], result["ttt"], result["file"]) == (len(content), ttt, str(tmp_path / "x.pgz"))
    back = decompress_file(tmp_path / "x.pgz", tmp_path / "back", model, None, None)
    assert (tmp_path / "back").read_bytes() == content
    same = ("tokens", "ledger_bits", "token_bits")
    assert [back[key] for key in same] == [result[key] for key in same]
    assert done[-1:] == ([(result["tokens"], result["tokens"])] if content else [])
    assert result["compressed_bytes"] - result["payload_bytes"] < 130
    if content == TEXT:
        # Text alone: no runs, so the code is as long as the ledger says.
        assert 8 * result["payload_bytes"] <= 1.005 * result["ledger_bits"] + 64 + 16


@pytest.mark.parametrize("ttt", [False, True])
def test_files_come_back_with_a_memory(ready: Job, ttt: bool) -> None:
    compressed, result = ready.compress(TEXT, ttt, 1, memory=True)
    header, payload = decode_file(compressed, "x.pgz")
    assert header.memory and result["memory"]
    # A fresh job: it knows nothing but the file.
    again, found = Job(ready.model_path).decompress(compressed, "x.pgz")
    assert again == TEXT
    assert [found[key] for key in ("tokens", "ledger_bits")] == [result["tokens"], result["ledger_bits"]]
    assert 8 * len(payload) <= 1.005 * result["ledger_bits"] + 64 + 16
    # The text says everything three times, and a random model remembers nothing.
    _, without = ready.compress(TEXT, ttt, 1)
    assert result["ledger_bits"] < 0.6 * without["ledger_bits"] and not without["memory"]
    with pytest.raises(PgolfError, match=r"cannot be decoded|decodes to something else"):
        ready.decompress(encode_file(replace(header, memory=False), payload), "x.pgz")


def test_what_an_artifact_stores_is_known_on_both_sides(ready: Job) -> None:
    stored = np.array(ready._opened.encode(TEXT[:50].decode()), np.uint16)
    begin = replace(start_of(ready._opened.pieces, ready._opened.bos_id, stored), stored=stored)
    content = write_start(ready._weights.recipe.memory, begin)
    jobs = [Job(ready.model_path) for _ in range(2)]
    for job_ in jobs:
        job_._weights = replace(job_._weights, memory=content)
    compressed, result = jobs[0].compress(TEXT[:50], False, 1, memory=True)
    assert jobs[1].decompress(compressed, "x.pgz")[0] == TEXT[:50]
    assert result["ledger_bits"] < 0.5 * ready.compress(TEXT[:50], False, 1, memory=True)[1]["ledger_bits"]


def test_the_number_of_threads_is_the_files(ready: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    scorer = Job.scorer

    def noting(self: Job, ttt: bool, memory: bool) -> object:
        used.append(torch.get_num_threads())
        return scorer(self, ttt, memory)

    monkeypatch.setattr(Job, "scorer", noting)
    compressed, _ = ready.compress(b"hello world", False, 2)
    assert ready.decompress(compressed, "x")[0] == b"hello world"
    assert used == [2, 2]


def test_the_same_input_gives_the_same_file(ready: Job) -> None:
    assert ready.compress(TEXT, True, 1)[0] == ready.compress(TEXT, True, 1)[0]


def test_every_change_of_a_small_file_is_noticed(ready: Job) -> None:
    compressed, _ = ready.compress(b"hello world, \xff\x00", False, 1)
    for place in range(len(compressed)):
        damaged = bytearray(compressed)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(PgolfError, match=r"^x\.pgz: "):
            ready.decompress(bytes(damaged), "x.pgz")


def test_a_change_behind_the_checksums_is_noticed_too(ready: Job) -> None:
    compressed, result = ready.compress(TEXT, False, 1)
    header, payload = decode_file(compressed, "x.pgz")
    for place in range(0, result["payload_bytes"], 40):
        damaged = bytearray(payload)
        damaged[place] ^= 0x10
        with pytest.raises(PgolfError, match=r"^x\.pgz: (cannot be decoded|decodes to something else)"):
            ready.decompress(encode_file(header, bytes(damaged)), "x.pgz")


def test_another_model_or_tokenizer_is_named(folder: Path, tmp_path: Path, ready: Job) -> None:
    compressed, _ = ready.compress(b"hello", False, 1)
    digest = Tokenizer.load(folder / "tokenizer.model").digest
    save(tmp_path / "other.safetensors", recipe(), digest, seed=1)
    with pytest.raises(PgolfError, match=r"compressed with another model .* pass that one with --model"):
        Job(tmp_path / "other.safetensors", folder / "tokenizer.model").decompress(compressed, "x.pgz")
    with pytest.raises(PgolfError, match=r"other\.model: is not the tokenizer of .* --tokenizer"):
        Job(folder / "model.safetensors", folder / "other.model")
    # Weights that were brought in may not know their tokenizer.
    save(tmp_path / "free.safetensors", recipe().with_overrides(["model.vocab_size=310"]), "", seed=0)
    with pytest.raises(PgolfError, match=r"has 320 pieces, but .* predicts 310"):
        Job(tmp_path / "free.safetensors", folder / "tokenizer.model")
    free = Job(tmp_path / "free.safetensors", folder / "other.model")
    compressed, _ = free.compress(b"hello", False, 1)
    longer = folder / "other.model"
    (tmp_path / "changed.model").write_bytes(longer.read_bytes() + b"\x1a\x00")
    with pytest.raises(PgolfError, match=r"compressed with another tokenizer .* --tokenizer"):
        Job(tmp_path / "free.safetensors", tmp_path / "changed.model").decompress(compressed, "x.pgz")


def test_where_the_tokenizer_is_looked_for(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "run" / "model.safetensors"
    model.parent.mkdir()
    model.write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(PgolfError, match=r"its tokenizer is not known; pass --tokenizer MODEL"):
        Job(model)
    write_json(model.parent / "provenance.json", {"data": {"folder": str(folder)}})
    assert Job(model).tokenizer_path == folder / "tokenizer.model"
    assert Job(model.parent).model_path == model
    beside = model.parent / "tokenizer.model"
    beside.write_bytes((folder / "tokenizer.model").read_bytes())
    assert Job(model).tokenizer_path == beside


def test_mistakes_write_nothing(folder: Path, tmp_path: Path) -> None:
    model, text, out = folder / "model.safetensors", tmp_path / "text", tmp_path / "out"
    text.write_bytes(b"hello")
    for source, target, where in (
        (tmp_path / "missing", out, "missing: cannot be read"),
        (tmp_path, out, "cannot be read"),
        (text, text, "is an input"),
        (text, model, "is an input"),
        (text, folder / "tokenizer.model", "is an input"),
    ):
        with pytest.raises(PgolfError, match=where):
            compress_file(source, target, model, None, False, 1, None)
    with pytest.raises(PgolfError, match="not a file that `pgolf compress` wrote"):
        decompress_file(text, out, model, None, None)
    assert text.read_bytes() == b"hello"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


def test_a_failed_decoding_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = folder / "model.safetensors", tmp_path / "text"
    text.write_bytes(TEXT)
    compress_file(text, tmp_path / "x.pgz", model, None, False, 1, None)
    monkeypatch.setattr(job, "decode", lambda *_: (job.decode, b"something else"))
    with pytest.raises(PgolfError, match="decodes to something else"):
        decompress_file(tmp_path / "x.pgz", tmp_path / "out", model, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text", "x.pgz"]


def test_comparison(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(TEXT)
    (tmp_path / "b").write_bytes(b"")
    model = folder / "model.safetensors"
    done: list[tuple[int, int]] = []
    found = compare_files(
        [tmp_path / "a", tmp_path / "b"], model, memory=True, progress=lambda *counts: done.append(counts)
    )
    assert [entry["bytes"] for entry in found] == [len(TEXT), 0]
    for entry in found:
        rows = {row["compressor"]: row for row in entry["compressors"]}
        others, ours = list(rows)[:5], list(rows)[5:]
        assert others == ["bzip2 -9", "xz -9e", "zstd --ultra -22", "brotli -q 11", "PPMd H"]
        assert ours == ["pgolf", "pgolf with memory"]
        assert rows[ours[1]]["bytes"] < rows[ours[0]]["bytes"] or not entry["bytes"]
        for name, row in rows.items():
            extra = model.stat().st_size if name in ours else 0
            assert row["bytes_with_model"] == row["bytes"] + extra
            assert row["decode_seconds"] >= 0
    assert done[-1] == (done[-1][1], done[-1][1])
    assert [part for part, _ in done] == sorted(part for part, _ in done)


def test_comparison_without_optional_packages(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    for name in ("brotli", "pyppmd"):
        monkeypatch.setitem(sys.modules, name, None)
    (entry,) = compare_files([tmp_path / "a"], folder / "model.safetensors")
    missing = [row for row in entry["compressors"] if row["bytes"] is None]
    assert [row["note"] for row in missing] == [
        "not installed: pip install brotli",
        "not installed: pip install pyppmd",
    ]


def test_a_compressor_that_loses_something_is_an_error() -> None:
    way = compare._plain("wrong", lambda content: content[1:], lambda packed: packed)
    with pytest.raises(PgolfError, match="wrong: gave back something else"):
        compare._measure(way, b"abc", lambda done, total: None)
