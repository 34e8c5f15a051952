"""Which targets are scored in which window, with how much context. Every target exactly once.

Target t is token t + 1 of the stream, predicted from the tokens before it. A window reads the inputs
``start`` to ``end`` (exclusive) and scores the targets ``first`` to ``end``; what lies before ``first``
is context only.
"""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """Inputs [start, end), of which the targets [first, end) are scored."""

    start: int
    end: int
    first: int


def sliding_windows(targets: int, length: int, stride: int) -> list[Window]:
    """Windows of ``length`` inputs that advance by ``stride``, over ``targets`` targets.

    The first scores all of its targets, each other one the targets that no earlier window reached. So
    every target is scored once, with at least min(position, length - stride) tokens of context. With a stride
    of ``length`` they lie side by side.
    """
    assert 1 <= stride <= length, f"stride {stride} must be between 1 and the window's {length}"
    return windows_between(0, targets, length, stride)


def window_index(target: int, length: int, stride: int) -> int:
    """Which of the sliding windows (0-based) scores a target."""
    return 0 if target < length else (target - length) // stride + 1


def window_at(index: int, length: int, stride: int) -> Window:
    """The window of an index, in a stream that does not end before it."""
    start = index * stride
    return Window(start, start + length, start + length - stride if index else 0)


def windows_between(first: int, end: int, length: int, stride: int) -> list[Window]:
    """The sliding windows that score the targets [first, end), each cut to what it scores of them."""
    windows = []
    while first < end:
        window = window_at(window_index(first, length, stride), length, stride)
        windows.append(Window(window.start, min(window.end, end), first))
        first = windows[-1].end
    return windows
