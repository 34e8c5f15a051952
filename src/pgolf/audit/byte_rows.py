"""Distributions over bytes, for whoever predicts bytes: one row for each byte of a target."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pgolf.audit.report import Finding, Largest
from pgolf.audit.runs import log_sums
from pgolf.audit.subject import Context

Rows = NDArray[np.float64]


def similar_tokens(context: Context, previous: int, token: int, count: int) -> list[int]:
    """At most ``count`` tokens whose bytes begin as those of another token do, and then go on differently.

    What they share shows whether a row depends on bytes that come later.
    """
    assert context.token_bytes is not None
    text = context.token_bytes(previous, token)
    ranked = []
    for other in range(context.vocab_size):
        pairs = zip(text, context.token_bytes(previous, other), strict=False)
        common = next((index for index, (one, two) in enumerate(pairs) if one != two), 0)
        if common:
            ranked.append((-common, other))
    return [other for _, other in sorted(ranked)[:count]]


class ByteRows:
    """Collects what the byte distributions of targets show.

    Row j of a target's rows (m, 256) is the distribution of its byte j, given the text before and the bytes
    before j.
    """

    def __init__(self) -> None:
        self.sums, self.entries, self.own = Largest(), Largest(), Largest()

    def see(self, place: int, alternatives: Mapping[bytes, tuple[Rows, float]]) -> None:
        """Take the target at a place into account: for the bytes of each token tried there, rows and nats."""
        prefixes: dict[bytes, NDArray[np.float64]] = {}
        for text, (rows, nats) in alternatives.items():
            where = f"target {place}, bytes {text!r}"
            if len(rows) != len(text):
                self.entries.see(np.inf, f"{where}: {len(rows)} rows")
                continue
            for value in log_sums(rows):
                self.sums.see(float(value), where)
            self.entries.see(float(nats + sum(rows[index, byte] for index, byte in enumerate(text))), where)
            for index, row in enumerate(rows):
                known = prefixes.setdefault(text[:index], row)
                with np.errstate(invalid="ignore"):
                    difference = np.where(known == row, 0, np.abs(known - row))
                self.own.see(float(difference.max()), where)

    def findings(self, tolerance: float, own_condition: str) -> list[Finding]:
        """What was found; ``own_condition`` names a dependence on the byte that is predicted."""
        rows, targets = f"logsumexp of {self.sums.count} byte rows", f"{self.entries.count} targets"
        return [
            self.sums.judged("C2", "bytes add up to 1", tolerance, rows, ""),
            self.entries.judged("C2", "nats are those of the bytes", tolerance, targets),
            self.own.judged(own_condition, "own bytes", tolerance, "byte rows of targets that begin alike"),
        ]
