"""The contexts of the next token: which there are, what followed them, and how a token is counted in them.

``look`` finds the contexts of the next token. What followed them is then needed at the nodes of the tree on
the way to a token: ``see`` takes it for a token that is known, in one pass over the successors; ``lay_out``,
``split`` and ``descend`` find the way to one that is not. ``advance`` counts a token and goes on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.kernels.compiled import compiled, inner
from pgolf.memory.counts import Counts, add, find, set_cell, successor, successors
from pgolf.memory.tree import Tree

# Places in ``numbers``.
POSITION, MATCH, MATCHED, ORDER, EXCLUSION, WORD, SKIP, DOCUMENT, MATCHES, BOS, NUMBER, TOKENS = range(12)
CELLS = 6 * 32 + 2
"""At most so many cells change with a token."""
LONGEST = 32
"""Length of a match from which on it counts as this long."""
_SHORTEST = 5
_ONE_MORE = 1 << 40


class Mixer(NamedTuple):
    """Everything that predicts, for K contexts and V tokens."""

    counts: Counts
    tree: Tree
    starts: NDArray[np.int8]
    """(V,): 1 for a token that begins a word."""
    text: NDArray[np.uint16]
    """The tokens so far."""
    numbers: NDArray[np.int64]
    """Tokens so far; what matches: place of the next token, length; largest order; then switches: whether a
    token counts in the longest context that knew it only, and which experts there are; the token that begins
    a document, and documents so far; where the cells begin that count tokens in any context."""
    words: NDArray[np.uint64]
    """(2,): hashes of the word in progress and of the one before."""
    weights: NDArray[np.float32]
    """(rows, inputs)."""
    final: NDArray[np.float32]
    """(rows of the first set, SETS)."""
    joints: NDArray[np.float64]
    """(JOINTS, rows, 2): weights of the memory and of the model."""
    rows: NDArray[np.int64]
    """(SETS,): where the rows of each set begin."""
    opinions: NDArray[np.float32]
    """(K, 13, 13, 9) flat: what counts were worth."""
    trust: NDArray[np.uint8]
    """Of the same shape: how often that was seen."""
    better: NDArray[np.float64]
    """(1,): how probable it is that the mixture predicts better than the model alone."""
    matches: NDArray[np.float32]
    """(LONGEST + 1,): how often a match of that length was right."""
    # What is worked with.
    keys: NDArray[np.uint64]
    slots: NDArray[np.int64]
    codes: NDArray[np.uint32]
    """(K, V): paths of the successors of each context."""
    times: NDArray[np.int64]
    """(K, V): their counts."""
    seen: NDArray[np.int64]
    """(33, K, 5): at each depth, what followed a context to the left and to the right: how often, how many
    different tokens; and where the latest of all lies (0: elsewhere, 1: right, 2: left)."""
    latest: NDArray[np.int64]
    """(K,): path of the latest of them."""
    known: NDArray[np.int64]
    """(K, 2): sum of the counts, number of successors."""
    parts: NDArray[np.int64]
    """(33, 3, K): at each depth, where the successors of each context begin, split and end."""
    partings: NDArray[np.int64]
    """(2, 34): what followed a context and leaves the way to a token at each depth."""
    inputs: NDArray[np.float32]
    """(33, inputs): what was added up at each depth, so that it can be learned from."""
    spots: NDArray[np.int64]
    """(33, K + 4): entries of ``opinions`` in use; of the refining tables (2); the match's length and bit."""
    chosen: NDArray[np.int64]
    """(33, SETS): rows of the weights."""
    sums: NDArray[np.float64]
    """(33, SETS + 1): log odds by each set, and the mixed probability."""
    joined: NDArray[np.float64]
    """(33, 3 + JOINTS): log odds of memory and model, by each joint set; share of the model's upper band."""
    picked: NDArray[np.int64]
    """(33, JOINTS): rows of the joint weights."""
    row: NDArray[np.float32]
    """(V,): the model's probabilities."""
    shares: NDArray[np.float64]
    """(V + 1,): the model's probabilities added up in the order of the leaves."""


@compiled
def hashed(value):
    """A well mixed hash of 64 bits."""
    value ^= value >> np.uint64(31)
    value *= np.uint64(0x9E3779B97F4A7C15)
    value ^= value >> np.uint64(29)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    return value ^ (value >> np.uint64(32))


@inner
def _token(mixer, back):
    place = mixer.numbers[POSITION] - back
    return np.uint64(mixer.text[place]) + np.uint64(1) if place >= 0 else np.uint64(0)


@inner
def contexts(mixer):
    """Hash the contexts of the next token."""
    order = mixer.numbers[ORDER]
    key = np.uint64(0)
    for length in range(order + 1):
        if length:
            key = hashed(key + _token(mixer, length)) * np.uint64(0x2545F4914F6CDD1D)
        mixer.keys[length] = hashed(key + np.uint64(length))
    at = order + 1
    if mixer.numbers[WORD]:
        mixer.keys[at] = hashed(mixer.words[0] * np.uint64(3) + mixer.words[1] + np.uint64(0x2222))
        mixer.keys[at + 1] = hashed(mixer.words[0] + np.uint64(0x1111))
        at += 2
    if mixer.numbers[SKIP]:
        before = _token(mixer, 2) * np.uint64(0x10001)
        mixer.keys[at] = hashed(before + np.uint64(0x33330000))
        before += _token(mixer, 3) * np.uint64(0x1000100001)
        mixer.keys[at + 1] = hashed(before + np.uint64(0x44440000))
        at += 2
    if mixer.numbers[DOCUMENT]:
        document = np.uint64(mixer.numbers[NUMBER]) * np.uint64(0xD6E8FEB86659FD93)
        for length in range(3):
            mixer.keys[at + length] = hashed(mixer.keys[min(length, order)] + document)


@compiled
def look(mixer):
    """Look up the contexts of the next token."""
    contexts(mixer)
    root = mixer.counts.cells[mixer.numbers[TOKENS] :]
    mixer.slots[0] = -1
    mixer.known[0, 0], mixer.known[0, 1] = root[0] + root[1], root[2] + root[3]
    for each in range(1, len(mixer.keys)):
        slot = find(mixer.counts, mixer.keys[each])
        mixer.slots[each] = slot
        number, total = np.int64(0), np.int64(0)
        if slot >= 0:
            _, number, total = successors(mixer.counts, slot)
        mixer.known[each, 0], mixer.known[each, 1] = total, number


@inner
def see(mixer, target):
    """What followed the contexts, at every node of the way to a token that is known.

    A successor goes the same way as the target down to the first bit in which their paths differ.
    """
    code, node, steps = mixer.tree.code[target], np.int64(0), 0
    while node >= 0:
        _see_tokens(mixer, node, steps)
        node = np.int64(mixer.tree.child[node, np.int64((code >> np.uint32(31 - steps)) & np.uint32(1))])
        steps += 1
    # By where the ways part: counts, and in the upper half of the word the number of successors. Two in turn,
    # for each addition to a place waits for the one before.
    partings = mixer.partings
    for each in range(1, len(mixer.keys)):
        number, slot, latest = mixer.known[each, 1], mixer.slots[each], np.int64(-1)
        partings[:, : steps + 1] = 0
        if number:
            first, _, _ = successors(mixer.counts, slot)
            for index in range(number):
                token, counted = successor(mixer.counts, slot, first, index)
                parting = steps if token == target else _equal_bits(mixer.tree.code[token] ^ code)
                partings[index & 1, parting] += counted | _ONE_MORE
                if index == 0:
                    latest = parting
        below = partings[0, steps] + partings[1, steps]
        for depth in range(steps - 1, -1, -1):
            bit = np.int64((code >> np.uint32(31 - depth)) & np.uint32(1))
            beside = partings[0, depth] + partings[1, depth]
            seen = mixer.seen[depth, each]
            seen[bit], seen[1 - bit] = below & (_ONE_MORE - 1), beside & (_ONE_MORE - 1)
            seen[2 + bit], seen[3 - bit] = below >> 40, beside >> 40
            seen[4] = 0 if latest < depth else 1 if bit == (latest > depth) else 2
            below += beside


@inner
def _see_tokens(mixer, node, depth):
    """What was seen at a node in any context (order 0)."""
    seen, numbers = mixer.seen[depth, 0], mixer.numbers
    at = numbers[TOKENS] + 4 * node
    for index in range(4):
        seen[index] = mixer.counts.cells[at + index]
    seen[4] = 0
    if numbers[POSITION]:
        latest = np.int64(mixer.tree.code[mixer.text[numbers[POSITION] - 1]])
        if latest >> (32 - depth) == path_of(mixer.tree, node) >> (32 - depth):
            seen[4] = 1 if (latest >> (31 - depth)) & 1 else 2


@compiled
def path_of(tree, node):
    """The path of a token below a node."""
    return np.int64(tree.code[tree.leaf[tree.span[node, 0]]])


@compiled
def _equal_bits(difference):
    """Leading zeros of a number of 32 bits that is not 0: by the exponent that it has in floating point."""
    return np.int64(1054) - (np.float64(difference).view(np.int64) >> 52)


@inner
def lay_out(mixer):
    """Lay out what followed the contexts, to find the way to a token that is not known."""
    for each in range(1, len(mixer.keys)):
        number, slot = mixer.known[each, 1], mixer.slots[each]
        if number:
            first, _, _ = successors(mixer.counts, slot)
            for index in range(number):
                token, times = successor(mixer.counts, slot, first, index)
                mixer.codes[each, index] = mixer.tree.code[token]
                mixer.times[each, index] = times
            mixer.latest[each] = np.int64(mixer.codes[each, 0])
        mixer.parts[0, 0, each], mixer.parts[0, 2, each] = 0, number


@inner
def split(mixer, node, depth):
    """What followed the contexts at a node, among what is laid out: to the left, then to the right."""
    shift = np.uint32(31 - depth)
    path = path_of(mixer.tree, node) >> (32 - depth)
    _see_tokens(mixer, node, depth)
    for each in range(1, len(mixer.keys)):
        start, stop = mixer.parts[depth, 0, each], mixer.parts[depth, 2, each]
        begin, end = start, stop
        left, right = np.int64(0), np.int64(0)
        while begin < end:
            code = mixer.codes[each, begin]
            times = mixer.times[each, begin]
            if (code >> shift) & np.uint32(1):
                end -= 1
                mixer.codes[each, begin], mixer.codes[each, end] = mixer.codes[each, end], code
                mixer.times[each, begin], mixer.times[each, end] = mixer.times[each, end], times
                right += times
            else:
                begin += 1
                left += times
        mixer.parts[depth, 1, each] = begin
        seen = mixer.seen[depth, each]
        seen[0], seen[1], seen[2], seen[3], seen[4] = left, right, begin - start, stop - begin, 0
        if mixer.known[each, 1] and mixer.latest[each] >> (32 - depth) == path:
            seen[4] = 1 if (mixer.latest[each] >> (31 - depth)) & 1 else 2


@inner
def descend(mixer, depth, bit):
    """Go on with what lies on one side of a node."""
    for each in range(1, len(mixer.keys)):
        begin, middle, end = (
            mixer.parts[depth, 0, each],
            mixer.parts[depth, 1, each],
            mixer.parts[depth, 2, each],
        )
        mixer.parts[depth + 1, 0, each] = middle if bit else begin
        mixer.parts[depth + 1, 2, each] = end if bit else middle


@inner
def advance(mixer, token):
    """Count the token that followed, and go on to the next place."""
    order, numbers = mixer.numbers[ORDER], mixer.numbers
    knew = False
    for each in range(len(mixer.keys) - 1, 0, -1):
        knew = add(mixer.counts, mixer.keys[each], mixer.slots[each], token) and each <= order
        if knew and numbers[EXCLUSION]:
            break
    if not (knew and numbers[EXCLUSION]):
        _add_token(mixer, token)
    place = numbers[POSITION]
    mixer.text[place] = token
    numbers[POSITION] = place + 1
    numbers[NUMBER] += token == numbers[BOS]
    if mixer.starts[token]:
        mixer.words[1], mixer.words[0] = mixer.words[0], np.uint64(0)
    mixer.words[0] = hashed(mixer.words[0] * np.uint64(31) + np.uint64(token) + np.uint64(7))
    _match(mixer, token)


@inner
def _add_token(mixer, token):
    """Count a token at every node on the way to it."""
    cells, first = mixer.counts.cells, mixer.numbers[TOKENS]
    leaf = first + 4 * (len(mixer.tree.code) - 1) + token
    new = cells[leaf] == 0
    set_cell(mixer.counts, leaf, cells[leaf] + 1)
    code, node, depth = np.int64(mixer.tree.code[token]), np.int64(0), 0
    while node >= 0:
        bit = (code >> (31 - depth)) & 1
        at = first + 4 * node + bit
        set_cell(mixer.counts, at, cells[at] + 1)
        if new:
            set_cell(mixer.counts, at + 2, cells[at + 2] + 1)
        node = np.int64(mixer.tree.child[node, bit])
        depth += 1


@inner
def _match(mixer, token):
    """Follow the match, or look for the latest place that the last five tokens have stood at."""
    numbers, text = mixer.numbers, mixer.text
    if numbers[MATCHED] and text[numbers[MATCH]] == token:
        numbers[MATCH] += 1
        numbers[MATCHED] += 1
    else:
        numbers[MATCHED] = 0
    place = numbers[POSITION]
    if place < _SHORTEST or not numbers[MATCHES]:
        return
    key = np.uint64(0)
    for back in range(1, _SHORTEST + 1):
        key = hashed(key + _token(mixer, back)) * np.uint64(0x2545F4914F6CDD1D)
    size = numbers[TOKENS]
    cell = np.int64(((key >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))
    if numbers[MATCHED] == 0:
        found = np.int64(mixer.counts.cells[cell])
        length = np.int64(0)
        while length < LONGEST and length < found and text[found - 1 - length] == text[place - 1 - length]:
            length += 1
        if length >= _SHORTEST:
            numbers[MATCH], numbers[MATCHED] = found, length
    set_cell(mixer.counts, cell, place)
