"""Tokens through the mixer: what they cost, all that may come next, and text as bytes and back."""

from __future__ import annotations

import numpy as np

from pgolf.memory.compiled import compiled
from pgolf.memory.contexts import CELLS, advance, descend, lay_out, look, see, split
from pgolf.memory.counts import has_room
from pgolf.memory.mixing import join, learn, safe, sum_up, weigh


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
            sum_up(mixer, model[index])
        token = np.int64(tokens[index])
        see(mixer, token)
        code, node, depth = np.int64(mixer.tree.code[token]), np.int64(0), 0
        chance = 1.0
        while node >= 0:
            right = join(mixer, node, depth) if side else weigh(mixer, node, depth)
            bit = (code >> (31 - depth)) & 1
            chance *= right if bit else 1.0 - right
            node = np.int64(mixer.tree.child[node, bit])
            depth += 1
        nats[index] = -np.log(safe(mixer, chance, model[index, token], True) if side else chance)
        learn(mixer, token, side)
        advance(mixer, token)
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


@compiled
def cut(low, high, right):
    """Where the coder's interval is cut: bit 1, of probability ``right``, has the lower part."""
    share = min(max(np.uint64(right * 65536.0), np.uint64(1)), np.uint64(65535))
    return low + (high - low) * share // np.uint64(65536)


@compiled
def encode(mixer, tokens, coded):
    """Code tokens (n,) without a model into ``coded``, a byte each; returns the bytes in use."""
    low, high, used = np.uint64(0), np.uint64(0xFFFFFFFF), 0
    for token in tokens:
        look(mixer)
        see(mixer, np.int64(token))
        code, node, depth = np.int64(mixer.tree.code[token]), np.int64(0), 0
        while node >= 0:
            middle = cut(low, high, weigh(mixer, node, depth))
            bit = (code >> (31 - depth)) & 1
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
            middle = cut(low, high, weigh(mixer, node, depth))
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
