"""Tokens through the mixer: what they cost, all that may come next, and text as bytes and back."""

from __future__ import annotations

import numpy as np

from pgolf.kernels.bits import code_bit, settle
from pgolf.kernels.compiled import compiled
from pgolf.memory.contexts import CELLS, advance, descend, lay_out, look, see, split
from pgolf.memory.counts import has_room
from pgolf.memory.mixing import join, learn, safe, sum_up, weigh


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
