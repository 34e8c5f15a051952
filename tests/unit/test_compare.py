"""The comparison of coders: each size is what a coder makes of the same arrays, each decoder is checked."""

from __future__ import annotations

import io
import lzma
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from pgolf.bench.packing import bench_coders, quantize_file
from pgolf.compress import compare
from pgolf.compress.compare import Compared, bound_bytes, compare_artifact, compare_coders
from pgolf.compress.container import encode_artifact
from pgolf.compress.stored import Quantized, Stored
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe, load_recipe

RECIPE = load_recipe("tiny")
NAMES = [
    "torch.save + zstd-16",
    "torch.save + zstd-22",
    "raw arrays + zstd-22",
    "raw arrays + brotli-11",
    "raw arrays + lzma-9e",
    "order-0 entropy",
    "range coder",
]


def matrix(rows: int, columns: int, seed: int) -> Quantized:
    generator = torch.Generator().manual_seed(seed)
    codes = (6 * torch.randn(rows, columns, generator=generator)).round().clamp(-32, 31).to(torch.int8)
    return Quantized(codes, torch.rand(rows, generator=generator).half(), 6)


def tensors() -> dict[str, Stored]:
    """One of every kind; the kept one lies between matrices, and its storage is larger than itself."""
    sides = (matrix(2, 20, 3)._replace(bits=8), matrix(2, 30, 4)._replace(bits=8))
    corrected = matrix(20, 30, 2)._replace(columns=torch.rand(30).half(), correction=sides)
    return {
        "first": matrix(40, 50, 1),
        "kept": torch.arange(200, dtype=torch.float32)[3:70],
        "corrected": corrected,
        "small": torch.tensor(0.25, dtype=torch.float16),
    }


def found(stored: dict[str, Stored], **arguments: object) -> dict[str, Compared]:
    rows = compare_coders(stored, **arguments)  # type: ignore[arg-type]
    assert [row.coder for row in rows] == NAMES
    return {row.coder: row for row in rows}


def raw_arrays(stored: dict[str, Stored]) -> tuple[bytes, bytes]:
    """Codes and all the rest as bytes, by hand."""
    one, kept, two, small = stored.values()
    assert isinstance(one, Quantized)
    assert isinstance(two, Quantized)
    assert two.correction is not None
    assert two.columns is not None
    left, right = two.correction
    codes = [one.codes, two.codes, left.codes, right.codes]
    floats = [one.scale, kept, two.scale, two.columns, left.scale, right.scale, small]
    first, second = (b"".join(t.numpy().tobytes() for t in part) for part in (codes, floats))  # type: ignore[union-attr]
    return first, second


def test_raw_arrays_are_codes_then_floats_through_each_compressor() -> None:
    brotli = pytest.importorskip("brotli")
    stored = tensors()
    raw, rows = b"".join(raw_arrays(stored)), found(stored)
    assert rows["raw arrays + zstd-22"].bytes == len(zstandard.ZstdCompressor(level=22).compress(raw))
    assert rows["raw arrays + lzma-9e"].bytes == len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    assert rows["raw arrays + brotli-11"].bytes == len(brotli.compress(raw, quality=11, lgwin=24))


def test_torch_save_holds_codes_and_steps_by_name() -> None:
    stored = {"a": matrix(40, 50, 1), "b": torch.rand(9).half()}
    rows, buffer = found(stored), io.BytesIO()
    torch.save({"a": (stored["a"].codes, stored["a"].scale), "b": stored["b"]}, buffer)  # type: ignore[union-attr]
    for level in (16, 22):
        expected = len(zstandard.ZstdCompressor(level=level).compress(buffer.getvalue()))
        assert rows[f"torch.save + zstd-{level}"].bytes == expected


def test_a_view_is_not_saved_with_all_that_lies_behind_it() -> None:
    noise = torch.randn(100_000).half()
    view = found({"a": matrix(4, 5, 1), "b": noise[:10]})["torch.save + zstd-22"].bytes
    own = found({"a": matrix(4, 5, 1), "b": noise[:10].clone()})["torch.save + zstd-22"].bytes
    assert view == own


def test_the_bound_is_the_entropy_of_each_tensor_and_all_floats_as_they_are() -> None:
    stored = tensors()
    one, two = stored["first"], stored["corrected"]
    assert isinstance(one, Quantized)
    assert isinstance(two, Quantized)
    assert two.correction is not None
    bits = 0.0
    for part in (one, two, *two.correction):
        counts = Counter(part.codes.flatten().tolist())
        bits += sum(-count * math.log2(count / counts.total()) for count in counts.values())
    expected = math.ceil(bits / 8) + len(raw_arrays(stored)[1])
    row = found(stored)["order-0 entropy"]
    assert row.bytes == bound_bytes(stored) == expected
    assert (row.encode_seconds, row.decode_seconds) == (None, None)


def test_the_range_coder_is_a_whole_artifact(tmp_path: Path) -> None:
    stored = tensors()
    content = encode_artifact(stored, RECIPE, "abc", "range", 1, {"pgolf": "0"})
    row = found(stored, recipe=RECIPE, tokenizer_digest="abc", origin={"pgolf": "0"})["range coder"]
    assert row.bytes == len(content)
    (tmp_path / "a.pgolf").write_bytes(content)
    assert {r.coder: r.bytes for r in compare_artifact(tmp_path / "a.pgolf")}["range coder"] == len(content)
    assert found(stored)["range coder"].bytes == len(encode_artifact(stored, Recipe(), "", "range", 1))


def test_percent_and_seconds() -> None:
    rows = found(tensors())
    whole = rows["torch.save + zstd-22"].bytes
    assert whole
    for row in rows.values():
        assert row.bytes is not None
        assert row.percent == pytest.approx(100 * row.bytes / whole)
        if row.coder != "order-0 entropy":
            assert row.encode_seconds is not None
            assert row.decode_seconds is not None
            assert 0 < row.decode_seconds < 60
            assert 0 < row.encode_seconds < 60


def test_a_missing_package_is_a_row_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    row = found(tensors())["raw arrays + brotli-11"]
    assert (row.bytes, row.percent, row.encode_seconds) == (None, None, None)
    assert "pip install brotli" in row.note


def test_a_decoder_that_changes_a_code_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    load = compare._load

    def wrong(content: bytes) -> list[np.ndarray]:
        arrays = load(content)
        arrays[0][0, 0] += 1
        return arrays

    monkeypatch.setattr(compare, "_load", wrong)
    with pytest.raises(AssertionError, match=r"torch\.save"):
        compare_coders(tensors())


def test_progress_counts_the_coders() -> None:
    calls: list[tuple[int, int]] = []
    compare_coders(tensors(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(index, 7) for index in range(8)]


def save(path: Path, **values: Tensor) -> Path:
    safetensors.torch.save_file(values, path)
    return path


def test_a_foreign_file_is_quantized_row_by_row(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    large, small = torch.randn(100, 90, generator=generator), torch.randn(64, 128, generator=generator)
    large[3] = 0
    path = save(
        tmp_path / "m.safetensors",
        large=large.bfloat16(),
        small=small,
        cube=torch.ones(30, 30, 30),
        ids=torch.arange(9000).reshape(90, 100),
    )
    stored, skipped = quantize_file(path, 4)
    assert skipped == 1
    assert set(stored) == {"large", "small", "cube"}
    value = stored["large"]
    assert isinstance(value, Quantized)
    weight = large.bfloat16().float()
    scale = (weight.abs().amax(dim=1) / 7).clamp_min(torch.finfo(torch.float16).tiny).half()
    assert value.bits == 4
    assert torch.equal(value.scale, scale)
    assert torch.equal(value.codes, (weight / scale.float()[:, None]).round().clamp(-8, 7).to(torch.int8))
    # 64 x 128 has no more than 8,192 entries, the cube is no matrix.
    for name, original in (("small", small), ("cube", torch.ones(30, 30, 30))):
        kept = stored[name]
        assert isinstance(kept, Tensor)
        assert torch.equal(kept, original.half())
    result = bench_coders(path, 4)
    assert result["weights"] == 100 * 90 + 64 * 128 + 30**3
    assert result["bits"] == 4
    assert (
        "1 matrices, 9,000 codes of 4 bits; 2 tensors, 35,192 numbers as fp16; left out: 1" in result["scope"]
    )
    assert [row["coder"] for row in result["coders"]] == NAMES
    expected = [row.bytes for row in compare_coders(stored)]
    assert [row["bytes"] for row in result["coders"]] == expected
    assert result["environment"]["cpu"]


def test_eight_bits_use_the_whole_range(tmp_path: Path) -> None:
    stored, _ = quantize_file(save(tmp_path / "m.safetensors", w=torch.randn(100, 100)), 8)
    value = stored["w"]
    assert isinstance(value, Quantized)
    assert value.codes.abs().amax(dim=1).eq(127).all()


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors here, only words")
    endless = torch.ones(100, 100)
    endless[0, 0] = torch.inf
    for path, words in (
        (tmp_path / "missing.safetensors", "no such file"),
        (tmp_path / "text.safetensors", "not a readable safetensors file"),
        (tmp_path, "not a readable safetensors file"),
        (
            save(tmp_path / "small.safetensors", w=torch.ones(64, 128)),
            "no matrix of floats with more than 8,192",
        ),
        (save(tmp_path / "inf.safetensors", w=endless), "tensor w holds a value that is not finite"),
        (
            save(tmp_path / "big.safetensors", w=torch.ones(100, 100), v=torch.full((3,), 1e6)),
            "exceeds 65504",
        ),
    ):
        with pytest.raises(PgolfError, match=words) as raised:
            bench_coders(path, 6)
        assert str(path) in str(raised.value)
