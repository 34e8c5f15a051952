"""Coders: exact on any arrays, and any foreign content is an error before it costs memory."""

from __future__ import annotations

import lzma
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pgolf.compress.coders import CODERS, Array, Kind, bounded_zstd
from pgolf.compress.entropy import Stream, float_order
from pgolf.compress.stored import code_range

Pair = tuple[Kind, Array]


@st.composite
def arrays(draw: st.DrawFn) -> list[Pair]:
    """Arrays as a section holds them: codes of several widths, floats of any bits, empty ones."""
    generator = np.random.RandomState(draw(st.integers(0, 1 << 31)))
    found: list[Pair] = []
    for dtype in draw(st.lists(st.sampled_from(["i1", "f2", "f4"]), max_size=5)):
        if dtype == "i1":
            low, high = code_range(draw(st.integers(2, 8)))
            shape: tuple[int, ...] = (draw(st.integers(0, 9)), draw(st.integers(0, 9)))
            found.append(
                (Kind(shape, dtype, low, high), generator.randint(low, high + 1, shape).astype(np.int8))
            )
            continue
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        size = np.dtype(dtype).itemsize
        raw = generator.bytes(int(np.prod(shape, dtype=int)) * size)
        found.append((Kind(shape, dtype), np.frombuffer(raw, f"<{dtype}").reshape(shape)))
    return found


@given(pairs=arrays(), coder=st.sampled_from(sorted(CODERS)))
def test_arrays_come_back_to_the_last_bit(pairs: list[Pair], coder: str) -> None:
    content = CODERS[coder].encode(pairs, 1)
    back = CODERS[coder].decode(content, [kind for kind, _ in pairs])
    assert len(back) == len(pairs)
    for (kind, array), found in zip(pairs, back, strict=True):
        assert found.shape == kind.shape
        assert found.dtype == np.dtype(f"<{kind.dtype}")
        assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("coder", CODERS)
def test_the_highest_level_reads_the_same(coder: str) -> None:
    values = (np.arange(600).reshape(20, 30) * 7919 % 23 - 11).astype(np.int8)
    kind = Kind((20, 30), "i1", -16, 15)
    content = CODERS[coder].encode([(kind, values)], CODERS[coder].highest_level)
    assert np.array_equal(CODERS[coder].decode(content, [kind])[0], values)


@pytest.mark.parametrize("coder", CODERS)
def test_no_arrays_are_no_arrays(coder: str) -> None:
    assert CODERS[coder].decode(CODERS[coder].encode([], 1), []) == []


@given(content=st.binary(max_size=80), coder=st.sampled_from(sorted(CODERS)), rows=st.integers(0, 6))
def test_foreign_content_is_a_value_error_or_has_the_asked_shapes(
    content: bytes, coder: str, rows: int
) -> None:
    kinds = [Kind((rows, 3), "i1", -8, 7), Kind((rows,), "f2"), Kind((2, rows), "f4")]
    try:
        found = CODERS[coder].decode(content, kinds)
    except ValueError:
        return
    assert [array.shape for array in found] == [kind.shape for kind in kinds]


@given(coder=st.sampled_from(sorted(CODERS)), position=st.integers(0, 1000), value=st.integers(1, 255))
def test_changed_content_is_a_value_error_or_has_the_asked_shapes(
    coder: str, position: int, value: int
) -> None:
    kinds = [Kind((9, 11), "i1", -8, 7), Kind((9,), "f2")]
    codes = (np.arange(99).reshape(9, 11) * 5 % 16 - 8).astype(np.int8)
    content = bytearray(CODERS[coder].encode([(kinds[0], codes), (kinds[1], np.arange(9).astype("<f2"))], 1))
    content[position % len(content)] ^= value
    try:
        found = CODERS[coder].decode(bytes(content), kinds)
    except ValueError:
        return
    assert [array.shape for array in found] == [kind.shape for kind in kinds]


def peak_of_refusal(coder: str, content: bytes, kinds: Sequence[Kind], match: str) -> int:
    """Bytes that Python and numpy held at most while the coder refused the content."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match):
            CODERS[coder].decode(content, kinds)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_stop_at_the_size_that_was_asked_for() -> None:
    small = [Kind((100,), "f4")]
    zeros = bytes(64 << 20)
    for coder, bomb in (
        ("zstd", zstandard.ZstdCompressor(level=1).compress(zeros)),
        ("lzma", lzma.compress(zeros, preset=0)),
        ("none", zeros),
    ):
        assert peak_of_refusal(coder, bomb, small, "instead of 400") < 4 << 20


def test_a_frame_that_claims_too_much_is_refused_unread() -> None:
    # A zstd frame of 2^60 bytes by its own word, and an lzma stream whose dictionary would take 4 GiB.
    frame = bytes.fromhex("28b52ffd") + b"\xc0\xb8" + (1 << 60).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(ValueError, match=r"."):
        bounded_zstd(frame, 100)
    greedy = b"\x5d" + (0xFFFFFFFF).to_bytes(4, "little") + b"\xff" * 8 + bytes(20)
    assert peak_of_refusal("lzma", greedy, [Kind((4,), "f2")], "imit") < 4 << 20


def test_the_range_coder_refuses_what_follows_its_end() -> None:
    kind = Kind((4, 6), "i1", -8, 7)
    content = CODERS["range"].encode([(kind, np.zeros((4, 6), dtype=np.int8))], 1)
    with pytest.raises(ValueError, match="follows its end"):
        CODERS["range"].decode(content + b"\x01\x02\x03\x04" * 3, [kind])
    with pytest.raises(ValueError, match="ends too early"):
        CODERS["range"].decode(content[:-1], [kind])


@pytest.mark.parametrize("number", [1 << 15, -(1 << 15) - 1, 70_000])
def test_the_range_coder_refuses_numbers_outside_their_format(number: int) -> None:
    stream = Stream()
    stream.integers(np.array([number, 0], dtype=np.int64), 2, "floats 16")
    with pytest.raises(ValueError, match="outside its format"):
        CODERS["range"].decode(stream.content(), [Kind((2,), "f2")])
    assert not 0 <= float_order(np.array([number]), 16)[0] < 1 << 16
