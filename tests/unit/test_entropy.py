"""The entropy coder: exact, the same bits everywhere, and close to what theory allows."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pgolf.compress import entropy
from pgolf.compress.entropy import Codes, Stream, float_order
from pgolf.compress.stored import code_range
from pgolf.compress.trellis import round_on_trellis

SEEDS = st.integers(0, 1 << 32)
WIDTHS = st.integers(2, 8)


def written(codes: Codes, bits: int, trellis: bool = False) -> bytes:
    stream = Stream(entries=codes.size)
    stream.matrix(codes, *codes.shape, *code_range(bits), trellis)
    return stream.content()


def read(content: bytes, shape: tuple[int, int], bits: int, trellis: bool = False) -> Codes:
    stream = Stream(content)
    codes = stream.matrix(None, *shape, *code_range(bits), trellis)
    assert stream.exhausted()
    return codes


def written_integers(values: NDArray[np.int64]) -> bytes:
    stream = Stream(entries=8 * len(values))
    stream.integers(values, len(values), "a")
    return stream.content()


def gaussian(rows: int, columns: int, bits: int, spread: NDArray[np.float64] | float, seed: int = 0) -> Codes:
    """Normal codes of the given standard deviations (broadcast to the shape)."""
    noise = np.random.RandomState(seed).normal(size=(rows, columns))
    return np.clip(np.rint(noise * spread), *code_range(bits)).astype(np.int8)


def spreads(
    rows: int, columns: int, row_spread: float, column_spread: float, seed: int = 1
) -> NDArray[np.float64]:
    generator = np.random.RandomState(seed)
    return np.exp(
        row_spread * generator.normal(size=(rows, 1)) + column_spread * generator.normal(size=(1, columns))
    )


def formula_codes(rows: int, columns: int, bits: int) -> Codes:
    """Codes with uneven rows and columns, from integers alone."""
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
    noise = (i * 37 + j * 101 + i * j * 17) % 61 + (i * 11 + j * 29 + i * j * 7) % 53 - 56
    low, high = code_range(bits)
    return np.clip((noise * (high + 1) // 64) >> ((i % 3) + (j % 2)), low, high).astype(np.int8)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Codes, int]:
    bits, rows, columns, seed = draw(WIDTHS), draw(st.integers(0, 12)), draw(st.integers(0, 12)), draw(SEEDS)
    low, high = code_range(bits)
    generator = np.random.RandomState(seed % (1 << 32))
    pattern = draw(st.sampled_from(["zero", "low", "high", "extremes", "uniform", "spread", "few"]))
    shape = (rows, columns)
    found = {
        "zero": np.zeros(shape),
        "low": np.full(shape, low),
        "high": np.full(shape, high),
        "extremes": generator.choice([low, high], shape),
        "uniform": generator.randint(low, high + 1, shape),
        "spread": np.rint(generator.normal(size=shape) * spreads(rows, columns, 3.0, 3.0, seed % 1000)),
        "few": (generator.rand(*shape) < 0.02) * high,
    }[pattern]
    return np.clip(found, low, high).astype(np.int8), bits


@given(matrix=matrices(), trellis=st.booleans())
def test_matrices_come_back(matrix: tuple[Codes, int], trellis: bool) -> None:
    codes, bits = matrix
    assert np.array_equal(read(written(codes, bits, trellis), codes.shape, bits, trellis), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (0, 5), (5, 0), (0, 0), (150, 90)])
def test_every_width_comes_back(shape: tuple[int, int], bits: int) -> None:
    for codes in (
        gaussian(*shape, bits, spreads(*shape, 2.0, 2.0) * code_range(bits)[1] / 4),
        np.full(shape, code_range(bits)[0], dtype=np.int8),
    ):
        assert np.array_equal(read(written(codes, bits), shape, bits), codes)


@given(
    values=st.lists(st.integers(1 - (1 << 31), (1 << 31) - 1), max_size=300)
    | st.lists(st.integers(-300, 300), max_size=300)
    | st.builds(
        lambda value, count: [value] * count, st.integers(1 - (1 << 31), (1 << 31) - 1), st.integers(0, 300)
    ),
    zeros=st.integers(0, 30),
)
def test_integers_come_back(values: list[int], zeros: int) -> None:
    numbers = np.array([(value >> zeros) << zeros for value in values], dtype=np.int64)
    content = written_integers(numbers)
    stream = Stream(content)
    assert np.array_equal(stream.integers(None, len(numbers), "a"), numbers)
    assert stream.exhausted()


@given(parts=st.lists(matrices() | st.lists(st.integers(-70000, 70000), max_size=40), max_size=6))
def test_a_stream_of_many_parts_comes_back(parts: list[tuple[Codes, int] | list[int]]) -> None:
    stream = Stream(entries=10000)
    for part in parts:
        if isinstance(part, tuple):
            stream.matrix(part[0], *part[0].shape, *code_range(part[1]))
        else:
            stream.integers(np.array(part, dtype=np.int64), len(part), "floats")
    stream = Stream(stream.content())
    for part in parts:
        if isinstance(part, tuple):
            back = stream.matrix(None, *part[0].shape, *code_range(part[1]))
            assert np.array_equal(back, part[0])
        else:
            assert stream.integers(None, len(part), "floats").tolist() == part
    assert stream.exhausted()


def test_close_and_coarse_integers_are_cheap() -> None:
    rolling = np.arange(1000, dtype=np.int64) * 7919 % 64
    assert len(written_integers(np.full(1000, 123_456_789))) <= 16
    close = len(written_integers(1_000_000_000 + rolling))
    # Six bits each.
    assert close <= 1.1 * 1000 * 6 / 8
    assert len(written_integers((rolling - 32) << 20)) <= close + 8
    spread = np.random.RandomState(0).randint(0, 1 << 20, 1000).astype(np.int64)
    assert len(written_integers(spread)) <= 1.05 * 1000 * 20 / 8


def test_the_order_of_half_floats() -> None:
    patterns = np.arange(1 << 16, dtype=np.int64)
    order = float_order(patterns, 16)
    assert len(np.unique(order)) == 1 << 16
    assert -(1 << 15) <= order.min() <= order.max() < 1 << 15
    assert np.array_equal(float_order(order, 16), patterns)
    values = patterns.astype(np.uint16).view(np.float16)
    finite = np.isfinite(values)
    ordered = values[finite][np.argsort(order[finite])]
    assert np.all(np.diff(ordered.astype(np.float64)) >= 0)


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_the_order_of_floats(values: list[float]) -> None:
    floats = np.array(values, dtype=np.float32)
    order = float_order(floats.view(np.uint32), 32)
    assert np.array_equal(float_order(order, 32), floats.view(np.uint32))
    assert -(1 << 31) <= order.min() <= order.max() < 1 << 31
    ordered = floats[np.argsort(order)].astype(np.float64)
    assert np.all(ordered[:-1] <= ordered[1:])


def test_float_patterns_that_are_no_numbers_keep_their_bits() -> None:
    patterns = np.array(
        [0x7FC00000, 0xFFC00001, 0x7F800000, 0xFF800000, 0x80000000, 0, 0xFFFFFFFF], dtype=np.uint32
    )
    assert np.array_equal(float_order(float_order(patterns, 32), 32), patterns)


def test_tables_are_pinned() -> None:
    # A change here makes every file written so far unreadable: it needs a new format version.
    tables = entropy._SQUASH, entropy._STRETCH, entropy._LEVEL, entropy._SHARE
    digest = hashlib.sha256(b"".join(table.astype("<i8").tobytes() for table in tables))
    assert digest.hexdigest()[:32] == "afcd98fa42a92a249b665fa35cfb3a29"


def test_content_is_pinned() -> None:
    # As above.
    digests = []
    for bits in range(2, 9):
        for trellis in (False, True):
            codes = formula_codes(96, 160, bits)
            content = written(codes, bits, trellis)
            digests.append(hashlib.sha256(content).hexdigest())
            assert np.array_equal(read(content, codes.shape, bits, trellis), codes)
    integers = written_integers(np.arange(40, dtype=np.int64) ** 3 * 8 - 1000)
    digests.append(hashlib.sha256(integers).hexdigest())
    assert hashlib.sha256("".join(digests).encode()).hexdigest()[:32] == "774a75342d62e41fea19e9d9a624d137"


def test_tables_follow_their_functions() -> None:
    odds = np.arange(-2047, 2048) / 256
    assert np.abs(entropy._SQUASH / 65536 - 1 / (1 + np.exp(-odds))).max() < 2.0**-11
    for chance in (0.01, 0.3, 0.5, 0.9):
        back = entropy._STRETCH[int(chance * 4096)] / 256
        assert back == pytest.approx(math.log(chance / (1 - chance)), abs=0.03)
    assert np.all(np.diff(entropy._LEVEL) >= 0)


def order_0_bits(codes: Codes) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / codes.size)).sum())


def ideal_bits(codes: Codes, spread: NDArray[np.float64], bits: int) -> float:
    """What codes of known standard deviations cost at best."""
    low, high = code_range(bits)
    values = torch.from_numpy(codes.astype(np.float64))
    wide = torch.from_numpy(np.broadcast_to(spread, codes.shape).copy())
    above = torch.where(values == high, math.inf, values + 0.5) / wide
    below = torch.where(values == low, -math.inf, values - 0.5) / wide
    # The smaller tail, so that small chances are not differences of numbers near 1.
    chances = torch.special.ndtr(torch.minimum(above, -below)) - torch.special.ndtr(
        -torch.maximum(above, -below)
    )
    return float(-chances.clamp_min(1e-30).log2().sum())


@pytest.mark.parametrize(("bits", "scale"), [(4, 1.5), (5, 3.0), (6, 6.0), (8, 22.0)])
def test_normal_codes_cost_little_more_than_their_entropy(bits: int, scale: float) -> None:
    rows, columns = 512, 640
    spread = scale * spreads(rows, columns, 0.4, 0.4)
    codes = gaussian(rows, columns, bits, spread)
    size = 8 * len(written(codes, bits))
    assert size < order_0_bits(codes)
    assert size < 1.02 * ideal_bits(codes, spread, bits)


def test_even_codes_cost_little_more_than_their_entropy() -> None:
    codes = gaussian(400, 300, 6, 7.0)
    assert 8 * len(written(codes, 6)) < 1.01 * order_0_bits(codes)


def test_signs_that_a_column_shares_are_learned() -> None:
    codes = gaussian(300, 100, 4, 1.5)
    leaning = (np.abs(codes) * np.where(np.arange(100) % 2, 1, -1)).astype(np.int8)
    saved = 8 * (len(written(codes, 4)) - len(written(leaning, 4)))
    assert saved > 0.8 * np.count_nonzero(codes)


def test_a_trellis_is_cheaper_for_who_knows_its_states() -> None:
    weight = torch.from_numpy(np.random.RandomState(0).normal(size=(300, 200))).float()
    codes = round_on_trellis(weight, torch.full((300,), 1.0), torch.ones(200), torch.eye(200)).numpy()
    assert len(written(codes, 8, True)) < 0.993 * len(written(codes, 8))


def test_small_matrices_cost_little_beside_their_entropy() -> None:
    codes = gaussian(16, 24, 6, 6.0)
    assert 8 * len(written(codes, 6)) < 1.1 * ideal_bits(codes, np.float64(6.0), 6)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_strange_distributions_are_learned(factor: int) -> None:
    codes = (gaussian(300, 400, 4, 2.0).astype(np.int64) * factor).astype(np.int8)
    assert 8 * len(written(codes, 8)) < 1.02 * order_0_bits(codes)


def test_constant_matrices_cost_next_to_nothing() -> None:
    for value in (0, -32, 31):
        assert len(written(np.full((500, 500), value, dtype=np.int8), 6)) < 350


def test_later_matrices_gain_from_earlier_ones() -> None:
    codes = (gaussian(40, 60, 4, 2.0) * 3).astype(np.int8)
    stream = Stream(entries=2 * codes.size)
    for _ in range(2):
        stream.matrix(codes, *codes.shape, *code_range(8))
    assert len(stream.content()) < 0.98 * 2 * len(written(codes, 8))


@given(content=st.binary(max_size=120), rows=st.integers(0, 9), columns=st.integers(0, 9), bits=WIDTHS)
def test_foreign_content_gives_codes_in_range_or_an_error(
    content: bytes, rows: int, columns: int, bits: int
) -> None:
    low, high = code_range(bits)
    try:
        stream = Stream(content)
        codes = stream.matrix(None, rows, columns, low, high)
        numbers = stream.integers(None, rows, "b")
    except ValueError:
        return
    assert codes.shape == (rows, columns)
    assert numbers.shape == (rows,)
    assert not codes.size or low <= codes.min() <= codes.max() <= high


def test_content_that_codes_nothing_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="outside its range"):
        for seed in range(3000):
            noise = np.random.RandomState(seed).bytes(40)
            Stream(noise).matrix(None, 5, 5, *code_range(2))
    codes = gaussian(30, 30, 4, 2.0)
    for content in (written(codes, 4)[:-1], written(codes, 4) + b"1"):
        stream = Stream(content)
        stream.matrix(None, 30, 30, *code_range(8))
        assert not stream.exhausted()


def test_too_little_room_is_said() -> None:
    codes = np.random.RandomState(0).randint(-128, 128, (400, 400)).astype(np.int8)
    stream = Stream()
    stream.matrix(codes, *codes.shape, *code_range(8))
    assert stream.content() == b""
    assert stream.size() > codes.size
