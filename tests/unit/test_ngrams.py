"""Counts of n-grams: which are chosen, their code, and what a memory makes of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.audit.held import held_by, held_text
from pgolf.errors import PgolfError
from pgolf.memory.memory import Memory, Start, Tokens, decode_ngrams, encode_ngrams
from pgolf.memory.ngrams import LONGEST, TIMES
from pgolf.memory.pruning import Candidates, nearest
from pgolf.memory.stored import read_section, read_start, start_of, write_start
from pgolf.recipe.sections import MemorySection

SIZE = 40
SECTION = MemorySection(order=4, experts=("word", "match"), max_bytes=64_000_000, stored="both")


def text_of(seed: int, count: int = 6000) -> Tokens:
    """Tokens that often follow each other as they did before."""
    generator, succession = np.random.default_rng(seed), np.random.default_rng(7)
    likely = succession.integers(2, SIZE, (SIZE, SIZE))
    text = [1, 5]
    while len(text) < count:
        usual = generator.random() < 0.7
        text.append(int(likely[text[-2], text[-1]] if usual else generator.integers(1, SIZE)))
    return np.array(text, np.uint16)


def start_for(text: Tokens) -> Start:
    return start_of([chr(97 + 7 * token % SIZE) for token in range(SIZE)], 1, text)


TEXT = text_of(1)
START = start_for(TEXT)
ROWS = encode_ngrams(START, Candidates(START, TEXT).best(400))[1]


def grams(start: Start, rows: np.ndarray) -> dict[tuple[int, ...], int]:
    """The n-grams of rows, and their counts as they are told apart."""
    found: list[tuple[int, ...]] = []
    for index, (parent, leaf, _) in enumerate(rows.tolist()):
        before = found[parent] if index >= start.vocab_size else ()
        found.append((*before, int(start.leaves[leaf])))
    return dict(zip(found, rows[:, 2].tolist(), strict=True))


@given(seed=st.integers(0, 10**6), count=st.integers(0, 3000), length=st.integers(30, 4000))
def test_n_grams_come_back_as_they_were(seed: int, count: int, length: int) -> None:
    text = text_of(seed, length)
    start = start_for(text)
    rows = Candidates(start, text).best(count)
    coded, written = encode_ngrams(start, rows)
    assert np.array_equal(written[:, :2], rows[:, :2])
    assert np.array_equal(written[SIZE:], rows[SIZE:])
    again = decode_ngrams(start, coded, len(rows))
    assert again is not None
    assert np.array_equal(again, written)


def test_those_chosen_are_frequent_and_so_is_what_they_begin_with() -> None:
    chosen = grams(START, ROWS)
    assert len(chosen) == len(ROWS)
    assert {len(gram) for gram in chosen} >= {1, 2, 3}
    for length in range(2, LONGEST + 1):
        places = range(len(TEXT) - length + 1)
        counted = Counter(tuple(TEXT[at : at + length].tolist()) for at in places)
        for gram in (gram for gram in chosen if len(gram) == length):
            assert chosen[gram] == nearest(np.array([counted[gram]]))[0] >= 1
            assert gram[:-1] in chosen


def test_more_bytes_hold_more_and_never_more_than_asked() -> None:
    candidates = Candidates(START, TEXT)
    sizes = []
    for limit in (300, 600, 1200):
        rows, size = candidates.within(limit)
        assert 0.9 * limit < size <= limit
        assert size == len(encode_ngrams(START, rows)[0])
        sizes.append(len(rows))
    assert sizes[0] < sizes[1] < sizes[2]
    assert candidates.within(3)[1] == len(candidates.within(3)[0]) == 0


@pytest.mark.parametrize("mixing", ["logistic", "linear"])
def test_a_memory_with_counts_is_valid_and_predicts_better(mixing: str) -> None:
    section, other = SECTION.model_copy(update={"mixing": mixing}), text_of(2, 400)
    nats = []
    for start in (START, replace(START, ngrams=ROWS)):
        blocks, single = Memory(section, start, len(other)), Memory(section, start, len(other))
        nats.append(blocks.losses(other))
        one_by_one = []
        for place in range(len(other)):
            one_by_one.append(single.losses(other[place : place + 1]))
            single.receive(other[place : place + 1])
        assert np.array_equal(nats[-1], np.concatenate(one_by_one))
        rows = blocks.distributions(other[:50])
        assert np.allclose(np.exp(rows.astype(np.float64)).sum(1), 1, atol=1e-5)
        assert np.allclose(-rows[np.arange(50), other[:50]], nats[-1][:50], atol=1e-5)
        digest, before = blocks.digest(), blocks.snapshot()
        blocks.receive(other)
        assert blocks.digest() == single.digest() != digest
        blocks.restore(before)
        assert np.array_equal(blocks.losses(other), nats[-1])
    assert nats[1].mean() < nats[0].mean() - 0.3
    assert Memory(section, START, 9).digest() != Memory(section, replace(START, ngrams=ROWS), 9).digest()


def test_longer_n_grams_than_the_memory_has_contexts_are_left_out() -> None:
    short = SECTION.model_copy(update={"order": 1})
    pairs = ROWS[: 1 + int(np.flatnonzero(ROWS[:, 0] < SIZE).max())]
    other = text_of(2, 300)
    both = [Memory(short, replace(START, ngrams=rows), 300).losses(other) for rows in (ROWS, pairs)]
    assert np.array_equal(*both)


def test_counts_are_loaded_where_there_is_hardly_any_text() -> None:
    """N-grams are written into the text, one after the other, while they are counted."""
    content = write_start(SECTION, replace(START, ngrams=ROWS))
    start = read_start(SECTION, content, SIZE, "here")
    assert len(start.stored) == 0
    assert len(Memory(SECTION, start, 1).mixer.text) >= LONGEST - 1


def test_text_is_coded_with_the_counts_that_are_read_back() -> None:
    given = Candidates(START, TEXT).best(400)
    given[:SIZE, 2] = 0  # Tokens by themselves are as frequent as their levels say, at least.
    content = write_start(SECTION, replace(START, ngrams=given, stored=TEXT[:500]))
    back = read_start(SECTION, content, SIZE, "here")
    assert np.array_equal(back.stored, TEXT[:500])
    assert not np.array_equal(back.ngrams, given)


def test_the_section_keeps_counts_and_text_and_notices_damage() -> None:
    start = replace(START, ngrams=ROWS, stored=TEXT[:500])
    content = write_start(SECTION, start)
    assert write_start(SECTION, start) == content
    back = read_start(SECTION, content, SIZE, "here")
    assert np.array_equal(back.ngrams, ROWS)
    assert np.array_equal(back.stored, TEXT[:500])
    found = read_section(content, SIZE, "here")
    assert found.ngrams[0] == len(ROWS)
    # Text after counts takes fewer bytes than alone.
    alone = write_start(SECTION, replace(start, ngrams=ROWS[:0]))
    assert len(found.coded) < len(read_section(alone, SIZE, "here").coded) - 20
    end = content.index(found.coded_ngrams)
    for place in (end, end + 40, end + len(found.coded_ngrams) - 8):
        damaged = content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]
        with pytest.raises(PgolfError, match="here: the memory's counts decode to something else"):
            read_start(SECTION, damaged, SIZE, "here")


@pytest.mark.parametrize("rows", [1, SIZE - 1, 1 << 31])
def test_a_section_that_claims_too_many_n_grams_is_refused(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgolf.memory.memory.encode_ngrams", lambda start, ngrams: (bytes(99), range(rows)))
    monkeypatch.setattr("pgolf.memory.stored._check", lambda numbers, kind: 0)
    content = write_start(SECTION, replace(START, ngrams=ROWS), b"")
    with pytest.raises(PgolfError, match="here: the memory's section makes no sense"):
        read_start(SECTION, content, SIZE, "here")


@given(st.binary(max_size=300), st.integers(SIZE, 4000))
def test_any_bytes_decode_to_n_grams_or_to_none(coded: bytes, count: int) -> None:
    rows = decode_ngrams(START, coded, count)
    assert rows is None or (len(rows) == count and int(rows[:, 2].max()) < len(TIMES))


def test_tokens_are_as_frequent_as_can_be_told_at_most() -> None:
    start = replace(START, levels=np.full(SIZE, 127, np.uint8))  # No text is so long; a damaged section is.
    coded, written = encode_ngrams(start, ROWS)
    assert int(written[:, 2].max()) == len(TIMES) - 1
    assert np.array_equal(decode_ngrams(start, coded, len(ROWS)), written)


def test_counts_of_the_scored_text_are_a_violation() -> None:
    scored = text_of(3)
    for text, wrong in ((TEXT, False), (scored, True)):
        start = start_for(text)
        rows = Candidates(start, text).best(2000)
        finding = held_text(held_by(SimpleNamespace(start=replace(start, ngrams=rows))), scored)
        assert finding.passed == (not wrong)
        assert "as frequent in the text" in finding.evidence


def test_a_few_counts_or_little_text_cannot_be_compared() -> None:
    text = (TEXT % 16).astype(np.uint16)
    few = start_of([chr(97 + token) for token in range(16)], 1, text)
    rows = np.array([[0, leaf, 3] for leaf in range(16)], np.uint32)
    for parents in (range(16, 32), range(32, 48), range(48, 64)):
        rows = np.concatenate([rows, [[parent - 16, parent % 16, 2] for parent in parents]])
    for ngrams, scored in ((rows, text), (rows, text[:2])):
        finding = held_text(
            held_by(SimpleNamespace(start=replace(few, ngrams=ngrams.astype(np.uint32)))), scored
        )
        assert finding.passed and "as frequent" not in finding.evidence
