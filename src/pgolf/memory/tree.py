"""A binary tree over the vocabulary: a token is a path of yes-no decisions.

So a distribution over V tokens is V - 1 probabilities of a bit, one at each inner node, and adds up to 1
whatever they are. Tokens are leaves in alphabetical order of their pieces: those that begin alike lie close
together, and what was seen of one speaks for the others. Paths of frequent tokens are short.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LONGEST = 32


class Tree(NamedTuple):
    """Arrays for numba; node 0 is the root."""

    code: NDArray[np.uint32]
    """(V,): a token's path from the highest bit down."""
    child: NDArray[np.int32]
    """(V - 1, 2): the inner node after bit 0 and after bit 1, or ``~token`` of a leaf."""
    span: NDArray[np.int32]
    """(V - 1, 3): leaves [first, middle) follow after bit 0, [middle, end) after bit 1."""
    leaf: NDArray[np.uint16]
    """(V,): the tokens in the order of the leaves."""


def tree_of(leaves: ArrayLike, weights: ArrayLike) -> Tree:
    """The tree whose two halves weigh about the same at every node.

    Args:
        leaves: all tokens in their order, at least 2.
        weights: how often each token (not each leaf) is expected.
    """
    leaf = np.array(leaves, np.int32)
    count = len(leaf)
    expected = np.maximum(np.asarray(weights, np.float64)[leaf], 0)
    # No token so rare that its path gets too long.
    expected += max(expected.sum(), 1.0) / (64 * count)
    below = np.concatenate([[0.0], np.cumsum(np.round(expected * 1024))])
    code, child = np.zeros(count, np.uint32), np.zeros((count - 1, 2), np.int32)
    span, nodes = np.zeros((count - 1, 3), np.int32), 1
    waiting = [(0, 0, count, 0)]
    while waiting:
        node, first, end, depth = waiting.pop()
        half = (below[first] + below[end]) / 2
        middle = int(np.searchsorted(below, half))
        if middle > first + 1 and half - below[middle - 1] < below[middle] - half:
            middle -= 1
        # So that whatever is left fits in the bits that are left.
        most = 1 << (_LONGEST - depth - 1)
        middle = min(max(middle, first + 1, end - most), end - 1, first + most)
        span[node] = first, middle, end
        code[leaf[middle:end]] |= np.uint32(1 << (31 - depth))
        for bit, (begin, stop) in enumerate(((first, middle), (middle, end))):
            if stop - begin == 1:
                child[node, bit] = ~leaf[begin]
            else:
                child[node, bit] = nodes
                waiting.append((nodes, begin, stop, depth + 1))
                nodes += 1
    return Tree(code, child, span, leaf.astype(np.uint16))
