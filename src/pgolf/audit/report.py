"""What an audit found: one finding per test, with its evidence, and the largest of many differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pgolf.audit.runs import log_sums
from pgolf.audit.streams import largest_change
from pgolf.audit.subject import Context

CONDITIONS = {
    "C1": "strict causality: what a target costs depends on the artifact and the tokens before it only",
    "C2": "a full distribution that adds up to 1, fixed before its target is seen",
    "C3": "the counted loss uses the state before any update with that token",
    "C4": "one pass from left to right, every target scored exactly once",
    "bytes": "the score divides the nats of all targets by the bytes they stand for, no others",
    "documents": "documents that are declared independent are",
    "isolation": "no files, sockets or processes beside the artifact and the code",
    "time": "the whole evaluation fits into the track's limit",
}

SUM_LIMIT, MEAN_LIMIT = 1e-4, 1e-5
"""How far the logarithm of the sum of a row's probabilities may be from 0, and the mean of many."""

Verdict = Literal["ok", "violation", "not tested"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one test."""

    condition: str
    """A key of ``CONDITIONS``."""
    test: str
    """What was tested, in a few words."""
    verdict: Verdict
    evidence: str
    """The numbers behind the verdict, or why there are none."""
    details: dict[str, Any] = field(default_factory=dict)
    """The same numbers as JSON values."""

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the scorer; true also where there was nothing to test."""
        return self.verdict != "violation"


@dataclass(frozen=True)
class Report:
    """All findings of an audit."""

    subject: str
    """What was audited."""
    kind: Literal["scorer", "evaluator"]
    seed: int
    targets: int
    """Targets of the stretch of text that it was audited on."""
    val_bpb: float
    """Its score on that stretch, in bits per byte."""
    seconds_per_target: float
    seconds: float
    """What the audit took."""
    findings: list[Finding] = field(repr=False)
    notes: list[str] = field(default_factory=list, repr=False)
    """What is no violation, but good to know."""
    audited: dict[str, str] = field(default_factory=dict, repr=False)
    """Digests and the mode: what exactly the findings are about."""

    @property
    def ok(self) -> bool:
        """Whether no test found a violation."""
        return all(finding.passed for finding in self.findings)

    @property
    def violated(self) -> list[str]:
        """The violated conditions, in the order of ``CONDITIONS``."""
        found = {finding.condition for finding in self.findings if not finding.passed}
        return [condition for condition in CONDITIONS if condition in found]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self) | {
            "ok": self.ok,
            "val_bpb": self.val_bpb if np.isfinite(self.val_bpb) else None,
            "violated": self.violated,
            "findings": [asdict(finding) | {"passed": finding.passed} for finding in self.findings],
        }


def verdict(
    condition: str, test: str, bad: bool, evidence: str, details: dict[str, Any] | None = None
) -> Finding:
    """What a test that was run has found: a violation, or not."""
    return Finding(condition, test, "violation" if bad else "ok", evidence, details or {})


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Findings in the order of their conditions, otherwise as they came."""
    order = list(CONDITIONS)
    return sorted(findings, key=lambda finding: order.index(finding.condition))


class Largest:
    """The largest of many differences, and where it was."""

    def __init__(self) -> None:
        self.value, self.place, self.count, self.sum = 0.0, "nowhere", 0, 0.0

    def see(self, value: float, place: str) -> None:
        """Take one difference into account; one that is not a number counts as infinite."""
        value = float("inf") if np.isnan(value) else abs(float(value))
        self.count, self.sum = self.count + 1, self.sum + value
        if value > self.value:
            self.value, self.place = value, place

    def take(self, values: NDArray[np.float64], first: int) -> None:
        """Take a difference (n,) of each of some targets into account."""
        sizes = np.where(np.isnan(values), np.inf, np.abs(values))
        largest = int(sizes.argmax())
        self.see(sizes[largest], f"target {first + largest}")
        others = np.delete(sizes, largest)
        self.count, self.sum = self.count + len(others), self.sum + float(others.sum())

    def compare(self, before: Any, after: Any, where: str = "", first: int = 0) -> None:
        """Take costs of targets, or rows (n, ...), into account; ``first`` is the first target."""
        one, other = np.asarray(before), np.asarray(after)
        change, place = largest_change(one.reshape(-1), other.reshape(-1))
        self.see(change, f"target {first + place // max(one.size // max(len(one), 1), 1)}{where}")

    def judged(self, condition: str, test: str, limit: float, text: str, unit: str = "nats") -> Finding:
        """A violation if the largest difference is beyond ``limit``; ``text`` says what was compared."""
        if not self.count:
            return Finding(condition, test, "not tested", f"{text}: there was no occasion")
        size = f"{self.value:.2g} {unit}".strip()
        where = f" ({self.place})" if self.value > 0 else ""
        evidence = f"{text}: at most {size}{where}; allowed {limit:.2g}"
        # JSON knows no infinity.
        largest = self.value if np.isfinite(self.value) else str(self.value)
        details = {"largest": largest, "where": self.place, "allowed": limit, "compared": self.count}
        return verdict(condition, test, self.value > limit, evidence, details)

    def judged_sums(self, test: str, text: str, condition: str = "C2") -> Finding:
        """The same of the logarithms of sums of probabilities, whose mean has a limit of its own."""
        found = self.judged(condition, test, SUM_LIMIT, text, "")
        if not self.count:
            return found
        mean = self.sum / self.count
        evidence = f"{found.evidence}; {mean:.2g} on average; allowed {MEAN_LIMIT:.2g}"
        details = found.details | {
            "mean": mean if np.isfinite(mean) else str(mean),
            "mean_allowed": MEAN_LIMIT,
        }
        return verdict(condition, test, not found.passed or mean > MEAN_LIMIT, evidence, details)


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
            self.sums.judged_sums("bytes add up to 1", rows),
            self.entries.judged("C2", "nats are those of the bytes", tolerance, targets),
            self.own.judged(own_condition, "own bytes", tolerance, "byte rows of targets that begin alike"),
        ]
