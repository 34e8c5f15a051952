"""The memory: rows that add up to 1, the same whatever was asked before, exact codes, damaged sections."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pgolf.errors import PgolfError
from pgolf.memory import counts as counted
from pgolf.memory.memory import (
    Memory,
    Probabilities,
    Start,
    Tokens,
    decode_tokens,
    encode_tokens,
    memory_bytes,
)
from pgolf.memory.stored import read_start, start_of, write_start
from pgolf.memory.tree import tree_of
from pgolf.recipe.sections import MemorySection
from tests.unit.memory_stand_ins import cramped, held, model_rows, section, start, sums, text

EXPERTS = ("word", "skip", "document", "match")
SECTIONS = {
    "logistic": section(),
    "one order": section(order=1),
    "orders alone": section(experts=()),
    "long orders": section(order=24),
    "linear": section(mixing="linear"),
    "cramped": cramped(),
    "cramped linear": cramped(mixing="linear"),
}
KINDS = pytest.mark.parametrize("kind", SECTIONS)
SIDES = pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a model"])


def beside_model(beside: bool, previous: int, tokens: Tokens) -> Probabilities | None:
    """What a model says of tokens (n,) after the token before them."""
    return model_rows(np.append(previous, tokens[:-1]).astype(np.uint16)) if beside else None


# ---- distributions


@SIDES
@KINDS
def test_rows_add_up_to_1_in_every_state(kind: str, beside: bool) -> None:
    tokens = text(400)
    memory = Memory(SECTIONS[kind], start(), len(tokens))
    for first in range(0, 400, 50):
        block = tokens[first : first + 50]
        model = beside_model(beside, int(tokens[first - 1]) if first else 0, block)
        rows = memory.distributions(block[:-1], model)
        assert rows.shape == (50, 16) and rows.dtype == np.float32
        assert np.abs(sums(rows) - 1).max() < 1e-6
        losses = memory.losses(block, model)
        assert np.allclose(losses, -rows[np.arange(50), block], atol=1e-6, rtol=1e-6)
        memory.receive(block, model)
    # It has learned, and no row is certain of anything.
    assert np.ptp(rows, axis=1).min() > 0.1 and np.isfinite(rows).all()


@given(st.integers(2, 70), st.integers(0, 99), st.booleans(), st.sampled_from(["logistic", "linear"]))
def test_rows_of_any_vocabulary(vocab_size: int, seed: int, beside: bool, mixing: str) -> None:
    tokens = text(60, seed, vocab_size)
    model = model_rows(tokens[:60], seed, vocab_size) if beside else None
    begin = start(vocab_size, seed, stored=text(seed % 40, seed + 1, vocab_size), trust=(0.2, 0.9))
    memory = Memory(section(mixing=mixing), begin, 60)
    rows, losses = memory.distributions(tokens[:-1], model), memory.losses(tokens, model)
    assert np.abs(sums(rows) - 1).max() < 1e-6
    assert np.allclose(losses, -rows[np.arange(60), tokens], atol=1e-6, rtol=1e-6)


def test_rows_where_a_model_is_certain_or_wrong() -> None:
    tokens, memory = text(200), Memory(section(), start(), 200)
    for wrong in (False, True):
        model = np.zeros((100, 16), np.float32)
        model[np.arange(100), (tokens[:100] + wrong) % 16] = 1
        rows = memory.distributions(tokens[:99], model)
        assert np.isfinite(rows).all() and np.abs(sums(rows) - 1).max() < 1e-6
        memory.receive(tokens[:100], model)


def test_an_expert_that_is_named_twice_is_there_once() -> None:
    once, twice = (Memory(section(experts=names), start(), 9) for names in (("word",), ("word", "word")))
    assert len(once.mixer.keys) == len(twice.mixer.keys)


@SIDES
@KINDS
def test_one_token_at_a_time_gives_the_same_scores(kind: str, beside: bool) -> None:
    tokens = text(150)
    model = beside_model(beside, 0, tokens)
    block, strict = (Memory(SECTIONS[kind], start(), 150) for _ in range(2))
    losses, alone = block.losses(tokens, model), []
    block.receive(tokens, model)
    for place in range(150):
        row = None if model is None else model[place : place + 1]
        alone.append(-strict.distributions(tokens[:0], row)[0, tokens[place]])
        strict.receive(tokens[place : place + 1], row)
    if "linear" in kind:
        assert np.allclose(losses, alone, atol=1e-6, rtol=1e-6)
    else:
        assert losses.tolist() == alone
    assert held(block)[:-1] == held(strict)[:-1]


@SIDES
@KINDS
def test_a_later_token_changes_no_earlier_row(kind: str, beside: bool) -> None:
    tokens = text(120)
    losses, rows = scored(kind, beside, tokens)
    for place in (1, 40, 119):
        other = tokens.copy()
        other[place] = (other[place] + 5) % 16
        others, other_rows = scored(kind, beside, other)
        assert np.array_equal(losses[:place], others[:place])
        assert np.array_equal(rows[: place + 1], other_rows[: place + 1])
        assert not np.array_equal(rows[place + 1 :], other_rows[place + 1 :]) or place == 119


def scored(kind: str, beside: bool, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    memory, model = Memory(SECTIONS[kind], start(), len(tokens)), beside_model(beside, 0, tokens)
    rows = memory.distributions(tokens[:-1], model)
    return memory.losses(tokens, model), rows


# ---- what was asked leaves no traces


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["losses", "rows", "exactly", "snapshot", "restore", "receive", "receive"]),
        st.integers(0, 40),
        st.integers(0, 3),
    ),
    max_size=14,
)


@given(REQUESTS, st.booleans(), st.sampled_from(["logistic", "cramped", "linear", "one order"]))
def test_whatever_is_asked_the_same_text_makes_the_same_memory(
    requests: list[tuple[str, int, int]], beside: bool, kind: str
) -> None:
    tokens = text(140)
    plain, memory = (Memory(SECTIONS[kind], start(), 140 + 40) for _ in range(2))
    done, kept = 0, None
    for what, count, seed in requests:
        block = tokens[done : done + count]
        # Other continuations than the text's, or the text's.
        asked = text(count, seed) if seed else block
        model = beside_model(beside, int(tokens[done - 1]), asked) if len(asked) else None
        if what == "losses" and len(asked):
            memory.losses(asked, model)
        elif what == "rows" and len(asked):
            memory.distributions(asked[:-1], model)
        elif what == "snapshot":
            kept = done, memory.snapshot()
        elif what == "restore" and kept is not None:
            done = kept[0]
            memory.restore(kept[1])
        elif len(block):
            model = beside_model(beside, int(tokens[done - 1]), block)
            if what == "exactly":
                memory.losses(block, model)
            memory.receive(block, model)
            done += len(block)
    for place in range(done):
        token = tokens[place : place + 1]
        plain.receive(token, beside_model(beside, int(tokens[place - 1]), token))
    assert memory.digest() == plain.digest() or not done
    assert held(memory) == held(plain)


@SIDES
@pytest.mark.parametrize("mixing", ["logistic", "linear"])
def test_asking_neither_changes_the_digest_nor_the_answer(mixing: str, beside: bool) -> None:
    tokens = text(200)
    memory = Memory(section(mixing=mixing), start(stored=text(50, 3)), 200)
    memory.receive(tokens[:100], beside_model(beside, 0, tokens[:100]))
    state, digest, model = held(memory), memory.digest(), beside_model(beside, 5, tokens[100:])
    first = memory.losses(tokens[100:], model)
    memory.losses(text(30, 9), beside_model(beside, 5, text(30, 9)))
    memory.distributions(text(20, 8), beside_model(beside, 5, text(21, 8)))
    assert np.array_equal(first, memory.losses(tokens[100:], model))
    assert memory.digest() == digest and held(memory) == state
    memory.distributions(tokens[:0], beside_model(beside, 5, tokens[:1]))
    assert held(memory) == state
    memory.receive(tokens[100:101], beside_model(beside, 5, tokens[100:101]))
    assert memory.digest() != digest and held(memory) != state


def test_two_streams_of_one_text_have_one_digest_and_others_another() -> None:
    tokens = text(50)
    digests = []
    for kind, begin, received, targets in (
        (section(), start(), tokens, 50),
        (section(), start(), tokens, 51),
        (section(), start(stored=tokens[:7]), tokens[7:], 43),
        (section(), start(stored=tokens[:8]), tokens[8:], 43),
        (section(order=4), start(), tokens, 50),
        (section(), start(trust=(0.1, 1.0)), tokens, 50),
        (section(), start(stored=text(10)), tokens, 50),
        (section(), start(seed=1), tokens, 50),
    ):
        memory = Memory(kind, begin, targets)
        memory.receive(received)
        digests.append(memory.digest())
    assert len(set(digests)) == 8
    again = Memory(section(), start(), 50)
    again.receive(tokens[:20])
    again.receive(tokens[20:])
    assert again.digest() == digests[0]


@pytest.mark.parametrize("kind", ["logistic", "linear"])
def test_a_copy_has_read_the_same_and_goes_on_by_itself(kind: str) -> None:
    tokens = text(120)
    memory = Memory(SECTIONS[kind], start(stored=text(30, 2)), 120)
    memory.receive(tokens[:60])
    memory.losses(tokens[60:80])
    copy = memory.copy()
    state = held(memory)
    assert held(copy) == state
    copy.receive(tokens[60:])
    assert held(memory) == state
    memory.receive(tokens[60:])
    assert held(copy) == held(memory) != state


# ---- bounded memory


def test_a_full_memory_drops_contexts_and_stays_within_its_size() -> None:
    tokens = text(3000)
    memory, roomy = Memory(cramped(), start(), 3000), Memory(section(), start(), 3000)
    sizes = [array.nbytes for array in memory.mixer.counts[:4]]
    for first in range(0, 3000, 500):
        memory.receive(tokens[first : first + 500])
        roomy.receive(tokens[first : first + 500])
    table = memory.mixer.counts.table
    assert np.count_nonzero(table[::2]) > 0.95 * len(table) / 2, "it is full"
    assert np.count_nonzero(roomy.mixer.counts.table[::2]) > 2 * np.count_nonzero(table[::2])
    assert [array.nbytes for array in memory.mixer.counts[:4]] == sizes
    assert sum(sizes) < 1.01 * cramped().max_bytes
    again = Memory(cramped(), start(), 3000)
    again.receive(tokens)
    assert held(again)[:-1] == held(memory)[:-1]


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 60), st.integers(1, 9))
def test_counts_are_those_of_a_dictionary_whatever_makes_room(
    seed: int, contexts: int, successors: int, tokens: int
) -> None:
    """Counts add up to their total, blocks of the arena never overlap, and undo brings everything back."""
    generator = np.random.default_rng(seed)
    counts = counted.new_counts(contexts, successors, 4, 1 << 12)
    keys = generator.integers(0, 2**63, 24).astype(np.uint64) * np.uint64(2) + np.uint64(1)
    known: dict[int, dict[int, int]] = {int(key): {} for key in keys}
    before: list[bytes] = []
    for step in range(60):
        if step == 30:
            before = [array.tobytes() for array in counts[:4]]
            counted.begin_journal(counts)
        key, token = keys[generator.integers(24)], int(generator.integers(tokens))
        counted.add(counts, key, counted.find(counts, key), token)
        known[int(key)][token] = known[int(key)].get(token, 0) + 1
    used: list[int] = []
    for key in keys:
        slot = counted.find(counts, key)
        if slot < 0:
            continue
        first, number, total = counted.successors(counts, slot)
        found = dict(counted.successor(counts, slot, first, index) for index in range(number))
        assert len(found) == number and sum(found.values()) == total > 0
        assert all(count <= known[int(key)].get(token, 0) for token, count in found.items())
        used += range(first, first + number) if first >= 0 else []
    assert len(set(used)) == len(used) and max(used, default=0) <= successors
    counted.undo(counts)
    after = [array.tobytes() for array in counts[:4]]
    # The journal's own place is not part of the counts.
    assert after[0] == before[0] and after[1] == before[1] and after[3] == before[3]
    assert after[2][:-8] == before[2][:-8]


def test_without_eviction_the_counts_are_exact() -> None:
    generator, counts = np.random.default_rng(0), counted.new_counts(4096, 4096, 1, 1)
    known: dict[int, dict[int, int]] = {}
    for _ in range(3000):
        key = int(generator.integers(1, 200)) * 0x9E3779B97F4A7C15 % 2**64
        token = int(generator.zipf(1.3)) % 50
        knew = counted.add(counts, np.uint64(key), -1, token)
        assert knew == (token in known.get(key, {}))
        known.setdefault(key, {})[token] = known.get(key, {}).get(token, 0) + 1
    for key, expected in known.items():
        slot = counted.find(counts, np.uint64(key))
        first, number, total = counted.successors(counts, slot)
        assert dict(counted.successor(counts, slot, first, index) for index in range(number)) == expected
        assert total == sum(expected.values())


def test_a_count_stops_at_its_largest() -> None:
    counts = counted.new_counts(8, 8, 1, 1)
    counts.table[:] = 0
    for token in (3, 4):
        for _ in range(counted.MOST + 5):
            counted.add(counts, np.uint64(77), -1, token)
    slot = counted.find(counts, np.uint64(77))
    first, number, total = counted.successors(counts, slot)
    assert [counted.successor(counts, slot, first, index) for index in range(number)] == [
        (4, counted.MOST),
        (3, counted.MOST),
    ]
    assert total == 2 * counted.MOST


def test_the_size_is_announced_and_bounded() -> None:
    small = memory_bytes(section(), 16, 1000)
    assert small < memory_bytes(section(), 16, 100_000) < memory_bytes(section(), 16, 10_000_000)
    bounded = MemorySection(max_bytes=32_000_000)
    # Also of more than it has room for: that is said where the text is known.
    assert memory_bytes(bounded, 1024, 1 << 26) < 1.1 * 32_000_000
    assert memory_bytes(bounded, 1024, 2_000_000) < 1.1 * 32_000_000
    with pytest.raises(PgolfError, match=r"memory\.max_bytes.*allow 2,032,000,000"):
        Memory(bounded, start(), 10**9)


# ---- codes


@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(0, 300), st.booleans())
def test_what_is_encoded_decodes(seed: int, vocab_size: int, count: int, full: bool) -> None:
    tokens, kind = text(count, seed, vocab_size), cramped() if full else section()
    coded = encode_tokens(kind, start(vocab_size, seed), tokens)
    assert np.array_equal(decode_tokens(kind, start(vocab_size, seed), coded, count), tokens)


def test_a_code_is_as_short_as_the_losses_say() -> None:
    tokens = text(2000)
    nats = Memory(section(), start(), 2000).losses(tokens).sum(dtype=np.float64)
    coded = encode_tokens(section(), start(), tokens)
    assert abs(8 * len(coded) - nats / np.log(2)) < 0.005 * 8 * len(coded) + 32
    repeated = np.tile(tokens[:100], 20)
    assert len(encode_tokens(section(), start(), repeated)) < 0.2 * len(coded)


def test_text_that_repeats_itself_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes fewer bytes than a reader believes a section that may be hostile."""
    monkeypatch.setattr("pgolf.memory.stored._MOST_TOKENS", 0)
    tokens = np.zeros(40_000, np.uint16)
    assert len(encode_tokens(section(), start(), tokens)) < 40_000 / 1024
    content = write_start(section(), start(stored=tokens))
    assert np.array_equal(read_start(section(), content, 16, "here").stored, tokens)


def test_any_bytes_decode_to_some_tokens() -> None:
    for coded in (b"", b"\0" * 50, b"\xff" * 50, np.random.default_rng(0).bytes(50)):
        tokens = decode_tokens(section(), start(), coded, 300)
        assert len(tokens) == 300 and tokens.max() < 16


# ---- the section of an artifact


@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(0, 80))
def test_a_section_is_read_as_it_was_written(seed: int, vocab_size: int, count: int) -> None:
    begin = start(vocab_size, seed, stored=text(count, seed, vocab_size), trust=(0.25, 0.75))
    again = read_start(section(), write_start(section(), begin), vocab_size, "here")
    assert again.bos == begin.bos and again.trust == begin.trust
    for name in ("leaves", "levels", "starts", "stored"):
        one, other = getattr(begin, name), getattr(again, name)
        assert np.array_equal(one, other) and one.dtype == other.dtype, name


def test_leaves_are_alphabetical_and_levels_frequencies() -> None:
    pieces = ["b", "<s>", "\u2581a", "ab", ".", "a"]
    begin = start_of(pieces, 1, np.array([5, 5, 5, 5, 0], np.uint16))
    assert [pieces[token] for token in begin.leaves] == sorted(pieces)
    assert begin.levels.tolist() == [1, 0, 0, 0, 0, 2]
    assert begin.starts.tolist() == [False, True, True, False, True, False]
    assert len(begin.stored) == 0


def packed(about: bytes, coded: bytes = bytes(40)) -> bytes:
    content = zstandard.ZstdCompressor().compress(about)
    return len(content).to_bytes(4, "little") + content + coded


def about(
    known: int = 20, bos: int = 1, tokens: int = 30, trust: float = 0.5, leaves: int = 0, check: int = 0
) -> bytes:
    numbers = struct.pack("<IIIIff", known, bos, tokens, check, trust, 0.5)
    order = (np.arange(20) + leaves).astype("<u2")
    return numbers + order.tobytes() + bytes(20)


DAMAGED = {
    "empty": b"",
    "no size": b"\1\0",
    "size only": b"\1\0\0\0",
    "size too large": (10**9).to_bytes(4, "little") + packed(about())[4:],
    "no zstd": packed(about())[:4] + bytes(80),
    "claims much": packed(bytes(10**7)),
    "short": packed(about()[:15]),
    "leaves cut": packed(about()[:40]),
    "half a leaf": packed(about()[:41]),
    "levels cut": packed(about()[:-1]),
    "longer": packed(about() + b"1"),
    "another vocabulary": packed(about(known=19)),
    "a larger vocabulary": packed(about(known=2**32 - 1)),
    "no such token": packed(about(bos=20)),
    "a leaf twice": packed(about(leaves=-1 % 2**16)),
    "too many tokens": packed(about(tokens=2**32 - 1)),
    "no number": packed(about(trust=float("nan"))),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_section_is_one_clear_line(what: str) -> None:
    with pytest.raises(PgolfError, match=r"^model\.pgolf: ") as error:
        read_start(section(), DAMAGED[what], 20, "model.pgolf")
    assert "\n" not in str(error.value) and "memory" in str(error.value)
    if "vocabulary" in what:
        assert "its memory knows" in str(error.value) and "but its model 20" in str(error.value)


def test_the_same_section_undamaged() -> None:
    plain = Start(np.arange(20, dtype=np.uint16), np.zeros(20, np.uint8), np.zeros(20, np.bool_))
    tokens = decode_tokens(section(), plain, bytes(40), 30)
    content = packed(about(check=zlib.crc32(tokens.tobytes())))
    assert np.array_equal(read_start(section(), content, 20, "model.pgolf").stored, tokens)
    with pytest.raises(PgolfError, match="something else than was written"):
        read_start(section(), content[:-40] + b"\xff" * 40, 20, "model.pgolf")


@given(st.integers(0, 10**6))
def test_no_damage_is_more_than_a_clear_line(seed: int) -> None:
    """Or the section is sound all the same; every change of an artifact is noticed by its digests."""
    generator = np.random.default_rng(seed)
    begin = start(20, stored=text(40, vocab_size=20))
    content = bytearray(write_start(section(), begin))
    for place in generator.integers(0, len(content), 3):
        content[place] ^= 1 << generator.integers(8)
    damaged = bytes(content[: generator.integers(len(content))] if seed % 3 == 0 else content)
    try:
        again = read_start(section(), damaged, 20, "here")
    except PgolfError as error:
        assert "\n" not in str(error)
        return
    assert sorted(again.leaves) == list(range(20)) and np.array_equal(again.stored, begin.stored)


# ---- the tree


@given(
    st.sampled_from([2, 3, 4, 5, 64, 300]),
    st.integers(0, 99),
    st.sampled_from(["equal", "steep", "one", "huge", "none", "mixed"]),
)
def test_paths_are_prefix_free_and_short(size: int, seed: int, kind: str) -> None:
    check_tree(size, seed, kind)


@pytest.mark.parametrize("kind", ["equal", "steep", "one", "huge"])
def test_paths_of_the_largest_vocabulary(kind: str) -> None:
    check_tree(65_536, 0, kind)


def check_tree(size: int, seed: int, kind: str) -> None:
    generator = np.random.default_rng(seed)
    leaves = generator.permutation(size)
    weights = {
        "equal": np.ones(size),
        "steep": 2.0 ** -np.arange(size).clip(max=1000),
        "one": np.eye(1, size, seed % size)[0],
        "huge": 2.0 ** generator.integers(0, 127, size),
        "none": np.zeros(size),
        "mixed": 2.0 ** generator.integers(0, 20, size),
    }[kind]
    tree = tree_of(leaves, weights)
    assert len(tree.code) == size and len(tree.child) == size - 1
    depths = np.zeros(size, np.int64)
    # Level by level: inner nodes, and the bits that led to them.
    nodes, paths, depth = np.array([0]), np.array([0], np.uint32), 0
    while len(nodes):
        assert depth < 32
        children = tree.child[nodes]
        below = np.stack([paths, paths | np.uint32(1 << (31 - depth))], 1)
        is_leaf = children < 0
        tokens = ~children[is_leaf]
        assert np.array_equal(tree.code[tokens], below[is_leaf])
        depths[tokens] += depth + 1
        nodes, paths, depth = children[~is_leaf], below[~is_leaf], depth + 1
    # Every token is a leaf, once (Kraft's sum of a full tree is 1).
    assert (depths > 0).all() and np.ldexp(1.0, -depths).sum() == 1
    assert np.array_equal(tree.leaf, leaves)
    assert np.array_equal(np.argsort(tree.code), leaves), "leaves from left to right"
    middle = tree.span[:, 1]
    assert (tree.span[:, 0] < middle).all() and (middle < tree.span[:, 2]).all()
    if kind == "one" and size > 3:
        assert depths[seed % size] <= 3


# ---- never worse


# Bits in all, for not knowing at first what is better; and bits per token, for not being sure of it.
AT_FIRST, PER_TOKEN = 1.01, 2e-5


@pytest.mark.parametrize("mixing", ["logistic", "linear"])
@pytest.mark.parametrize("kind", ["uniform", "certain", "calibrated"])
def test_beside_a_model_that_nothing_improves(kind: str, mixing: str) -> None:
    """Random tokens from the model's own distribution: nothing can be better than the model."""
    count, size = 6000, 32
    generator = np.random.default_rng(5)
    scale = {"uniform": 0.0, "certain": 30.0, "calibrated": 2.0}[kind]
    logits = scale * generator.standard_normal((count, size))
    model = np.exp(logits - logits.max(1, keepdims=True))
    model /= model.sum(1, keepdims=True)
    drawn = (model.cumsum(1) < generator.random((count, 1))).sum(1).clip(max=size - 1)
    tokens = drawn.astype(np.uint16)
    memory = Memory(section(mixing=mixing), start(size), count)
    rows = model.astype(np.float32)
    bits = memory.losses(tokens, rows).sum(dtype=np.float64) / np.log(2)
    alone = -np.log2(rows[np.arange(count), tokens], dtype=np.float64).sum()
    assert bits <= alone + AT_FIRST + PER_TOKEN * count


@given(st.integers(0, 10**6), st.sampled_from(["logistic", "linear", "cramped"]))
def test_beside_any_model_and_any_text(seed: int, kind: str) -> None:
    """Nor does it matter whether the model is any good, or how many tokens there are."""
    tokens = text(1 + seed % 200, seed)
    model = model_rows(np.append(0, tokens[:-1]).astype(np.uint16), seed)
    nats = Memory(SECTIONS[kind], start(trust=(3.0, -1.0)), len(tokens)).losses(tokens, model)
    alone = -np.log(model[np.arange(len(tokens)), tokens].astype(np.float64)).sum()
    assert nats.sum(dtype=np.float64) <= alone + np.log(2) * (AT_FIRST + PER_TOKEN * len(tokens))


def test_more_tokens_than_were_announced_are_refused() -> None:
    memory = Memory(section(), start(), 10)
    memory.receive(text(10))
    with pytest.raises(AssertionError, match="announced"):
        memory.losses(text(1))
    with pytest.raises(AssertionError, match="vocabulary"):
        Memory(section(), start(), 10).receive(np.array([16], np.uint16))
