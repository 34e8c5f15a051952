"""Which n-grams of a text are worth their bytes: pruning by entropy (Stolcke 1998)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgolf.memory.memory import Ngrams, Start, Tokens, encode_ngrams
from pgolf.memory.ngrams import LONGEST, TIMES

_TRIES, _CLOSE = 5, 0.99


def nearest(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """The index of the nearest of ``TIMES``, by ratio."""
    return np.searchsorted(np.sqrt(TIMES[1:] * TIMES[:-1]), times)


class Candidates:
    """The n-grams of 2 to ``longest`` tokens that a text (n,) has at least twice, and what each is worth."""

    def __init__(self, start: Start, text: Tokens, longest: int = LONGEST) -> None:
        self.start, self.size = start, start.vocab_size
        size = self.size
        total = float(len(text))
        place = np.argsort(start.leaves).astype(np.int64)  # A token's place among the leaves.
        last = place[text]
        self.tokens = np.bincount(last, minlength=size)
        chance = self.tokens / total
        # At each place of the text, the n-gram that begins there.
        at, known = np.arange(len(text)), last
        self.parents: list[NDArray[np.int64]] = []
        self.leaves: list[NDArray[np.int64]] = []
        self.times: list[NDArray[np.int64]] = []
        self.worth: list[NDArray[np.float64]] = []
        for length in range(2, longest + 1):
            at = at[at + length <= len(text)]
            keys = known[at] * size + last[at + length - 1]
            unique, first, inverse, counted = np.unique(
                keys, return_index=True, return_inverse=True, return_counts=True
            )
            context = unique // size
            often = np.bincount(context, counted)
            number = np.bincount(context)
            once, twice = (counted == 1).sum(), (counted == 2).sum()
            discount = once / max(once + 2 * twice, 1)
            kept = counted > 1
            shorter = chance[known[at[first[kept]] + 1]]
            context = context[kept]
            given = (counted[kept] - discount) / often[context]
            backing = discount * number[context] / often[context]
            now = given + backing * shorter
            without = (backing + given) * shorter
            self.parents.append(context)
            self.leaves.append(unique[kept] % size)
            self.times.append(counted[kept])
            gain = now * np.log2(now / without) - given * (1 - shorter) / np.log(2)
            self.worth.append(often[context] / total * gain)
            chance = now
            # Longer ones begin with one of these.
            fresh = np.where(kept, np.cumsum(kept) - 1, -1)[inverse]
            known = np.full(len(text), -1)
            known[at] = fresh
            at = at[fresh >= 0]
        self.order = np.sort(np.concatenate(self.worth))[::-1]

    def within(self, limit: int) -> tuple[Ngrams, int]:
        """Those worth most whose code takes at most ``limit`` bytes, and its bytes; maybe none."""
        found, size, count = np.zeros((0, 3), np.uint32), 0, limit
        for _ in range(_TRIES):
            coded, rows = encode_ngrams(self.start, self.best(count))
            if size < len(coded) <= limit:
                found, size = rows, len(coded)
            if size > _CLOSE * limit or (size and count > len(self.order)):
                break
            count = int(count * (1 + _CLOSE) / 2 * limit / len(coded))
        return found, size

    def best(self, count: int) -> Ngrams:
        """About ``count`` n-grams (n, 3) that are worth most, and those that they begin with."""
        least = max(self.order[count], 0.0) if count < len(self.order) else 0.0
        kept = [worth > least for worth in self.worth]
        for level in range(len(kept) - 1, 0, -1):
            kept[level - 1][self.parents[level][kept[level]]] = True
        rows = [np.stack([np.zeros(self.size), np.arange(self.size), nearest(self.tokens)], 1)]
        places, used = np.arange(self.size), self.size
        for level, keep in enumerate(kept):
            parents, times = places[self.parents[level][keep]], nearest(self.times[level][keep])
            rows.append(np.stack([parents, self.leaves[level][keep], times], 1))
            places = used + np.cumsum(keep) - 1
            used += int(keep.sum())
        return np.concatenate(rows).astype(np.uint32)
