"""Linear mixing: interpolated counts of every order and the model, as a weighted mean of distributions.

Order k's distribution is that of order k - 1 with what the counts of its context say, by absolute discounting
(Ney, Essen and Kneser 1994); order -1 is uniform. The discount of each order follows the gradient of the log
loss. Weights are chosen by the longest context that is known and by how often it was seen, and learned by
exponentiated gradient, so they stay positive and add up to 1. Only the target's own counts are looked up: the
cost per token does not depend on the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.kernels.compiled import compiled, inner
from pgolf.memory.contexts import CELLS, ORDER, TOKENS, advance, look
from pgolf.memory.counts import has_room, successor, successors
from pgolf.memory.mixing import safe

_SEEN = 6
_RATE, _DISCOUNT_RATE = 0.02, 0.002
_LEAST, _MODEL = 1e-5, 0.9


class Linear(NamedTuple):
    """What the linear mixing learns, and what it works with, for orders 0 to K."""

    weights: NDArray[np.float64]
    """(2, K + 2, _SEEN, K + 2): without and with a model; the model is the last."""
    discounts: NDArray[np.float64]
    """(K + 1,)."""
    chances: NDArray[np.float64]
    """(K + 2,): the target's probability by each."""
    slopes: NDArray[np.float64]
    """(K + 1,): derivative of its order's probability by the discount."""


def new_linear(order: int) -> Linear:
    """At first the weights of the orders grow with their length, and the model has weight ``_MODEL``."""
    weights = np.zeros((2, order + 2, _SEEN, order + 2))
    for found in range(order + 2):
        rising = np.where(np.arange(order + 1) < max(found, 1), 2.0 ** np.arange(order + 1), 1e-4)
        weights[:, found, :, : order + 1] = rising / rising.sum()
    weights[1] *= 1 - _MODEL
    weights[1, :, :, order + 1] = _MODEL
    return Linear(weights, np.full(order + 1, 0.75), np.zeros(order + 2), np.zeros(order + 1))


@inner
def _opinions(mixer, linear, token):
    """The target's probability by each order; returns the longest known context's length + 1 and class."""
    chance, found, seen = 1.0 / len(mixer.tree.code), 0, 0
    for each in range(mixer.numbers[ORDER] + 1):
        total, number = mixer.known[each, 0], mixer.known[each, 1]
        linear.slopes[each] = 0.0
        if total:
            times = _times(mixer, each, token)
            discount = linear.discounts[each]
            shorter = chance
            chance = ((times - discount if times else 0.0) + discount * number * shorter) / total
            linear.slopes[each] = (number * shorter - (1.0 if times else 0.0)) / total
            found, seen = each + 1, total
        linear.chances[each] = chance
    kind = 0
    while kind < _SEEN - 1 and seen >= 2 << (2 * kind):
        kind += 1
    return found, kind


@inner
def _times(mixer, each, token):
    """How often a token followed a context."""
    if each == 0:
        return np.int64(mixer.counts.cells[mixer.numbers[TOKENS] + 4 * (len(mixer.tree.code) - 1) + token])
    slot = mixer.slots[each]
    first, number, _ = successors(mixer.counts, slot)
    for index in range(number):
        other, times = successor(mixer.counts, slot, first, index)
        if other == token:
            return times
    return np.int64(0)


@compiled
def code_linear(mixer, linear, tokens, model, nats):
    """Predict and learn tokens (n,), and return how many; see ``coding.code_tokens``."""
    side = 1 if len(model) else 0
    orders = mixer.numbers[ORDER] + 1
    for index in range(len(tokens)):
        token = np.int64(tokens[index])
        look(mixer)
        if not has_room(mixer.counts, mixer.slots, CELLS):
            return index
        found, kind = _opinions(mixer, linear, token)
        linear.chances[orders] = model[index, token] if side else 0.0
        weights, chance = linear.weights[side, found, kind], 0.0
        for each in range(orders + side):
            chance += weights[each] * linear.chances[each]
        nats[index] = -np.log(safe(mixer, chance, model[index, token], True) if side else chance)
        total = 0.0
        for each in range(orders + side):
            weights[each] *= np.exp(_RATE * (min(linear.chances[each] / chance, 50.0) - 1.0))
            weights[each] = max(weights[each], _LEAST)
            total += weights[each]
        for each in range(orders + side):
            weights[each] /= total
        for each in range(orders):
            gradient = linear.slopes[each] / linear.chances[each]
            moved = linear.discounts[each] + _DISCOUNT_RATE * min(max(gradient, -1.0), 1.0)
            linear.discounts[each] = min(max(moved, 0.05), 0.98)
        advance(mixer, token)
    return len(tokens)


@compiled
def row_linear(mixer, linear, model, logs, chances):
    """Log probabilities (V,) of tokens that may come next; see ``coding.row``. ``chances`` (V,): for work."""
    side = 1 if len(model) else 0
    orders = mixer.numbers[ORDER] + 1
    look(mixer)
    # The weights depend on the contexts alone: any token will do.
    found, kind = _opinions(mixer, linear, 0)
    weights = linear.weights[side, found, kind]
    size = len(logs)
    for token in range(size):
        chances[token], logs[token] = 1.0 / size, 0.0
    for each in range(orders):
        total, number = mixer.known[each, 0], mixer.known[each, 1]
        if total:
            discount, slot = linear.discounts[each], mixer.slots[each]
            for token in range(size):
                chances[token] *= discount * number / total
                if each == 0:
                    times = _times(mixer, 0, token)
                    chances[token] += (times - discount) / total if times else 0.0
            if each:
                first, _, _ = successors(mixer.counts, slot)
                for index in range(number):
                    token, times = successor(mixer.counts, slot, first, index)
                    chances[token] += (times - discount) / total
        for token in range(size):
            logs[token] += weights[each] * chances[token]
    for token in range(size):
        chance = logs[token]
        if side:
            chance = safe(mixer, chance + weights[orders] * model[token], model[token], False)
        logs[token] = np.log(chance)
