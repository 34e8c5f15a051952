"""Counts of n-grams in an artifact: a pruned trie, coded so that every machine reads the same.

Rows are tokens by themselves, in the order of the tree's leaves, then n-grams of 2 tokens, of 3 and so on,
those that begin with the same tokens side by side: (row of what it begins with, leaf of its last token, index
in ``TIMES`` of its count). After each row the coder walks the tree: at each node it says on which sides
tokens follow, at a leaf how often. What is to be expected there is what shorter contexts say, which are known
by then: interpolated by absolute discounting, what pruning took away going to the next shorter one. Tables of
what such decisions were so far predict each, mixed by their log odds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.kernels.bits import code_bit, new_coder, settle
from pgolf.kernels.compiled import compiled, inner
from pgolf.memory.contexts import EXCLUSION, ORDER, POSITION, contexts, descend, hashed, lay_out, look, split
from pgolf.memory.counts import put, raise_total
from pgolf.memory.mixing import STEP
from pgolf.memory.tables import SMALLEST, logistic, stretch

LONGEST = 5
"""Tokens of an n-gram, at most."""
TIMES = np.unique(np.round(2.0 ** (np.arange(50) / 2)).astype(np.int64))
"""Counts that are told apart."""
_TABLES, _SLOTS = 4, 1 << 20
_LEFT, _RIGHT, _ANY, _OFTEN = range(4)
_RATE, _DISCOUNT = 0.002, 0.7


class Coder(NamedTuple):
    """Writes or reads bits, and what predicts them."""

    state: NDArray[np.uint64]
    """(4,): see ``coding.new_coder``."""
    coded: NDArray[np.uint8]
    chances: NDArray[np.float32]
    """(_TABLES * _SLOTS,): how often a bit was 1."""
    trust: NDArray[np.uint8]
    """The same: how often that was seen."""
    weights: NDArray[np.float64]
    """(4, LONGEST, _TABLES): by what is decided, and the length of the context."""
    odds: NDArray[np.float64]
    spots: NDArray[np.int64]
    totals: NDArray[np.float64]
    """(LONGEST,): how often the last tokens of the context, so many, were seen."""
    below: NDArray[np.float64]
    """(V + 1,): how often the tokens before each leaf were seen; at first, the level of each, one further."""
    nodes: NDArray[np.int64]
    """(34, 2): on the way down, the node and the sides still to be gone; -1: not known yet."""
    masses: NDArray[np.float64]
    """(34, 2): how often tokens on each side of it are expected."""


def ngram_coder(coded: NDArray[np.uint8], levels: NDArray[np.uint8]) -> Coder:
    """A coder that begins to write ``coded``, or to read it; ``levels`` (V,) of the leaves: see ``Start``."""
    return Coder(
        state=new_coder(),
        coded=coded,
        chances=np.full(_TABLES * _SLOTS, 0.5, np.float32),
        trust=np.zeros(_TABLES * _SLOTS, np.uint8),
        weights=np.full((4, LONGEST, _TABLES), 0.4),
        odds=np.zeros(_TABLES),
        spots=np.zeros(_TABLES, np.int64),
        totals=np.zeros(LONGEST),
        below=np.concatenate([[0.0], levels]),
        nodes=np.zeros((34, 2), np.int64),
        masses=np.zeros((34, 2)),
    )


@compiled
def _code(coder, kind, order, first, second, third, fourth, bit):
    """Code a bit, or read it where ``bit`` is negative; returns it. Four numbers predict it."""
    coder.spots[0], coder.spots[1], coder.spots[2], coder.spots[3] = first, second, third, fourth
    odds, weights = 0.0, coder.weights[kind, order]
    for each in range(_TABLES):
        spot = hashed(np.uint64((coder.spots[each] * 8 + order) * 4 + kind)) & np.uint64(_SLOTS - 1)
        coder.spots[each] = np.int64(spot) + each * _SLOTS
        coder.odds[each] = stretch(coder.chances[coder.spots[each]])
        odds += weights[each] * coder.odds[each]
    chance = min(max(logistic(odds), SMALLEST), 1.0 - SMALLEST)
    bit = code_bit(coder.state, coder.coded, chance, bit)
    step = _RATE * (bit - chance)
    for each in range(_TABLES):
        spot = coder.spots[each]
        weights[each] += step * coder.odds[each]
        trust = coder.trust[spot]
        chance = coder.chances[spot] + (bit - coder.chances[spot]) * STEP[np.int64(trust)]
        coder.chances[spot] = min(max(chance, np.float32(0.0002)), np.float32(0.9998))
        coder.trust[spot] = min(trust + 1, len(STEP) - 1)
    return bit


@inner
def _size(value):
    """Logarithm of a number to the base 2, in half steps from 2^-12 on: 0 to 63."""
    return min(max((np.float64(value).view(np.int64) >> 51) - 2 * (1023 - 12), 0), 63)


@inner
def _go_to(mixer, rows, row, length):
    """Make the n-gram of a row the tokens so far, and hash the contexts of what follows."""
    for place in range(length - 1, -1, -1):
        mixer.text[place] = mixer.tree.leaf[rows[row, 1]]
        row = np.int64(rows[row, 0])
    mixer.numbers[POSITION] = length


@inner
def _expect(mixer, coder, node, depth, length, times):
    """How often tokens are expected on both sides of a node, after a context that was seen so many times."""
    span, below = mixer.tree.span, coder.below
    first, middle, end, every = span[node, 0], span[node, 1], span[node, 2], below[len(below) - 1]
    left, right = (below[middle] - below[first]) / every, (below[end] - below[middle]) / every
    for each in range(1, length):
        total = mixer.known[each, 0]
        if total:
            seen, whole = mixer.seen[depth, each], mixer.seen[0, each]
            backing = total - whole[0] - whole[1] + _DISCOUNT * mixer.known[each, 1]
            left = (seen[0] - _DISCOUNT * seen[2] + backing * left) / total
            right = (seen[1] - _DISCOUNT * seen[3] + backing * right) / total
    coder.masses[depth, 0], coder.masses[depth, 1] = times * left, times * right


@inner
def _follows(rows, done, row, first, end):
    """Whether an n-gram that goes on from a row, and is still to come, ends in leaves [first, end)."""
    while done < len(rows) and rows[done, 0] == row and rows[done, 1] < first:
        done += 1
    return np.int64(done < len(rows) and rows[done, 0] == row and rows[done, 1] < end)


@inner
def _code_times(coder, length, expected, times, rest, token, level, wanted):
    """Code an index in ``TIMES`` from ``level`` on, or read it where ``wanted`` is negative."""
    expected, often, rest = _size(expected), _size(times), _size(max(rest, 0.0))
    while level < len(TIMES) - 1:
        bit = np.int64(wanted > level) if wanted >= 0 else wanted
        pairs = (expected * 64 + often) * 64 + level, (rest * 64 + expected) * 64 + level
        if not _code(coder, _OFTEN, length, expected * 64 + level, *pairs, token * 64 + level, bit):
            break
        level += 1
    return level


@compiled
def code_ngrams(mixer, coder, rows, read):
    """Write n-grams (n, 3), or read as many; returns how many there were.

    ``mixer`` has counted nothing, and has no experts.
    """
    tree, size, nodes = mixer.tree, len(mixer.tree.code), coder.nodes
    if read:
        settle(coder.state, coder.coded, True)
    for leaf in range(size):
        wanted = np.int64(-1 if read else rows[leaf, 2])
        about = np.int64(coder.below[leaf + 1])
        least = min(max(2 * about - 2, 0), len(TIMES) - 1)
        level = _code_times(coder, 0, 0.0, about, 0.0, 0, least, wanted)
        rows[leaf, 0], rows[leaf, 1], rows[leaf, 2] = 0, leaf, level
        coder.below[leaf + 1] = coder.below[leaf] + TIMES[level]
    done, length, end, row = size, 1, size, 0
    while length < LONGEST and row < done:
        _go_to(mixer, rows, row, length)
        look(mixer)
        lay_out(mixer)
        times, key = TIMES[rows[row, 2]], mixer.keys[length]
        often = _size(times)
        pairs = often * 64 + _size(mixer.known[length - 1, 1]), often * 64 + _size(mixer.known[length - 1, 0])
        bit = np.int64(-1) if read else _follows(rows, done, row, 0, size)
        some = _code(coder, _ANY, length, often, *pairs, np.int64(mixer.text[length - 1]), bit)
        depth, rest = some - 1, np.float64(times)
        nodes[0, 0], nodes[0, 1] = 0, -1
        while depth >= 0:
            node = nodes[depth, 0]
            first, middle, stop = tree.span[node, 0], tree.span[node, 1], tree.span[node, 2]
            if nodes[depth, 1] < 0:
                split(mixer, node, depth)
                _expect(mixer, coder, node, depth, length, times)
                left, right = _size(coder.masses[depth, 0]), _size(coder.masses[depth, 1])
                seen = mixer.seen[depth, length - 1]
                sides = np.int64(0)
                for side in range(2):
                    if side > sides:
                        sides = np.int64(2)  # Something follows.
                        break
                    begin, over = (middle, stop) if side else (first, middle)
                    bit = np.int64(-1) if read else _follows(rows, done, row, begin, over)
                    here, there = (right, left) if side else (left, right)
                    number, other = _size(seen[2 + side]), _size(seen[3 - side])
                    pair, three = here * 64 + there, (here * 64 + number) * 64 + often
                    numbers = (number * 64 + other) * 64 + often
                    sides |= _code(coder, side, length, pair, numbers, node, three, bit) << side
                nodes[depth, 1] = sides
            sides = nodes[depth, 1]
            if sides == 0:
                depth -= 1
                continue
            side = 1 - (sides & 1)
            nodes[depth, 1] = sides & ~(1 << side)
            child = np.int64(tree.child[node, side])
            if child >= 0:
                descend(mixer, depth, side)
                depth += 1
                nodes[depth, 0], nodes[depth, 1] = child, -1
                continue
            if done == len(rows):
                return done + 1
            wanted = np.int64(-1 if read else rows[done, 2])
            level = _code_times(coder, length, coder.masses[depth, side], times, rest, ~child, 0, wanted)
            rows[done, 0], rows[done, 1], rows[done, 2] = row, stop - 1 if side else first, level
            put(mixer.counts, key, ~child, TIMES[level])
            rest -= TIMES[level]
            done += 1
        raise_total(mixer.counts, key, times)
        row += 1
        if row == end:
            length, end = length + 1, done
    if not read:
        settle(coder.state, coder.coded, False)
    return done


@compiled
def load_ngrams(mixer, rows):
    """Count the n-grams (n, 3) in a memory that has read nothing yet.

    What pruning took away stays in the totals of contexts, so that their successors do not seem to be all.
    """
    length, end, size = 1, len(mixer.tree.code), len(mixer.tree.code)
    for row in range(size, len(rows)):
        context = np.int64(rows[row, 0])
        if context >= end:
            length, end = length + 1, row
        if length > mixer.numbers[ORDER]:
            break
        if row == size or rows[row - 1, 0] != rows[row, 0]:
            _go_to(mixer, rows, context, length)
            contexts(mixer)
        put(mixer.counts, mixer.keys[length], np.int64(mixer.tree.leaf[rows[row, 1]]), TIMES[rows[row, 2]])
        if not mixer.numbers[EXCLUSION] and (row + 1 == len(rows) or rows[row + 1, 0] != rows[row, 0]):
            raise_total(mixer.counts, mixer.keys[length], TIMES[rows[context, 2]])
    mixer.text[:LONGEST] = 0
    mixer.numbers[POSITION] = 0
