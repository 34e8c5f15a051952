"""Two ledgers of the same text, compared stretch by stretch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import Ledger
from pgolf.study.sides import compare_text


def ledger(path: Path, nats: list[float], targets: int = 10, token: int = 7) -> Path:
    book = Ledger({"targets": targets * len(nats)})
    for index, cost in enumerate(nats):
        book.record(index * targets, np.full(targets, token, np.uint16), cost, 30, "state")
    path.write_bytes(book.content())
    return path


def test_the_difference_by_hand(tmp_path: Path) -> None:
    # Differences -1 and -3 in turns, ten targets each: mean -0.2 a target, error 1 / 10 / sqrt(19).
    old = ledger(tmp_path / "old", [40.0] * 20)
    new = ledger(tmp_path / "new", [39.0, 37.0] * 10)
    found = compare_text(new, old)
    assert found is not None
    assert found.difference == pytest.approx(-0.2)
    assert found.stretches == 20
    assert found.high - found.difference == pytest.approx(2.093024 * 0.1 / math.sqrt(19), rel=1e-5)
    assert found.p < 1e-6
    back = compare_text(old, new)
    assert back is not None
    assert (back.difference, back.low) == pytest.approx((-found.difference, -found.high))


def test_neighbours_that_are_alike_do_not_count_twice(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    steps = np.repeat(random.normal(0, 1, 50), 8)
    old = ledger(tmp_path / "old", [40.0] * 400)
    new = ledger(tmp_path / "new", (40 + steps).tolist())
    found = compare_text(new, old)
    assert found is not None
    assert found.stretches == 50
    wide = (found.high - found.low) / 2
    assert wide == pytest.approx(2.0096 * steps[::8].std(ddof=1) / math.sqrt(50) / 10, rel=1e-3)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    first = ledger(tmp_path / "first", [40.0] * 20)
    assert compare_text(first, ledger(tmp_path / "longer", [40.0] * 21)) is None
    assert compare_text(first, ledger(tmp_path / "other", [40.0] * 20, token=8)) is None
    short = ledger(tmp_path / "short", [40.0] * 9)
    assert compare_text(short, short) is None
    same = compare_text(first, first)
    assert same is not None
    assert (same.difference, same.p) == (0.0, 1.0)
    lines = first.read_text().splitlines()
    first.write_text("\n".join([lines[0], '{"nats": 1}', *lines[2:]]))
    with pytest.raises(PgolfError, match="line 2"):
        compare_text(first, short)
