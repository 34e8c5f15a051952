"""Tokens through the mixer: what they cost, all that may come next, and text as bytes and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgolf.memory.compiled import compiled
from pgolf.memory.contexts import CELLS, advance, descend, lay_out, look, see, split
from pgolf.memory.counts import has_room
from pgolf.memory.mixing import join, learn, safe, sum_up, weigh


def new_coder() -> NDArray[np.uint64]:
    """An arithmetic coder of bits (4,): the ends of its interval, what is read ahead, bytes in use."""
    return np.array([0, 0xFFFFFFFF, 0, 0], np.uint64)


@compiled
def code_bit(coder, coded, right, bit):
    """Write a bit of which 1 has probability ``right``, or read it where it is negative; returns it.

    Bytes behind the end of ``coded`` are read as 0, and not written.
    """
    share = min(max(np.uint64(right * 65536.0), np.uint64(1)), np.uint64(65535))
    # Bit 1 has the lower part of the interval.
    middle, read = coder[0] + (coder[1] - coder[0]) * share // np.uint64(65536), bit < 0
    if read:
        bit = np.int64(coder[2] <= middle)
    if bit:
        coder[1] = middle
    else:
        coder[0] = middle + np.uint64(1)
    while (coder[0] ^ coder[1]) >> np.uint64(24) == np.uint64(0):
        _turn(coder, coded, read)
    return bit


@compiled
def settle(coder, coded, read):
    """Take in the first bytes, before anything is read, or give out the last ones, once all is written."""
    for _ in range(4):
        _turn(coder, coded, read)


@compiled
def _turn(coder, coded, read):
    """Take in the next byte, or give out the one that both ends of the interval have."""
    used = np.int64(coder[3])
    if read:
        ahead = np.uint64(coded[used] if used < len(coded) else 0)
        coder[2] = (coder[2] << np.uint64(8)) & np.uint64(0xFFFFFFFF) | ahead
    elif used < len(coded):
        coded[used] = coder[1] >> np.uint64(24)
    coder[0] = (coder[0] << np.uint64(8)) & np.uint64(0xFFFFFFFF)
    coder[1] = (coder[1] << np.uint64(8)) & np.uint64(0xFFFFFFFF) | np.uint64(255)
    coder[3] += np.uint64(1)


@compiled
def code_tokens(mixer, tokens, model, nats, coder, coded, read):
    """Predict and learn tokens (n,); ``model`` (n, V) probabilities, or (0, V); costs go to ``nats`` (n,).

    With a ``coder`` (4,), instead of (0,), they are also written to the bytes ``coded``, or read from them.

    Returns the number of tokens done: fewer than n where the journal has no room left.
    """
    side, codes = 1 if len(model) else 0, len(coder) > 0
    if read:
        settle(coder, coded, True)
    for index in range(len(tokens)):
        look(mixer)
        if not has_room(mixer.counts, mixer.slots, CELLS):
            return index
        if side:
            sum_up(mixer, model[index])
        token = np.int64(tokens[index])
        if read:
            lay_out(mixer)
        else:
            see(mixer, token)
        code, node, depth = np.int64(mixer.tree.code[token]), np.int64(0), 0
        chance = 1.0
        while node >= 0:
            bit = (code >> (31 - depth)) & 1
            if read:
                split(mixer, node, depth)
                bit = np.int64(-1)
            right = join(mixer, node, depth) if side else weigh(mixer, node, depth)
            if codes:
                bit = code_bit(coder, coded, right, bit)
            if read:
                descend(mixer, depth, bit)
            chance *= right if bit else 1.0 - right
            node = np.int64(mixer.tree.child[node, bit])
            depth += 1
        if read:
            tokens[index] = token = ~node
        nats[index] = -np.log(safe(mixer, chance, model[index, token], True) if side else chance)
        learn(mixer, token, side)
        advance(mixer, token)
    if codes and not read:
        settle(coder, coded, False)
    return len(tokens)


@compiled
def row(mixer, model, logs, nodes, chances):
    """Log probabilities (V,) of all tokens that may come next; ``model`` (V,) probabilities, or (0,).

    ``nodes`` (34, 2) and ``chances`` (34, 3) are worked with.
    """
    side = 1 if len(model) else 0
    look(mixer)
    lay_out(mixer)
    if side:
        sum_up(mixer, model)
    tree = mixer.tree
    # At each depth: the node, which bit comes next; probability of either bit, and of the way to the node.
    depth = 0
    nodes[0, 0], nodes[0, 1], chances[0, 2] = 0, -1, 1.0
    while depth >= 0:
        node = nodes[depth, 0]
        nodes[depth, 1] += 1
        bit = nodes[depth, 1]
        if bit == 0:
            split(mixer, node, depth)
            right = join(mixer, node, depth) if side else weigh(mixer, node, depth)
            chances[depth, 0], chances[depth, 1] = 1.0 - right, right
        if bit == 2:
            depth -= 1
            continue
        below = chances[depth, 2] * chances[depth, bit]
        child = np.int64(tree.child[node, bit])
        if child < 0:
            logs[~child] = np.log(safe(mixer, below, model[~child], False) if side else below)
        else:
            descend(mixer, depth, bit)
            depth += 1
            nodes[depth, 0], nodes[depth, 1], chances[depth, 2] = child, -1, below
