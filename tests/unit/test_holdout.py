"""What is held out: by the text alone, never everything, never nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pgolf.data.holdout import choose_held_out, cut_at_line, document_number
from pgolf.errors import PgolfError

FRACTIONS = st.one_of(st.floats(1e-12, 0.999999), st.sampled_from([1e-9, 0.01, 0.1, 0.5, 1 - 1e-9]))
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=30, unique=True)


@given(TEXTS, FRACTIONS, st.randoms())
def test_sides_do_not_depend_on_the_order_and_both_have_a_document(
    texts: list[str], fraction: float, random: object
) -> None:
    shuffled = [*texts, ""]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    sides = {text: choose_held_out(texts, fraction).pieces(text) for text in texts}
    again = choose_held_out(shuffled, fraction)
    assert sides == {text: again.pieces(text) for text in texts}
    assert all(len(pieces) == 1 and pieces[0][1] == text for text, pieces in sides.items())
    held = {text for text, ((side, _),) in sides.items() if side == "val"}
    assert 0 < len(held) < len(texts)
    expected = {text for text in texts if document_number(text) < fraction * 2**64}
    if 0 < len(expected) < len(texts):
        assert held == expected
    else:
        ordered = sorted(texts, key=document_number)
        assert held == set(ordered[:1] if not expected else ordered[:-1])


@given(st.text(st.sampled_from("ab \n\n\r\u00e9\u3000"), max_size=60), FRACTIONS)
def test_a_single_document_is_cut_at_a_line_and_nothing_is_lost(text: str, fraction: float) -> None:
    lines = text.encode().splitlines(keepends=True) if "\r" not in text else None
    full = [line for line in text.split("\n") if line and not line.isspace()]
    assume(full)
    if len(full) < 2:
        with pytest.raises(PgolfError, match=r"single document of one line.*--val-text"):
            choose_held_out([text], fraction)
        return
    for copies in (1, 3):
        (_, head), (_, tail) = choose_held_out([text] * copies, fraction).pieces(text)
        assert (head, tail) == cut_at_line(text, fraction)
    assert head + tail == text and head.endswith("\n")
    assert head.strip() and tail.strip()
    wanted = math.ceil(fraction * len(text.encode()))
    if len(tail.encode()) < wanted:
        assert len([line for line in head.split("\n") if line.strip()]) == 1, "only the first line is kept"
    if lines is not None:
        shorter = tail.partition("\n")[2]
        assert not shorter.strip() or len(shorter.encode()) < wanted, "no more than is asked for"


def test_reading_stops_when_both_sides_have_a_document() -> None:
    texts = iter([f"document {number}" for number in range(1000)])
    choose_held_out(texts, 0.5)
    assert len(list(texts)) > 900


def test_nothing_is_held_out_by_default_and_nothing_is_read() -> None:
    assert choose_held_out(iter(()), 0.0).pieces("text") == [("train", "text")]
    with pytest.raises(PgolfError, match="holds no documents"):
        choose_held_out(["", ""], 0.1)
