"""Logistic mixing: what all contexts say of one bit after the other, and the model with them.

At each node of the tree each context has counts of what followed it there: ``n0`` and ``n1`` tokens in the
left and the right half. Two opinions are made of them: a table that has learned what such counts were worth
so far (an indirect, or SSE, stage per context), and a share by absolute discounting that is interpolated with
the next shorter context, as in Kneser-Ney. The log odds of all opinions, of the longest match and of the model
are added up with weights. Several sets of weights, each chosen by something else that the prefix says, do so
side by side; their sums are mixed once more, and refined by two tables of the last one and two tokens.

All of them learn by gradient on the log loss, bit by bit. The mixer is that of the PAQ family (Mahoney 2005);
the interpolation is that of Ney, Essen and Kneser (1994).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.memory.compiled import compiled
from pgolf.memory.counts import Counts, add, find, has_room, set_cell, successor, successors
from pgolf.memory.tables import SMALLEST, logistic, stretch
from pgolf.memory.tree import Tree

LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 40, 80, 160])
_LEVELS = np.searchsorted(LEVELS, np.arange(256), side="right") - 1
QUANTA = len(LEVELS)
KINDS = 9  # latest successor: none here, to the right, to the left; successors: one, two, more
_LENGTHS = np.searchsorted([1, 5, 8, 12, 16, 24], np.arange(33), side="right")
BANDS, BAND_WIDTH = 33, 0.5
REFINED = 1 << 16
"""Contexts of each of the two tables that refine the result."""
ONE = 1 << 22
"""A probability of 1 in them."""
CELLS = 6 * 32 + 2
"""At most so many cells change with a token."""
LONGEST = 32
"""Length of a match from which on it counts as this long."""
SETS = 4
"""Sets of weights."""
JOINTS, JOINT_RATE = 3, 0.01

# Places in ``numbers``.
POSITION, MATCH, MATCHED, ORDER, EXCLUSION, WORD, SKIP, DOCUMENT, MATCHES, BOS, NUMBER, TOKENS = range(12)
RATE = 0.004
_FINAL_RATE = 0.0004
_BIAS = 0.3
_LAST = 250
_STEP = np.array([np.float32(1) / np.float32(seen + 1.5) for seen in range(_LAST + 1)])
DISCOUNT = 0.8


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
    inputs: NDArray[np.float32]
    """(33, inputs): what was added up at each depth, so that it can be learned from."""
    spots: NDArray[np.int64]
    """(33, K + 4): entries of ``opinions`` in use; then of the refining tables (2), the match's length and bit."""
    chosen: NDArray[np.int64]
    """(33, SETS): rows of the weights."""
    sums: NDArray[np.float64]
    """(33, SETS + 2): log odds by each set, the mixed probability, and the refined one."""
    joined: NDArray[np.float64]
    """(33, 2 + JOINTS): log odds of memory and model, and by each joint set."""
    picked: NDArray[np.int64]
    """(33, JOINTS): rows of the joint weights."""
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


@compiled
def _token(mixer, back):
    place = mixer.numbers[POSITION] - back
    return np.uint64(mixer.text[place]) + np.uint64(1) if place >= 0 else np.uint64(0)


@compiled
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
        mixer.keys[at + 1] = hashed(before + _token(mixer, 3) * np.uint64(0x1000100001) + np.uint64(0x44440000))
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


@compiled
def see(mixer, target):
    """What followed the contexts, at every node of the way to a token that is known.

    A successor goes the same way as the target down to the first bit in which their paths differ.
    """
    code, node, steps = mixer.tree.code[target], np.int64(0), 0
    while node >= 0:
        _see_tokens(mixer, node, steps)
        node = np.int64(mixer.tree.child[node, np.int64((code >> np.uint32(31 - steps)) & np.uint32(1))])
        steps += 1
    times, kinds = np.zeros(34, np.int64), np.zeros(34, np.int64)
    for each in range(1, len(mixer.keys)):
        number, slot, latest = mixer.known[each, 1], mixer.slots[each], np.int64(-1)
        times[: steps + 1] = 0
        kinds[: steps + 1] = 0
        if number:
            first, _, _ = successors(mixer.counts, slot)
            for index in range(number):
                token, counted = successor(mixer.counts, slot, first, index)
                parting = steps if token == target else _equal_bits(mixer.tree.code[token] ^ code)
                times[parting] += counted
                kinds[parting] += 1
                if index == 0:
                    latest = parting
        counted, different = times[steps], kinds[steps]
        for depth in range(steps - 1, -1, -1):
            bit = np.int64((code >> np.uint32(31 - depth)) & np.uint32(1))
            seen = mixer.seen[depth, each]
            seen[bit], seen[1 - bit] = counted, times[depth]
            seen[2 + bit], seen[3 - bit] = different, kinds[depth]
            seen[4] = 0 if latest < depth else 1 if bit == (latest > depth) else 2
            counted += times[depth]
            different += kinds[depth]


@compiled
def _see_tokens(mixer, node, depth):
    """What was seen at a node in any context (order 0)."""
    seen, numbers = mixer.seen[depth, 0], mixer.numbers
    at = numbers[TOKENS] + 4 * node
    for index in range(4):
        seen[index] = mixer.counts.cells[at + index]
    seen[4] = 0
    if numbers[POSITION]:
        latest = np.int64(mixer.tree.code[mixer.text[numbers[POSITION] - 1]])
        if latest >> (32 - depth) == _path(mixer.tree, node) >> (32 - depth):
            seen[4] = 1 if (latest >> (31 - depth)) & 1 else 2


@compiled
def _path(tree, node):
    """The path of a token below a node."""
    return np.int64(tree.code[tree.leaf[tree.span[node, 0]]])


_LEADING = np.array([16 - value.bit_length() for value in range(1 << 16)], np.uint8)


@compiled
def _equal_bits(difference):
    """Leading zeros of a number of 32 bits."""
    upper = difference >> np.uint32(16)
    if upper:
        return np.int64(_LEADING[upper])
    return np.int64(16) + np.int64(_LEADING[difference & np.uint32(0xFFFF)])


@compiled
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


@compiled
def split(mixer, node, depth):
    """What followed the contexts at a node, among what is laid out: to the left, then to the right."""
    shift = np.uint32(31 - depth)
    path = _path(mixer.tree, node) >> (32 - depth)
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


@compiled
def _dot(row, inputs):
    # Four sums side by side, in one order everywhere.
    first, second, third, fourth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for index in range(0, len(inputs), 4):
        first += row[index] * inputs[index]
        second += row[index + 1] * inputs[index + 1]
        third += row[index + 2] * inputs[index + 2]
        fourth += row[index + 3] * inputs[index + 3]
    return (first + second) + (third + fourth)


@compiled
def weigh(mixer, node, depth):
    """Probability of bit 1 at a node of the path, from what ``see`` or ``split`` has found."""
    tree, order, inputs, spots = mixer.tree, mixer.numbers[ORDER], mixer.inputs[depth], mixer.spots[depth]
    number = len(mixer.keys)
    first, middle, end = tree.span[node, 0], tree.span[node, 1], tree.span[node, 2]
    size = np.float64(len(tree.code))
    left, right = (middle - first) / size, (end - middle) / size
    found, sure, often = np.int64(0), np.int64(0), np.int64(0)
    kept_left, kept_right = left, right
    for each in range(number):
        seen = mixer.seen[depth, each]
        n0, n1, u0, u1 = seen[0], seen[1], seen[2], seen[3]
        if each > order:
            left, right = kept_left, kept_right
        total, successors_ = mixer.known[each, 0], mixer.known[each, 1]
        if total:
            backing = DISCOUNT * successors_
            left = (n0 - DISCOUNT * u0 + backing * left) / total
            right = (n1 - DISCOUNT * u1 + backing * right) / total
        if each == order:
            kept_left, kept_right = left, right
        if n0 + n1 == 0:
            inputs[2 * each] = inputs[2 * each + 1] = 0
            spots[each] = -1
            continue
        kind = seen[4] + 3 * (min(u0 + u1, 3) - 1)
        spot = ((each * QUANTA + _LEVELS[min(n0, 255)]) * QUANTA + _LEVELS[min(n1, 255)]) * KINDS + kind
        spots[each] = spot
        inputs[2 * each] = stretch(mixer.opinions[spot])
        inputs[2 * each + 1] = stretch(right / (left + right))
        if each <= order:
            found, often, sure = each + 1, n0 + n1, np.int64(n0 == 0 or n1 == 0)
    last = mixer.text[mixer.numbers[POSITION] - 1] if mixer.numbers[POSITION] else np.uint16(0)
    length = _expect(mixer, node, depth)
    inputs[2 * number + 2] = _BIAS
    chosen, sums = mixer.chosen[depth], mixer.sums[depth]
    chosen[0] = _LENGTHS[length] * 32 + found
    chosen[1] = node
    chosen[2] = (found * QUANTA + _LEVELS[min(often, 255)]) * 2 + sure
    chosen[3] = last
    odds = 0.0
    for each in range(SETS):
        row = mixer.weights[mixer.rows[each] + chosen[each]]
        sums[each] = _dot(row, inputs)
        odds += mixer.final[chosen[0], each] * sums[each]
    mixed = min(max(logistic(odds), SMALLEST), 1.0 - SMALLEST)
    sums[SETS] = mixed
    odds = min(max(odds, -7.99), 7.99)
    place = (odds + 8.0) / BAND_WIDTH
    band = np.int64(place)
    share = place - band
    cells = mixer.counts.cells
    base = len(cells) - 2 * REFINED * BANDS
    refined = 0.5 * mixed
    for each in range(2):
        key = np.uint64(last) if each == 0 else mixer.keys[min(order, 2)]
        at = np.int64(hashed(key * np.uint64(0x9E3779B97F4A7C15) + np.uint64(node)) & np.uint64(REFINED - 1))
        at = base + (each * REFINED + at) * BANDS + band
        spots[number + each] = at
        refined += 0.25 * (cells[at] * (1.0 - share) + cells[at + 1] * share) / ONE
    refined = min(max(refined, SMALLEST), 1.0 - SMALLEST)
    sums[SETS + 1] = refined
    return refined


@compiled
def join(mixer, node, depth):
    """The same with the model, whose probabilities ``_sum_up`` has added up."""
    memory = weigh(mixer, node, depth)
    span, shares, joined = mixer.tree.span, mixer.shares, mixer.joined[depth]
    first, middle, end = span[node, 0], span[node, 1], span[node, 2]
    model = (shares[end] - shares[middle]) / max(shares[end] - shares[first], 1e-30)
    joined[0], joined[1] = stretch(memory), stretch(model)
    picked = mixer.picked[depth]
    picked[0] = mixer.chosen[depth, 0]
    picked[1] = _band(joined[0]) * 12 + _band(joined[1])
    picked[2] = mixer.chosen[depth, 2]
    odds = 0.0
    for each in range(JOINTS):
        row = mixer.joints[each, picked[each]]
        joined[2 + each] = row[0] * joined[0] + row[1] * joined[1]
        odds += joined[2 + each]
    return min(max(logistic(odds / JOINTS), SMALLEST), 1.0 - SMALLEST)


@compiled
def _band(odds):
    return min(np.int64((odds + 12.0) * 0.5), 11)


@compiled
def _learn_joint(mixer, depth, bit):
    joined, picked = mixer.joined[depth], mixer.picked[depth]
    for each in range(JOINTS):
        step = JOINT_RATE * (bit - logistic(joined[2 + each]))
        mixer.joints[each, picked[each], 0] += step * joined[0]
        mixer.joints[each, picked[each], 1] += step * joined[1]


@compiled
def _expect(mixer, node, depth):
    """Inputs of the longest match; returns its length, 0 where it says nothing at this node."""
    number, inputs, spots = len(mixer.keys), mixer.inputs[depth], mixer.spots[depth]
    length = min(mixer.numbers[MATCHED], LONGEST)
    spots[number + 2] = 0
    inputs[2 * number] = inputs[2 * number + 1] = 0
    if length == 0:
        return np.int64(0)
    token = mixer.text[mixer.numbers[MATCH]]
    tree = mixer.tree
    code = np.int64(tree.code[token])
    # Is the token a leaf below this node?
    if code >> (32 - depth) != _path(tree, node) >> (32 - depth):
        return np.int64(0)
    bit = (code >> (31 - depth)) & 1
    right = stretch(mixer.matches[length])
    inputs[2 * number] = right if bit else -right
    inputs[2 * number + 1] = length / 16.0 if bit else -length / 16.0
    spots[number + 2], spots[number + 3] = length, bit
    return length


@compiled
def learn(mixer, token, side):
    """Learn all bits of a token, now that ``weigh`` has predicted them."""
    code, node, depth = np.int64(mixer.tree.code[token]), np.int64(0), 0
    while node >= 0:
        bit = (code >> (31 - depth)) & 1
        _learn(mixer, depth, bit)
        if side:
            _learn_joint(mixer, depth, bit)
        node = np.int64(mixer.tree.child[node, bit])
        depth += 1


@compiled
def _learn(mixer, depth, bit):
    number, inputs, spots = len(mixer.keys), mixer.inputs[depth], mixer.spots[depth]
    chosen, sums = mixer.chosen[depth], mixer.sums[depth]
    wrong = bit - sums[SETS]
    for each in range(SETS):
        odds = sums[each]
        mixer.final[chosen[0], each] += _FINAL_RATE * wrong * min(max(odds, -8.0), 8.0)
        row = mixer.weights[mixer.rows[each] + chosen[each]]
        step = np.float32(RATE * (bit - logistic(odds)))
        for index in range(len(inputs)):
            row[index] += step * inputs[index]
    for each in range(number):
        spot = spots[each]
        if spot >= 0:
            opinion, trust = mixer.opinions[spot], mixer.trust[spot]
            opinion += (bit - opinion) * _STEP[np.int64(trust)]
            mixer.opinions[spot] = min(max(opinion, np.float32(0.0003)), np.float32(0.9997))
            if trust < _LAST:
                mixer.trust[spot] = trust + 1
    for each in range(2):
        at = spots[number + each]
        for place in range(at, at + 2):
            cell = np.int64(mixer.counts.cells[place])
            set_cell(mixer.counts, place, cell + (bit * ONE - cell) // 64)
    length = spots[number + 2]
    if length:
        right = np.float32(1.0 if spots[number + 3] == bit else 0.0)
        known = mixer.matches[length]
        known += (right - known) * np.float32(0.005)
        mixer.matches[length] = min(max(known, np.float32(0.001)), np.float32(0.9999))


@compiled
def descend(mixer, depth, bit):
    """Go on with what lies on one side of a node."""
    for each in range(1, len(mixer.keys)):
        begin, middle, end = mixer.parts[depth, 0, each], mixer.parts[depth, 1, each], mixer.parts[depth, 2, each]
        mixer.parts[depth + 1, 0, each] = middle if bit else begin
        mixer.parts[depth + 1, 2, each] = end if bit else middle


@compiled
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


@compiled
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


@compiled
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


_SHORTEST = 5


@compiled
def _sum_up(mixer, probabilities):
    """Add the model's probabilities up in the order of the leaves."""
    total = 0.0
    leaf = mixer.tree.leaf
    for index in range(len(leaf)):
        mixer.shares[index] = total
        total += probabilities[leaf[index]]
    mixer.shares[len(leaf)] = total


@compiled
def code_tokens(mixer, tokens, model, nats):
    """Predict and learn tokens (n,); ``model`` (n, V) probabilities, or (0, V); costs go to ``nats`` (n,).

    Returns the number of tokens done: fewer than n where the journal has no room left.
    """
    side = 1 if len(model) else 0
    for index in range(len(tokens)):
        look(mixer)
        if not has_room(mixer.counts, mixer.slots, CELLS):
            return index
        if side:
            _sum_up(mixer, model[index])
        token = np.int64(tokens[index])
        see(mixer, token)
        code, node, depth = np.int64(mixer.tree.code[token]), np.int64(0), 0
        cost = 0.0
        while node >= 0:
            right = join(mixer, node, depth) if side else weigh(mixer, node, depth)
            bit = (code >> (31 - depth)) & 1
            cost -= np.log(right if bit else 1.0 - right)
            node = np.int64(mixer.tree.child[node, bit])
            depth += 1
        nats[index] = cost
        learn(mixer, token, side)
        advance(mixer, token)
    return len(tokens)


@compiled
def row(mixer, model, logs):
    """Log probabilities (V,) of all tokens that may come next; ``model`` (V,) probabilities, or (0,)."""
    side = 1 if len(model) else 0
    look(mixer)
    lay_out(mixer)
    if side:
        _sum_up(mixer, model)
    tree = mixer.tree
    # Nodes on the way down, what led to them, and which bit comes next.
    nodes, before, bits = np.zeros(34, np.int64), np.zeros(34), np.zeros(34, np.int64)
    chances = np.zeros((34, 2))
    depth = 0
    bits[0] = -1
    while depth >= 0:
        node = nodes[depth]
        bits[depth] += 1
        bit = bits[depth]
        if bit == 0:
            split(mixer, node, depth)
            right = join(mixer, node, depth) if side else weigh(mixer, node, depth)
            chances[depth, 0], chances[depth, 1] = np.log(1.0 - right), np.log(right)
        if bit == 2:
            depth -= 1
            continue
        below = before[depth] + chances[depth, bit]
        child = np.int64(tree.child[node, bit])
        if child < 0:
            logs[~child] = below
        else:
            descend(mixer, depth, bit)
            depth += 1
            nodes[depth], before[depth], bits[depth] = child, below, -1


@compiled
def encode(mixer, tokens, coded):
    """Code tokens (n,) without a model into ``coded``, a byte each; returns the bytes in use."""
    low, high, used = np.uint64(0), np.uint64(0xFFFFFFFF), 0
    for token in tokens:
        look(mixer)
        see(mixer, np.int64(token))
        code, node, depth = np.int64(mixer.tree.code[token]), np.int64(0), 0
        while node >= 0:
            right = np.uint64(weigh(mixer, node, depth) * 65536.0)
            bit = (code >> (31 - depth)) & 1
            middle = low + (high - low) * min(max(right, np.uint64(1)), np.uint64(65535)) // np.uint64(65536)
            if bit:
                high = middle
            else:
                low = middle + np.uint64(1)
            while (low ^ high) >> np.uint64(24) == np.uint64(0):
                coded[used] = high >> np.uint64(24)
                used += 1
                low = (low << np.uint64(8)) & np.uint64(0xFFFFFFFF)
                high = ((high << np.uint64(8)) & np.uint64(0xFFFFFFFF)) | np.uint64(255)
            node = np.int64(mixer.tree.child[node, bit])
            depth += 1
        learn(mixer, np.int64(token), 0)
        advance(mixer, np.int64(token))
    for _ in range(4):
        coded[used] = high >> np.uint64(24)
        used += 1
        high = (high << np.uint64(8)) & np.uint64(0xFFFFFFFF)
    return used


@compiled
def decode(mixer, coded, tokens):
    """Read tokens (n,) back that ``encode`` has written; bytes after the end count as 0."""
    low, high, value, used = np.uint64(0), np.uint64(0xFFFFFFFF), np.uint64(0), 0
    for _ in range(4):
        value = value << np.uint64(8) | np.uint64(coded[used] if used < len(coded) else 0)
        used += 1
    for index in range(len(tokens)):
        look(mixer)
        lay_out(mixer)
        node, depth = np.int64(0), 0
        while node >= 0:
            split(mixer, node, depth)
            right = np.uint64(weigh(mixer, node, depth) * 65536.0)
            middle = low + (high - low) * min(max(right, np.uint64(1)), np.uint64(65535)) // np.uint64(65536)
            bit = 1 if value <= middle else 0
            if bit:
                high = middle
            else:
                low = middle + np.uint64(1)
            while (low ^ high) >> np.uint64(24) == np.uint64(0):
                low = (low << np.uint64(8)) & np.uint64(0xFFFFFFFF)
                high = ((high << np.uint64(8)) & np.uint64(0xFFFFFFFF)) | np.uint64(255)
                value = ((value << np.uint64(8)) & np.uint64(0xFFFFFFFF)) | np.uint64(
                    coded[used] if used < len(coded) else 0
                )
                used += 1
            descend(mixer, depth, bit)
            node = np.int64(mixer.tree.child[node, bit])
            depth += 1
        tokens[index] = ~node
        learn(mixer, np.int64(~node), 0)
        advance(mixer, np.int64(~node))
