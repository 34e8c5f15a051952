"""Trellis-coded quantization: which multiples of a step a weight may take depends on those before it.

Each row of a matrix is a walk through eight states. In an even state a weight takes an even multiple of half
a step, in an odd one an odd multiple or 0. So the allowed values lie a whole step apart, and cost about as
many bits as those of a plain grid of that step; but the codes decide which of the two grids comes next, and
the walk with the least error is better than the nearest codes by about a decibel (Marcellin and Fischer 1990;
the states are those of Ungerboeck 1982). The Viterbi algorithm finds it. Every walk that is still in the
running makes its own errors good in the columns to come, as ``gptq.py`` does for the one of a plain grid.

Code c stands for 2 c halves of a step in even states, and for 2 c - sign(c) in odd ones. The next state
follows from the state and from whether the code is odd.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from pgolf.kernels.compiled import compiled, inner

if TYPE_CHECKING:
    from torch import Tensor  # Who only reads codes has no need of it.

ODD = np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int64)
"""By state: whether its multiples are the odd ones."""
FOLLOWS = np.array([[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]], np.int64)
"""By state and by whether the code is odd: the next state."""
LARGEST = 127
"""Codes are within this."""
_STATES = len(ODD)
_BLOCK = 128
_ROWS_AT_ONCE = 64
# How much a value's size counts beside its error: small values cost fewer bits.
_PULL = 0.058


def multiples(codes: Tensor) -> Tensor:
    """What codes (R, C) int8 stand for: multiples (R, C) int16 of half a step."""
    import torch

    found = np.zeros(tuple(codes.shape), np.int16)
    _walk(codes.contiguous().numpy(), found)
    return torch.from_numpy(found)


@inner
def _multiple(state, code):
    return 2 * code - ODD[state] * np.sign(code)


@compiled
def _walk(codes, found):
    for row in range(codes.shape[0]):
        state = np.int64(0)
        for column in range(codes.shape[1]):
            code = np.int64(codes[row, column])
            found[row, column] = _multiple(state, code)
            state = FOLLOWS[state, code & 1]


def round_on_trellis(weight: Tensor, steps: Tensor, columns: Tensor, factor: Tensor) -> Tensor:
    """Codes (R, C) int8 that a matrix (R, C) float32 is rounded to, for steps[r] * columns[c].

    Args:
        steps: (R,) float32, positive.
        columns: (C,) float32, positive.
        factor: (C, C) float32, upper triangular, of the columns as they stand: see ``gptq.Order``.
    """
    import torch

    halves = (steps / 2).double()
    spread = (weight / columns).double().square().mean(dim=1).sqrt() / halves
    pull = (_PULL / spread.square().clamp_min(1e-6)).numpy()
    codes = np.zeros(tuple(weight.shape), np.int8)
    rest = weight.numpy().copy()
    given = columns.numpy(), np.ascontiguousarray(factor.numpy())

    def some(start: int) -> None:
        part = slice(start, start + _ROWS_AT_ONCE)
        rooms = np.zeros((2, _STATES, _BLOCK), np.float32), np.zeros((2, _STATES))
        ways = np.zeros((2, _BLOCK, _STATES), np.int64), np.zeros((_BLOCK, _STATES), np.float32)
        _round_rows(rest[part], halves.numpy()[part], pull[part], *given, codes[part], *rooms, *ways)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(some, range(0, len(rest), _ROWS_AT_ONCE)))
    return torch.from_numpy(codes)


@inner
def _nearest(place, shifted, odd):
    """The odd or even code whose multiple is nearest to a place."""
    size = abs(place)
    code = 2 * np.int64(np.floor((size + shifted - 2 * odd) / 4 + 0.5)) + odd
    if shifted and not odd and size < 1.5:
        code = np.int64(0)
    code = min(code, np.int64(LARGEST - 1 + odd))
    return code if place >= 0 else -code


def _rows(rest, steps, pull, columns, factor, codes, values, costs, ways, errors):
    """Round rows (R, C) float32, which are overwritten; ``steps`` (R,) are halves of the rows' steps.

    ``values`` (2, S, B): what each walk has to round in this block, now and next; ``costs`` (2, S) of the
    walks; ``ways`` (2, B, S): the state before, and the code; ``errors`` (B, S), divided by the factor's
    diagonal.
    """
    rows, width = rest.shape
    for row in range(rows):
        state = np.int64(0)
        for start in range(0, width, _BLOCK):
            size = min(_BLOCK, width - start)
            now = 0
            for each in range(_STATES):
                costs[0, each] = np.inf
            costs[0, state] = 0.0
            for index in range(size):
                values[0, state, index] = rest[row, start + index]
            for index in range(size):
                column = start + index
                step = steps[row] * columns[column]
                unit = step / factor[column, column]
                for each in range(_STATES):
                    costs[1 - now, each] = np.inf
                for each in range(_STATES):
                    if costs[now, each] == np.inf:
                        continue
                    place = values[now, each, index] / step
                    for odd in range(2):
                        code = _nearest(place, ODD[each], odd)
                        multiple = _multiple(each, code)
                        error = place - multiple
                        cost = error * error + pull[row] * multiple * multiple
                        cost = costs[now, each] + cost * unit * unit
                        following = FOLLOWS[each, odd]
                        if cost < costs[1 - now, following]:
                            costs[1 - now, following] = cost
                            ways[0, index, following], ways[1, index, following] = each, code
                            errors[index, following] = error * unit
                for each in range(_STATES):
                    if costs[1 - now, each] < np.inf:
                        error, before = errors[index, each], ways[0, index, each]
                        for later in range(index + 1, size):
                            values[1 - now, each, later] = (
                                values[now, before, later] - error * factor[column, start + later]
                            )
                now = 1 - now
            state = np.int64(0)
            for each in range(_STATES):
                if costs[now, each] < costs[now, state]:
                    state = np.int64(each)
            walk = state
            for index in range(size - 1, -1, -1):
                before, codes[row, start + index] = ways[0, index, walk], ways[1, index, walk]
                error = errors[index, walk]
                for later in range(start + size, width):
                    rest[row, later] -= error * factor[start + index, later]
                walk = before


_round_rows = compiled(_rows, nogil=True)
