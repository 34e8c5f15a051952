"""Window plans: every target once, with enough context, in the right chunk."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgolf.evaluate.windows import (
    Window,
    sliding_windows,
    window_at,
    window_index,
    windows_between,
)

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


@given(plans(), st.data())
def test_any_range_is_scored_by_the_same_windows(plan: Plan, data: st.DataObject) -> None:
    targets, length, stride, _ = plan
    first = data.draw(st.integers(0, targets - 1))
    end = data.draw(st.integers(first + 1, targets))
    whole = {
        t: window.start
        for window in sliding_windows(targets, length, stride)
        for t in range(window.first, window.end)
    }
    part = windows_between(first, end, length, stride)
    assert [t for window in part for t in range(window.first, window.end)] == list(range(first, end))
    for window in part:
        assert {whole[t] for t in range(window.first, window.end)} == {window.start}
        index = window_index(window.first, length, stride)
        whole_window = window_at(index, length, stride)
        assert (window.start, window.end) == (whole_window.start, min(whole_window.end, end))
        assert whole_window.first <= window.first


def test_sliding_windows_by_hand() -> None:
    assert sliding_windows(11, 6, 2) == [(0, 6, 0), (2, 8, 6), (4, 10, 8), (6, 11, 10)]
    assert sliding_windows(4, 6, 2) == [Window(0, 4, 0)]


def test_standard_windows_lie_side_by_side() -> None:
    assert sliding_windows(14, 6, 6) == [(0, 6, 0), (6, 12, 6), (12, 14, 12)]


@pytest.mark.parametrize("stride", [0, 7])
def test_a_stride_that_would_leave_gaps_is_refused(stride: int) -> None:
    with pytest.raises(AssertionError, match="stride"):
        sliding_windows(20, 6, stride)
