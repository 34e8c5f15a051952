"""Which targets are scored in which window, with how much context. Every target exactly once.

Target t is token t + 1 of the stream, predicted from the tokens before it. A window reads the inputs
``start`` to ``end`` (exclusive) and scores the targets ``first`` to ``end``; what lies before ``first``
is context only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Inputs [start, end), of which the targets [first, end) are scored."""

    start: int
    end: int
    first: int


def standard_windows(targets: int, length: int) -> list[Window]:
    """Windows side by side; the last may be shorter."""
    return sliding_windows(targets, length, length)


def sliding_windows(targets: int, length: int, stride: int) -> list[Window]:
    """Windows of ``length`` inputs that advance by ``stride``, over ``targets`` targets.

    The first scores all of its targets, each other one the targets that no earlier window reached. So
    every target is scored once, with at least min(position, length - stride) tokens of context.
    """
    assert 1 <= stride <= length, f"stride {stride} must be between 1 and the window's {length}"
    windows, scored = [], 0
    for start in range(0, targets, stride):
        end = min(start + length, targets)
        if end > scored:
            windows.append(Window(start, end, scored))
            scored = end
    return windows


def windows_by_chunk(windows: Sequence[Window], targets: int, chunk: int) -> list[list[Window]]:
    """The windows of each chunk of ``chunk`` targets: a window belongs where its first scored target lies."""
    chunks: list[list[Window]] = [[] for _ in range(-(-targets // chunk))]
    for window in windows:
        chunks[window.first // chunk].append(window)
    return chunks
