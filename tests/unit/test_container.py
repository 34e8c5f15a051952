"""The artifact file: exact round trips, and no damaged file is ever believed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.compress.container import MAGIC, _digest, decode_artifact, encode_artifact, read_artifact
from pgolf.compress.quantize import Quantized, code_range
from pgolf.compress.scheme import Stored
from pgolf.errors import PgolfError
from pgolf.recipe import load_recipe

RECIPE = load_recipe("tiny")


def stored(seed: int = 0) -> dict[str, Stored]:
    generator = np.random.RandomState(seed)

    def codes(rows: int, columns: int, bits: int) -> Quantized:
        low, high = code_range(bits)
        values = torch.tensor(generator.randint(low, high + 1, size=(rows, columns)), dtype=torch.int8)
        return Quantized(values, torch.tensor(generator.rand(rows), dtype=torch.float16), bits)

    return {
        "cores.0.mlp.up.weight": codes(5, 7, 5),
        "smear.gate": torch.tensor(generator.normal(size=9), dtype=torch.float16),
        "bigram.scale": torch.tensor(0.25, dtype=torch.float32),
        "token_embedding.weight": codes(6, 4, 8),
        "empty": torch.zeros(0, 3, dtype=torch.float32),
    }


def same(first: Stored, second: Stored) -> bool:
    if isinstance(first, Quantized) and isinstance(second, Quantized):
        return torch.equal(first.codes, second.codes) and torch.equal(first.scale, second.scale)
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    return first.dtype == second.dtype and torch.equal(first, second)


WHOLE = encode_artifact(stored(), RECIPE, "abc", "zstd", 19)
EMPTY = [[0, 0, _digest(b"").hex()]] * 2


@pytest.mark.parametrize(("codec", "level"), [("zstd", 1), ("zstd", 22), ("lzma", 9), ("none", 1)])
def test_round_trip(tmp_path: Path, codec: str, level: int) -> None:
    (tmp_path / "a.pgolf").write_bytes(encode_artifact(stored(), RECIPE, "abc", codec, level))
    artifact = read_artifact(tmp_path / "a.pgolf")
    assert artifact.recipe == RECIPE
    assert artifact.tokenizer_digest == "abc"
    assert list(artifact.stored) == list(stored())
    assert all(same(artifact.stored[name], value) for name, value in stored().items())
    quantized = stored()["cores.0.mlp.up.weight"]
    assert isinstance(quantized, Quantized)
    assert torch.equal(artifact.state["cores.0.mlp.up.weight"], quantized.dequantize())


@settings(max_examples=400, deadline=None)
@given(position=st.integers(0, len(WHOLE) - 1), value=st.integers(1, 255))
def test_every_changed_byte_is_noticed(position: int, value: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[position] ^= value
    with pytest.raises(PgolfError, match=r"^x: "):
        decode_artifact(bytes(damaged), "x")


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, len(WHOLE)), end=st.integers(0, len(WHOLE)), extra=st.binary(max_size=20))
def test_cut_and_lengthened_files_are_noticed(start: int, end: int, extra: bytes) -> None:
    changed = WHOLE[:start] + extra + WHOLE[end:]
    if changed != WHOLE:
        with pytest.raises(PgolfError):
            decode_artifact(changed, "x")


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=300))
def test_noise_is_no_artifact(noise: bytes) -> None:
    for content in (noise, MAGIC + noise):
        with pytest.raises(PgolfError):
            decode_artifact(content, "x")


def with_header(change: dict[str, object]) -> bytes:
    """The artifact with another header whose own checksum is right: what an attacker would write."""
    length = int.from_bytes(WHOLE[8:12], "little")
    header = json.loads(zstandard.ZstdDecompressor().decompress(WHOLE[28 : 28 + length], max_output_size=1 << 20))
    text = zstandard.ZstdCompressor().compress(json.dumps(header | change).encode())
    return MAGIC + len(text).to_bytes(4, "little") + _digest(text) + text + WHOLE[28 + length :]


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": [["a", [1 << 40, 1 << 40], 6]]},
        {"tensors": [["a", [-4, 4], "f4"]]},
        {"tensors": [["a", [4], 6]]},
        {"tensors": [["a", [0, 1 << 63], "f4"]], "sections": EMPTY},
        {"tensors": [["a", [0, 1 << 30, 1 << 30, 1 << 30], "f4"]], "sections": EMPTY},
        {"tensors": [["a", [0] * 70, "f4"]], "sections": EMPTY},
        {"tensors": [["a", [float("inf")], "f4"]]},
        {"tensors": [["a", "12", "f4"]]},
        {"tensors": [], "sections": [[float("inf"), 0, ""], [0, 0, ""]]},
        {"tensors": [["a", [4, 4], 99]]},
        {"tensors": [["a", [4, 4], ["f4"]]]},
        {"tensors": [["a", [1], "f4"], ["a", [1], "f4"]]},
        {"tensors": [["a"]]},
        {"tensors": None},
        {"sections": []},
        {"sections": [[-1, 59, "00"], [10, 10, "00"]]},
        {"sections": [["x", 1, "zz"], [1, 1, ""]]},
        {"codec": "pickle"},
        {"codec": "lzma"},
        {"recipe": {"model": {"width": "wide"}}},
        {"recipe": 7},
    ],
)
def test_hostile_headers_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(PgolfError, match=r"x"):
        decode_artifact(with_header(change), "x")


def test_a_section_that_unpacks_to_too_much_stops_early() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    header_only = with_header({"sections": [[len(bomb), 59, _digest(bomb).hex()], [0, 0, _digest(b"").hex()]]})
    length = int.from_bytes(header_only[8:12], "little")
    with pytest.raises(PgolfError):
        decode_artifact(header_only[: 28 + length] + bomb, "x")


def test_another_version_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match="does not know"):
        decode_artifact(MAGIC[:-1] + b"\x63" + WHOLE[8:], "x")
    with pytest.raises(PgolfError, match="cannot be read"):
        read_artifact(tmp_path / "missing.pgolf")
