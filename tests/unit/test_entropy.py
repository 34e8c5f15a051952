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
from pgolf.compress.entropy import CLASSES, SHAPES, Codes, Model, Reader, Writer, float_order
from pgolf.compress.stored import code_range

SEEDS = st.integers(0, 1 << 32)
WIDTHS = st.integers(2, 8)


def written(codes: Codes, bits: int, kind: str = "a") -> bytes:
    writer = Writer()
    Model(writer).matrix(codes, *codes.shape, *code_range(bits), kind)
    return writer.content()


def read(content: bytes, shape: tuple[int, int], bits: int, kind: str = "a") -> Codes:
    reader = Reader(content)
    codes = Model(reader).matrix(None, *shape, *code_range(bits), kind)
    assert reader.exhausted()
    return codes


def written_integers(values: NDArray[np.int64]) -> bytes:
    writer = Writer()
    Model(writer).integers(values, len(values), "a")
    return writer.content()


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


@given(matrix=matrices())
def test_matrices_come_back(matrix: tuple[Codes, int]) -> None:
    codes, bits = matrix
    assert np.array_equal(read(written(codes, bits), codes.shape, bits), codes)


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
    reader = Reader(content)
    assert np.array_equal(Model(reader).integers(None, len(numbers), "a"), numbers)
    assert reader.exhausted()


@given(parts=st.lists(matrices() | st.lists(st.integers(-70000, 70000), max_size=40), max_size=6))
def test_a_stream_of_many_parts_comes_back(parts: list[tuple[Codes, int] | list[int]]) -> None:
    writer = Writer()
    model = Model(writer)
    for part in parts:
        if isinstance(part, tuple):
            model.matrix(part[0], *part[0].shape, *code_range(part[1]), f"codes {part[1]}")
        else:
            model.integers(np.array(part, dtype=np.int64), len(part), "floats")
    reader = Reader(writer.content())
    model = Model(reader)
    for part in parts:
        if isinstance(part, tuple):
            back = model.matrix(None, *part[0].shape, *code_range(part[1]), f"codes {part[1]}")
            assert np.array_equal(back, part[0])
        else:
            assert model.integers(None, len(part), "floats").tolist() == part
    assert reader.exhausted()


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
    digest = hashlib.sha256(
        b"".join(entropy._prior(shape).astype("<f8").tobytes() for shape in range(SHAPES))
    )
    assert digest.hexdigest() == "5fe58b0e2a9c8056f2dc765b44f8612344ea74fee8aa8e8ed7d5449f3cb1b9ce"


PINNED_CODES = "5fcccc4c4776332197e01a2ee6b5ea64e0e260fd51de573a4f397d7b47e65e4d73185bae"
PINNED_INTEGERS = (
    "18f60080fa23ff183d9613b61080a6d18ed276db95ead973d2d3fd1e7a80315526e745fdbf3256b46dee0c51e1d96d0c851e"
    "3eaccf3bf1b59f983504efde4b464b219969f30706648aa0b0d9eac41c9fd037212ff8a678b1"
)


def test_words_are_pinned() -> None:
    # As above. The reader is pinned first: a better choice of factors by the writer is no new format.
    small, integers = formula_codes(6, 10, 5), np.arange(40, dtype=np.int64) ** 3 * 8 - 1000
    assert np.array_equal(read(bytes.fromhex(PINNED_CODES), small.shape, 5), small)
    assert np.array_equal(Model(Reader(bytes.fromhex(PINNED_INTEGERS))).integers(None, 40, "a"), integers)
    assert written(small, 5).hex() == PINNED_CODES
    assert written_integers(integers).hex() == PINNED_INTEGERS


@pytest.mark.parametrize(
    ("bits", "digest"),
    [
        (2, "61b47c616a779cd2ca5d789135bc18fb"),
        (3, "dd9cef3b629920efdeecd067ed400690"),
        (4, "aad0bfcc3081ab978bd4890b8cda2f0e"),
        (5, "d9b18817fa728ddc5c39fa4709eaba5f"),
        (6, "1ffe31955a3fff3451579aab53f77e9f"),
        (7, "0979d09bf78eb638ba232ae7b23613be"),
        (8, "6403d0998bcb4815f99640df5eba9377"),
    ],
)
def test_larger_words_are_pinned(bits: int, digest: str) -> None:
    codes = formula_codes(96, 160, bits)
    content = written(codes, bits)
    assert hashlib.sha256(content).hexdigest()[:32] == digest
    assert np.array_equal(read(content, codes.shape, bits), codes)


def test_tables_follow_their_densities() -> None:
    exponents = np.concatenate([np.linspace(0, 60, 4001), [0.5, 1.0, 899.0, 1e300]])
    powers = entropy._power_of_two(exponents)
    assert np.allclose(powers, np.exp2(-np.minimum(exponents, 900.0)), rtol=1e-11, atol=0)
    for shape in range(SHAPES):
        table = entropy._prior(shape)
        assert table.shape == (CLASSES, 256)
        assert np.all(table > 0)
        assert np.allclose(table.sum(axis=1), 64.0)
    codes = np.arange(256) - 128
    normal, laplace = (entropy._prior(shape)[:25] / 64 for shape in (0, SHAPES - 1))
    for table in (normal, laplace):
        # Far from the edges a class has the spread it stands for; rounding to codes adds a twelfth.
        spread = np.sqrt(table @ codes**2)[12:]
        assert np.allclose(spread, np.sqrt(0.125**2 * 2.0 ** (np.arange(12, 25) / 2) + 1 / 12), rtol=0.02)


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
    assert size < 1.015 * ideal_bits(codes, spread, bits)


def test_even_codes_pay_for_no_factors() -> None:
    codes = gaussian(400, 300, 6, 7.0)
    assert 8 * len(written(codes, 6)) < 1.002 * order_0_bits(codes)


def test_small_matrices_cost_little_beside_their_entropy() -> None:
    codes = gaussian(16, 24, 6, 6.0)
    assert 8 * len(written(codes, 6)) < 1.03 * ideal_bits(codes, np.float64(6.0), 6) + 64


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_strange_distributions_are_learned(factor: int) -> None:
    codes = (gaussian(300, 400, 4, 2.0).astype(np.int64) * factor).astype(np.int8)
    assert 8 * len(written(codes, 8)) < 1.02 * order_0_bits(codes)


def test_constant_matrices_cost_next_to_nothing() -> None:
    for value in (0, -32, 31):
        assert len(written(np.full((500, 500), value, dtype=np.int8), 6)) < 250


def test_later_tensors_of_a_kind_gain_from_earlier_ones() -> None:
    codes = (gaussian(40, 60, 4, 2.0) * 3).astype(np.int8)

    def both(second: str) -> int:
        writer = Writer()
        model = Model(writer)
        for kind in ("a", second):
            model.matrix(codes, *codes.shape, *code_range(8), kind)
        return len(writer.content())

    assert both("a") < 0.98 * both("b")


@given(content=st.binary(max_size=120), rows=st.integers(0, 9), columns=st.integers(0, 9), bits=WIDTHS)
def test_foreign_words_give_codes_in_range_or_an_error(
    content: bytes, rows: int, columns: int, bits: int
) -> None:
    content += b"\xff" * 4
    low, high = code_range(bits)
    try:
        model = Model(Reader(content[: len(content) // 4 * 4]))
        codes = model.matrix(None, rows, columns, low, high, "a")
        numbers = model.integers(None, rows, "b")
    except ValueError:
        return
    assert codes.shape == (rows, columns)
    assert numbers.shape == (rows,)
    assert not codes.size or low <= codes.min() <= codes.max() <= high


def test_words_that_code_nothing_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="no code of such values"):
        for seed in range(3000):
            noise = np.random.RandomState(seed).bytes(40)
            Model(Reader(noise)).matrix(None, 5, 5, *code_range(5), "a")
    with pytest.raises(ValueError, match="multiple"):
        Reader(b"123")
