"""Logistic mixing: what all contexts say of one bit after the other, and the model with them.

At each node of the tree each context has counts of what followed it there: ``n0`` and ``n1`` tokens in the
left and the right half. Two opinions are made of them: a table that has learned what such counts were worth
so far (an indirect, or SSE, stage per context), and a share by absolute discounting that is interpolated
with the next shorter context, as in Kneser-Ney. The log odds of all opinions and of the longest match are
added up with weights. Several sets of weights, each chosen by something else that the prefix says, do so side
by side; their sums are mixed once more, and refined by two tables of the last one and two tokens. In the end
the result is joined with the model's probability in the same way.

All of them learn by gradient on the log loss, once a token is known. The mixer is that of the PAQ family
(Mahoney 2005); the interpolation is that of Ney, Essen and Kneser (1994).
"""

from __future__ import annotations

import numpy as np

from pgolf.kernels.compiled import compiled, inner
from pgolf.memory.contexts import LONGEST, MATCH, MATCHED, ORDER, POSITION, hashed, path_of
from pgolf.memory.counts import set_cell
from pgolf.memory.tables import SMALLEST, logistic, stretch

LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 40, 80, 160])
"""Counts that are told apart."""
QUANTA = len(LEVELS)
KINDS = 9
"""Where the latest successor lies (3), times the number of different ones: one, two, more."""
SETS = 4
"""Sets of weights, chosen by: match and longest context; node; longest context and its counts; last token."""
MATCH_CLASSES, MOST_FOUND = 7, 32
JOINTS = 3
"""Sets of weights for memory and model: by match and longest context, both odds, longest context's counts."""
JOINT_BANDS = 12
REFINED = 1 << 16
"""Contexts of each of the two tables that refine the result."""
BANDS, BAND_WIDTH = 33, 0.5
"""Log odds that are told apart in them, from -8 to 8."""
REFINING = 2 * REFINED * BANDS
"""Cells of both."""
ONE = 1 << 22
"""A probability of 1 in them."""
_LEVELS = np.searchsorted(LEVELS, np.arange(256), side="right") - 1
_LENGTHS = np.searchsorted([1, 5, 8, 12, 16, 24], np.arange(LONGEST + 1), side="right")
_RATE, _FINAL_RATE, _JOINT_RATE = 0.004, 0.0004, 0.01
_BIAS, _DISCOUNT = 0.3, 0.8
_UNSURE = 1e-5
_LAST = 250
STEP = np.array([np.float32(1) / np.float32(seen + 1.5) for seen in range(_LAST + 1)])


@inner
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
        total, different = mixer.known[each, 0], mixer.known[each, 1]
        if total:
            # Of what follows a context only a part may be known: see ``ngrams``.
            whole = mixer.seen[0, each]
            backing = _DISCOUNT * different + (total - whole[0] - whole[1])
            left = (n0 - _DISCOUNT * u0 + backing * left) / total
            right = (n1 - _DISCOUNT * u1 + backing * right) / total
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
    chosen[0] = _LENGTHS[length] * MOST_FOUND + found
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
    base = len(cells) - REFINING
    refined = 0.5 * mixed
    for each in range(2):
        key = np.uint64(last) if each == 0 else mixer.keys[min(order, 2)]
        at = np.int64(hashed(key * np.uint64(0x9E3779B97F4A7C15) + np.uint64(node)) & np.uint64(REFINED - 1))
        at = base + (each * REFINED + at) * BANDS + band
        spots[number + each] = at
        refined += 0.25 * (cells[at] * (1.0 - share) + cells[at + 1] * share) / ONE
    return min(max(refined, SMALLEST), 1.0 - SMALLEST)


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


@inner
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
    if code >> (32 - depth) != path_of(tree, node) >> (32 - depth):
        return np.int64(0)
    bit = (code >> (31 - depth)) & 1
    right = stretch(mixer.matches[length])
    inputs[2 * number] = right if bit else -right
    inputs[2 * number + 1] = length / 16.0 if bit else -length / 16.0
    spots[number + 2], spots[number + 3] = length, bit
    return length


@inner
def sum_up(mixer, probabilities):
    """Add the model's probabilities up in the order of the leaves."""
    leaf, shares, row = mixer.tree.leaf, mixer.shares, mixer.row
    # In order, memory is read fast; the leaves take the copy, which is near, out of order.
    for index in range(len(row)):
        row[index] = probabilities[index]
    # Four parts side by side: one sum after the other would wait for each addition.
    part = len(leaf) // 4
    first, second, third, fourth = 0.0, 0.0, 0.0, 0.0
    for index in range(part):
        shares[index] = first
        first += row[leaf[index]]
        shares[part + index] = second
        second += row[leaf[part + index]]
        shares[2 * part + index] = third
        third += row[leaf[2 * part + index]]
        shares[3 * part + index] = fourth
        fourth += row[leaf[3 * part + index]]
    second += first
    third += second
    fourth += third
    for index in range(part):
        shares[part + index] += first
        shares[2 * part + index] += second
        shares[3 * part + index] += third
    for index in range(4 * part, len(leaf)):
        shares[index] = fourth
        fourth += row[leaf[index]]
    shares[len(leaf)] = fourth


@inner
def join(mixer, node, depth):
    """The same with the model, whose probabilities ``sum_up`` has added up."""
    memory = weigh(mixer, node, depth)
    span, shares, joined = mixer.tree.span, mixer.shares, mixer.joined[depth]
    first, middle, end = span[node, 0], span[node, 1], span[node, 2]
    model = (shares[end] - shares[middle]) / max(shares[end] - shares[first], 1e-30)
    joined[0], joined[1] = stretch(memory), stretch(model)
    picked = mixer.picked[depth]
    picked[0] = mixer.chosen[depth, 0]
    place = (min(max(joined[1], -11.99), 11.99) + 12.0) * 0.5
    picked[1] = _band(joined[0]) * (JOINT_BANDS + 1) + np.int64(place)
    joined[2 + JOINTS] = place - np.int64(place)
    picked[2] = mixer.chosen[depth, 2]
    odds = 0.0
    for each in range(JOINTS):
        row = mixer.joints[each, picked[each]]
        joined[2 + each] = row[0] * joined[0] + row[1] * joined[1]
        if each == 1:
            # Between two bands: a model's rounding, which differs from machine to machine, must not show.
            row, share = mixer.joints[each, picked[each] + 1], joined[2 + JOINTS]
            joined[2 + each] += share * (row[0] * joined[0] + row[1] * joined[1] - joined[2 + each])
        odds += joined[2 + each]
    return min(max(logistic(odds / JOINTS), SMALLEST), 1.0 - SMALLEST)


@inner
def safe(mixer, mixed, model, learns):
    """A token's probability by mixture and model, weighed by how probable each is to be the better one.

    That is Bayes' rule for two predictors: it loses one bit to the better of them in all, and by ``_UNSURE``
    nats a token, which keep the other one in reach. So no rate makes the mixture worse than the model.
    """
    share = mixer.better[0] * mixed
    chance = share + (1.0 - mixer.better[0]) * model
    if learns:
        mixer.better[0] = min(max(share / chance, _UNSURE), 1.0 - _UNSURE)
    return chance


@compiled
def _band(odds):
    return min(np.int64((odds + 12.0) * 0.5), JOINT_BANDS - 1)


@inner
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


@inner
def _learn(mixer, depth, bit):
    number, inputs, spots = len(mixer.keys), mixer.inputs[depth], mixer.spots[depth]
    chosen, sums = mixer.chosen[depth], mixer.sums[depth]
    wrong = bit - sums[SETS]
    for each in range(SETS):
        odds = sums[each]
        mixer.final[chosen[0], each] += _FINAL_RATE * wrong * min(max(odds, -8.0), 8.0)
        row = mixer.weights[mixer.rows[each] + chosen[each]]
        step = np.float32(_RATE * (bit - logistic(odds)))
        for index in range(len(inputs)):
            row[index] += step * inputs[index]
    for each in range(number):
        spot = spots[each]
        if spot >= 0:
            opinion, trust = mixer.opinions[spot], mixer.trust[spot]
            opinion += (bit - opinion) * STEP[np.int64(trust)]
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


@inner
def _learn_joint(mixer, depth, bit):
    joined, picked = mixer.joined[depth], mixer.picked[depth]
    for each in range(JOINTS):
        step, share = _JOINT_RATE * (bit - logistic(joined[2 + each])), joined[2 + JOINTS]
        row = mixer.joints[each, picked[each]]
        if each == 1:
            other = mixer.joints[each, picked[each] + 1]
            other[0] += share * step * joined[0]
            other[1] += share * step * joined[1]
            step *= 1.0 - share
        row[0] += step * joined[0]
        row[1] += step * joined[1]
