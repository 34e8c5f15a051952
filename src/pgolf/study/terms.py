"""What a score is made of: each evaluation of one run, and the differences that have a meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EVALUATIONS = ("raw", "float", "packed", "sliding", "ttt")
"""From the last weights to the score that counts. Each changes one thing of the one before."""

NAMES = {
    "raw": "raw float",
    "float": "averaged float",
    "packed": "packed",
    "sliding": "sliding",
    "ttt": "TTT",
}
STEPS = {"float": "averaging", "packed": "quantization", "sliding": "sliding windows", "ttt": "TTT"}
"""What changes from the evaluation before to this one."""


GAINS = {
    "averaging_gain": ("raw", "float"),
    "quantization_gap": ("packed", "float"),
    "sliding_gain": ("packed", "sliding"),
    "ttt_gain": ("sliding", "ttt"),
}
"""Differences, first minus second, of two evaluations that differ in one thing. A gain is positive where the
score got better; the gap where it got worse: it compares packed with averaged float weights, both with
standard windows.
"""


@dataclass(frozen=True)
class Terms:
    """Scores of one run in bits per byte, and the size of its artifact."""

    scores: Mapping[str, float]
    """By evaluation; those that were not made are left out."""
    bytes: int | None = None
    """The whole artifact, code included."""

    def get(self, name: str) -> float | None:
        """One of EVALUATIONS or GAINS, or "bytes"; None where it is not known."""
        if name == "bytes":
            return self.bytes
        if name not in GAINS:
            return self.scores.get(name)
        first, second = (self.scores.get(part) for part in GAINS[name])
        return None if first is None or second is None else first - second


def terms_of(result: Mapping[str, Any]) -> Terms:
    """The terms in what ``result.json`` holds."""
    evaluations, pack = result.get("evaluations", {}), result.get("pack") or {}
    scores = {name: float(evaluations[name]["val_bpb"]) for name in EVALUATIONS if name in evaluations}
    return Terms(scores, pack.get("total_bytes"))
