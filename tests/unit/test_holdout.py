"""What is held out: by the text alone, never everything, never nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pgolf.data.encode import choose_held_out, cut_end, document_number
from pgolf.errors import PgolfError

FRACTIONS = st.one_of(st.floats(1e-12, 0.999999), st.sampled_from([1e-9, 0.01, 0.1, 0.5, 1 - 1e-9]))
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=30, unique=True
)


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


def _near(head: bytes, tail: bytes, fraction: float) -> bool:
    """Twice the wanted share is too much, half of it too little; a word or so does not matter."""
    size = len(head) + len(tail)
    wanted = math.ceil(fraction * size)
    return wanted / 2 <= len(tail) <= max(2 * wanted, wanted + 64) and len(head) >= (size - wanted) / 2


ROWS = st.text(st.sampled_from("ab \n\n\r\u00e9\u3000"), max_size=60)
# Lines and words of any length, as titles, tables and minified files have them.
LONG = st.lists(st.tuples(st.integers(1, 3000), st.sampled_from("\n\n \t")), max_size=12).map(
    lambda parts: "".join("\u00e9" * size + end for size, end in parts)
)


@given(ROWS | LONG, FRACTIONS)
def test_a_single_document_is_cut_near_the_wanted_share_and_nothing_is_lost(
    text: str, fraction: float
) -> None:
    full = [line for line in text.split("\n") if line and not line.isspace()]
    assume(full)
    if len(full) < 2:
        with pytest.raises(PgolfError, match=r"single document of one line.*--val-text"):
            choose_held_out([text], fraction)
        return
    data = text.encode()
    wanted = len(data) - math.ceil(fraction * len(data))
    cuts = {ends: _cuts(data, ends, fraction) for ends in (b"\n", b"\n\r\t ")}
    try:
        (_, head), (_, tail) = choose_held_out([text] * 3, fraction).pieces(text)
    except PgolfError as error:
        assert "near the last" in str(error) and "--val-text" in str(error)
        assert not any(place <= wanted for places in cuts.values() for place in places)
        return
    assert (head, tail) == cut_end(text, fraction)
    assert head + tail == text and head.strip() and tail.strip()
    assert _near(head.encode(), tail.encode(), fraction)
    ends = next(ends for ends, places in cuts.items() if len(head.encode()) in places)
    if len(head.encode()) <= wanted:
        assert len(head.encode()) == max(place for place in cuts[ends] if place <= wanted), (
            "no more than is asked for"
        )


def _cuts(data: bytes, ends: bytes, fraction: float) -> list[int]:
    """Every place to cut that would do."""
    return [
        place
        for place in range(1, len(data))
        if data[place - 1] in ends
        and data[:place].decode().strip()
        and data[place:].decode().strip()
        and _near(data[:place], data[place:], fraction)
    ]


def test_a_title_and_a_long_line() -> None:
    text = "Title\n" + "word " * 23_400
    head, tail = cut_end(text, 0.1)
    assert head + tail == text and tail.startswith("word ") and 11_700 <= len(tail.encode()) < 11_706
    with pytest.raises(PgolfError, match=r"book\.txt: .* no line end .* near the last 11,701 of its 117,006"):
        choose_held_out(["Title\n" + "x" * 117_000], 0.1, "book.txt")


def test_reading_stops_when_both_sides_have_a_document() -> None:
    texts = iter([f"document {number}" for number in range(1000)])
    choose_held_out(texts, 0.5)
    assert len(list(texts)) > 900


def test_nothing_is_held_out_by_default_and_nothing_is_read() -> None:
    assert choose_held_out(iter(()), 0.0).pieces("text") == [("train", "text")]
    with pytest.raises(PgolfError, match="holds no documents"):
        choose_held_out(["", ""], 0.1)
