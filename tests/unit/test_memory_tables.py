"""What a memory wins: contexts that were known, and bits by them and by place, add up to the difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pgolf.evaluate.ledger import Ledger
from pgolf.memory.contexts import look
from pgolf.memory.memory import Memory
from pgolf.memory.stored import start_of
from pgolf.recipe.sections import MemorySection
from pgolf.report.memory_tables import known_orders, order_table, place_table
from pgolf.report.text_analysis import TargetCosts

LN2 = float(np.log(2))


def test_known_contexts_by_hand() -> None:
    # Before the second "1 2 3" only its own tokens were met: none, 1, 1 2, up to two of 1 2 3.
    text = np.array([1, 2, 3, 4, 1, 2, 3, 9], np.uint16)
    assert known_orders(text, 2).tolist() == [-1, 0, 0, 0, 0, 1, 2, 2]
    assert known_orders(text, 6).tolist() == [-1, 0, 0, 0, 0, 1, 2, 3]
    assert known_orders(text[:0], 3).tolist() == [] and known_orders(text[:1], 3).tolist() == [-1]


def test_known_contexts_are_those_that_the_memory_finds() -> None:
    text, order = np.random.default_rng(0).integers(2, 5, 200).astype(np.uint16), 5
    section = MemorySection(order=order, experts=(), max_bytes=32_000_000)
    memory = Memory(section, start_of(list("abcdef"), 1, text[:0]), len(text))
    found = []
    for token in text:
        look(memory.mixer)
        found.append(max([each for each in range(order + 1) if memory.mixer.slots[each] >= 0], default=-1))
        memory.receive(np.array([token], np.uint16))
    # What stands before the stream's first token is a context of its own to the memory.
    assert found[order:] == known_orders(text, order)[order:].tolist()


def costs(nats: list[float], tokens: list[int]) -> TargetCosts:
    sizes = np.full(len(nats), 2)
    return TargetCosts(
        "artifact", "ttt", np.array(tokens, np.uint16), np.array(nats), sizes, len(nats), "", False
    )


def test_bits_won_by_order() -> None:
    without = costs([4 * LN2] * 5, [1, 2, 3, 2, 3, 2])
    mixed = replace(without, nats=np.array([4.0, 5, 3, 2, 1]) * LN2)
    rows = {row[0]: row[1:] for row in order_table(without, mixed, np.array([], np.uint16), 2).rows}
    # Targets 2 3 2 after 1 know nothing but what tokens there are; the last two know one and two tokens.
    assert rows == {
        "0": [3, 6, 2.0, pytest.approx(2.0), 0, 0.0],
        "1": [1, 2, 2.0, pytest.approx(1.0), 2, pytest.approx(0.4)],
        "2 or more": [1, 2, 2.0, pytest.approx(0.5), 3, pytest.approx(0.6)],
    }
    # Stored text is known from the start.
    stored = order_table(without, mixed, np.array([9, 1, 2, 3], np.uint16), 2).rows
    assert [row[:2] for row in stored] == [["1", 2], ["2 or more", 3]]


def test_bits_won_by_place_where_the_ledgers_are_cut_differently() -> None:
    books = []
    for size, cost in ((4, 3.0), (6, 2.0)):
        book = Ledger({"targets": 240})
        for first in range(0, 240, size):
            # The second half costs the double in the first ledger alone.
            nats = size * cost * (2 if first >= 120 and size == 4 else 1) * LN2
            book.record(first, np.ones(size, np.uint16), nats, size, "state")
        books.append(book.entries)
    table = place_table(*books)
    assert (table.rows[0][0], table.rows[-1][0]) == ("0 to 10 %", "90 to 100 %")
    assert [row[1] for row in table.rows] == [24] * 10
    assert [row[3] for row in table.rows] == pytest.approx([3.0] * 5 + [6.0] * 5)
    assert [row[4] for row in table.rows] == pytest.approx([2.0] * 10)
    assert [row[5] for row in table.rows] == [24] * 5 + [96] * 5
    assert sum(row[6] for row in table.rows) == pytest.approx(1)  # type: ignore[misc]
