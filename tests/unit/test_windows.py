"""Window plans: every target once, with enough context, in the right chunk."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgolf.evaluate.windows import Window, sliding_windows, standard_windows, windows_by_chunk

Plan = tuple[int, int, int, int]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Targets, length, stride, chunk: tails that fit nothing, streams shorter than a window, tiny chunks."""
    length = draw(st.integers(1, 40))
    stride = draw(st.integers(1, length))
    return draw(st.integers(1, 300)), length, stride, draw(st.integers(1, 120))


@given(plans())
@example((5, 16, 4, 8))
@example((100, 16, 16, 7))
@example((65, 16, 3, 32))
def test_every_target_is_scored_once_with_enough_context(plan: Plan) -> None:
    targets, length, stride, _ = plan
    windows = sliding_windows(targets, length, stride)
    assert [t for window in windows for t in range(window.first, window.end)] == list(range(targets))
    for start, end, first in windows:
        assert 0 <= start <= first < end <= targets
        assert end - start <= length
        assert first - start >= min(first, length - stride)
        assert start % stride == 0


@given(plans())
@example((200, 16, 4, 5))
def test_chunks_keep_the_order_and_are_scored_when_their_windows_are(plan: Plan) -> None:
    targets, length, stride, size = plan
    windows = sliding_windows(targets, length, stride)
    chunks = windows_by_chunk(windows, targets, size)
    assert (len(chunks) - 1) * size < targets <= len(chunks) * size
    assert [window for chunk in chunks for window in chunk] == windows
    scored = 0
    for index, chunk in enumerate(chunks):
        assert all(index * size <= window.first < (index + 1) * size for window in chunk)
        scored = max([scored, *(window.end for window in chunk)])
        # What makes it legal to train on the chunk now.
        assert scored >= min((index + 1) * size, targets)


def test_sliding_windows_by_hand() -> None:
    assert sliding_windows(11, 6, 2) == [(0, 6, 0), (2, 8, 6), (4, 10, 8), (6, 11, 10)]
    assert sliding_windows(4, 6, 2) == [Window(0, 4, 0)]


def test_standard_windows_lie_side_by_side() -> None:
    assert standard_windows(14, 6) == [(0, 6, 0), (6, 12, 6), (12, 14, 12)]


def test_a_chunk_inside_an_earlier_window_has_no_windows() -> None:
    chunks = windows_by_chunk(sliding_windows(24, 16, 8), 24, 8)
    assert chunks == [[(0, 16, 0)], [], [(8, 24, 16)]]


@pytest.mark.parametrize("stride", [0, 7])
def test_a_stride_that_would_leave_gaps_is_refused(stride: int) -> None:
    with pytest.raises(AssertionError, match="stride"):
        sliding_windows(20, 6, stride)
