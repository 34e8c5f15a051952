"""Variations of a stream of tokens, and where they begin.

Token i is followed by target i, which is token i + 1. An *edge* e divides the targets: a variation at e
changes tokens after token e only, so that the targets 0 to e - 1 are the same, and what they cost must be
too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgolf.data.shards import Tokens


@dataclass(frozen=True)
class Edge:
    """A place where the future is made to begin."""

    at: int
    """Targets before it, at least 1."""
    kind: str
    """chunk, window, document, random or early."""

    def __str__(self) -> str:
        return f"{self.kind} edge {self.at}"


class Stream:
    """The audited stretch of text: (N + 1,) uint16, in which ``bos_id`` begins every document.

    An evaluation would announce so many targets as ``announced`` says: those of the whole text (default: N).
    """

    def __init__(self, tokens: Tokens, bos_id: int, vocab_size: int, announced: int | None = None) -> None:
        assert len(tokens) > 2, "an audit needs at least two targets"
        self.tokens, self.bos_id, self.vocab_size = tokens, bos_id, vocab_size
        self.targets = len(tokens) - 1
        """N."""
        self.announced = self.targets if announced is None else announced
        present = np.unique(tokens)
        others = present[present != bos_id]
        # Tokens of the text itself: some pieces of a tokenizer may never occur, and cost anything.
        self._alphabet = others if len(others) > 1 else np.arange(vocab_size)[np.arange(vocab_size) != bos_id]

    @property
    def documents(self) -> list[int]:
        """Indices of the tokens that begin a document, other than the first token."""
        return [int(index) for index in np.flatnonzero(self.tokens[1:] == self.bos_id) + 1]

    def edges(
        self, periodic: Iterable[tuple[str, Iterable[int]]], per_kind: int, generator: np.random.Generator
    ) -> list[Edge]:
        """At most ``per_kind`` edges of each kind: those given as (kind, places), of documents, and anywhere.

        One more is early: what depends on the text as a whole shows best where nearly all of it changes.
        """
        kinds = [(kind, list(places)) for kind, places in periodic]
        kinds += [("document", self.documents), ("random", list(range(1, self.targets)))]
        early = int(generator.integers(max(self.targets // 16, 1), max(self.targets // 8, 1) + 1))
        found = {early: Edge(early, "early")}
        for kind, places in kinds:
            free = sorted({place for place in places if 1 <= place < self.targets} - found.keys())
            for place in generator.permutation(free)[:per_kind]:
                found[int(place)] = Edge(int(place), kind)
        return [found[place] for place in sorted(found)]

    def other_future(self, edge: int, generator: np.random.Generator) -> Tokens:
        """Every token after ``edge`` replaced by another one; documents begin where they did."""
        return self._others(edge + 1, len(self.tokens), generator)

    def other_past(self, edge: int, generator: np.random.Generator) -> Tokens:
        """Every token before token ``edge`` replaced by another one; documents begin where they did."""
        return self._others(0, edge, generator)

    def other_boundaries(self, edge: int, generator: np.random.Generator) -> list[tuple[str, Tokens]]:
        """Streams whose documents end elsewhere after ``edge``, with what was done; other tokens stay."""
        after = [place for place in self.documents if place > edge]
        room = [place for place in range(edge + 1, len(self.tokens)) if place not in after]
        variations = []
        if after:
            removed = self.tokens.copy()
            removed[after] = generator.choice(self._alphabet, len(after))
            variations.append(("removed", removed))
        if room:
            added = self.tokens.copy()
            added[room[int(generator.integers(min(len(room), 8)))]] = self.bos_id
            variations.append(("added", added))
        return variations

    def other_token(self, token: int, count: int, generator: np.random.Generator) -> list[int]:
        """At most ``count`` different tokens of the text's alphabet, none of them ``token``."""
        others = self._alphabet[self._alphabet != token]
        return [int(other) for other in generator.permutation(others)[:count]]

    def _others(self, begin: int, end: int, generator: np.random.Generator) -> Tokens:
        tokens, alphabet = self.tokens.copy(), self._alphabet
        replaced = np.flatnonzero(tokens[begin:end] != self.bos_id) + begin
        places = np.searchsorted(alphabet, tokens[replaced]) % len(alphabet)
        shifts = generator.integers(1, len(alphabet), len(replaced))
        tokens[replaced] = alphabet[(places + shifts) % len(alphabet)]
        return tokens


def gap(one: float, other: float) -> float:
    """The difference of two costs; none where both are the same infinity."""
    return 0.0 if one == other else abs(one - other)


def largest_change(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, int]:
    """The largest difference of two arrays (n,), and where; infinite where only one of them has a number."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(before - after)
    difference[(before == after) | (np.isnan(before) & np.isnan(after))] = 0
    difference[np.isnan(difference)] = np.inf
    if not len(difference):
        return 0.0, 0
    place = int(difference.argmax())
    return float(difference[place]), place
