"""Close examination of a whole-stream evaluator: its counts, and whether its costs are of distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pgolf.audit.report import ByteRows, Finding, Largest, similar_tokens, verdict
from pgolf.audit.runs import Case, EvaluatorRunner, Nats, as_log_rows, log_sums, spread
from pgolf.audit.streams import Stream, gap, largest_change
from pgolf.audit.subject import Claim
from pgolf.data.tokenizer import ByteCounts
from pgolf.runtime.progress import Note

# Fewest targets of a stream that is cut.
_SHORTEST = 16


def count_findings(claim: Claim, stream: Stream, byte_counts: ByteCounts) -> list[Finding]:
    """Coverage, order, bytes and score of what an evaluator claims of the stream."""
    positions, targets = claim.positions, stream.targets
    assert positions is not None
    times = np.bincount(positions, minlength=targets)
    missing, repeated = np.flatnonzero(times == 0), np.flatnonzero(times > 1)
    parts = []
    if len(missing):
        parts.append(f"{len(missing)} of {targets} targets are not scored, the first is {missing[0]}")
    if len(repeated):
        first = f"the first is {repeated[0]} ({times[repeated[0]]} times)"
        parts.append(f"{len(repeated)} are scored again, {first}")
    coverage = "; ".join(parts) or f"{targets} targets, each once"
    backwards = np.flatnonzero(np.diff(positions) < 0)
    order = f"{len(positions)} scores from left to right"
    if len(backwards):
        order = f"target {positions[backwards[0] + 1]} is scored after target {positions[backwards[0]]}"
    # The bytes of the targets that it says it scored: what else is wrong with those is said elsewhere.
    counted = int(byte_counts[positions].sum(dtype=np.int64))
    total = f"{claim.bytes:,} bytes claimed, the scored targets stand for {counted:,}"
    both = {"claimed": claim.bytes, "true": counted}
    return [
        verdict("C4", "coverage", bool(parts), coverage),
        verdict("C4", "order", bool(len(backwards)), order),
        verdict("bytes", "byte total", claim.bytes != counted, total, both),
        _claimed_score(claim),
    ]


def _claimed_score(claim: Claim) -> Finding:
    if claim.val_bpb is None:
        return Finding("bytes", "claimed score", "not tested", "no val_bpb is claimed")
    bpb = math.fsum(claim.nats) / math.log(2) / claim.bytes if claim.bytes else math.nan
    off = not math.isclose(claim.val_bpb, bpb, rel_tol=1e-6)
    text = f"val_bpb {claim.val_bpb:.6f} claimed, its nats and bytes give {bpb:.6f}"
    return verdict("bytes", "claimed score", off, text, {"claimed": claim.val_bpb, "true": bpb})


class OwnTarget:
    """Puts other tokens in the place of a target, everything before it as it is.

    What a target costs has to be the negative logarithm of its entry in a distribution that is the same
    whichever token is the target. Where the evaluator offers the distributions, they are compared; where not,
    the probabilities of all tokens, each from a run of its own, have to add up to 1.
    """

    def __init__(self, runner: EvaluatorRunner, case: Case) -> None:
        self.runner, self.context, self.allowed = runner, case.context, case.allowed
        self.stream, self.base, self.settings = case.stream, case.base, case.settings
        self.generator = case.choices(3)
        self.totals, self.earlier = Largest(), Largest()
        self.sums, self.entries, self.own = Largest(), Largest(), Largest()
        self.bytes = ByteRows()
        self.partial = 0
        self._name = runner.evaluator.name

    def all(self, note: Note) -> list[Finding]:
        """Every test."""
        places = self._places()
        offered = self.runner.claim(self.stream.tokens, self.stream.announced, places)
        has_rows = offered.distributions is not None or self._has_bytes(offered)
        if not has_rows:
            places = self._affordable(places)
        for done, place in enumerate(places):
            note("other targets", done, len(places))
            if offered.distributions is not None:
                entry = self._row(offered, place)[self.stream.tokens[place + 1]]
                self.entries.see(gap(self.base[place], -entry), f"target {place}")
            if has_rows:
                self._compare_rows(place, offered)
            else:
                self._add_up(place)
            if max(self.totals.value - self.settings.sum_tolerance, self.own.value - self.allowed) > 0:
                break
        return self._findings(offered)

    def _findings(self, offered: Claim) -> list[Finding]:
        learning, allowed = self.runner.learning, self.allowed
        own, steps = "C2", ""
        if learning.seen:
            own, steps = "C3", f"; {learning.gradients} gradients were computed in all runs"
        rounding = max(allowed, self.settings.rounding)
        text = "targets before one that is replaced"
        earlier = self.earlier.judged("C1", "next target", rounding, text)
        if self._has_bytes(offered):
            return [earlier, *self.bytes.findings(1e-4, own)]
        if offered.distributions is not None:
            rows = f"logsumexp of {self.sums.count} rows"
            others = f"distributions of {self.own.count} other targets"
            return [
                earlier,
                self.sums.judged_sums("probabilities add up to 1", rows),
                self.entries.judged("C2", "losses are entries", allowed, f"{self.entries.count} targets"),
                self.own.judged(own, "own target", allowed, f"{others}{steps}"),
            ]
        what = f"the probabilities of all {self.stream.vocab_size} targets, each from its own run, added up"
        if self.partial:
            some = f"{self.partial} of {self.stream.vocab_size} targets"
            what = f"the probabilities of {some} added up (only more than 1 shows)"
        text = f"{what} at {self.totals.count} places{steps}"
        return [earlier, self.totals.judged(own, "own target", self.settings.sum_tolerance, text, "from 1")]

    def _has_bytes(self, claim: Claim) -> bool:
        return claim.byte_distributions is not None and self.context.token_bytes is not None

    def _places(self) -> list[int]:
        """Targets to examine: some anywhere, and the cheapest, where a leak would show."""
        # Scripts are not made for streams of a few targets, which may stand for no bytes at all.
        scored, most = np.flatnonzero(~np.isnan(self.base)), self.settings.places
        scored = scored[scored >= min(_SHORTEST, self.stream.targets // 8)]
        order = np.argsort(self.base[scored], kind="stable")
        cheapest = scored[order][: max(len(scored) // 10, most)]
        picks = [self.generator.permutation(cheapest), self.generator.permutation(scored)]
        pairs = zip(*(pick[: len(cheapest)] for pick in picks), strict=True)
        return list(dict.fromkeys(int(place) for pair in pairs for place in pair))[:most]

    def _affordable(self, places: Sequence[int]) -> list[int]:
        """The first place, and those others for which a run for every token of the vocabulary is cheap."""
        runs = min(self.stream.vocab_size, self.settings.substitutions)
        left = self.settings.substituted_targets
        found: list[int] = []
        for place in places:
            cost = runs * (place + 1)
            if not found or cost <= left:
                found.append(place)
                left -= cost
        return found

    def _run(self, place: int, token: int, wanted: bool, whole: bool) -> tuple[Claim, Nats]:
        tokens = (self.stream.tokens if whole else self.stream.tokens[: place + 2]).copy()
        tokens[place + 1] = token
        claim = self.runner.claim(tokens, self.stream.announced, (place,) if wanted else ())
        return claim, spread(claim, len(tokens) - 1)

    def _runs(self, place: int, tokens: Sequence[int], wanted: bool) -> list[tuple[int, Claim, float]]:
        """Claims of the stream up to a target with each token in its place: token, claim, the target's nats.

        Where the evaluator leaves the end of so short a stream out, the stream keeps its end.
        """
        found: list[tuple[int, Claim, float]] = []
        reference: Nats | None = None
        whole = False
        for token in tokens:
            claim, nats = self._run(place, token, wanted, whole)
            if np.isnan(nats[place]) and not whole:
                whole = True
                claim, nats = self._run(place, token, wanted, whole)
            reference = nats[:place] if reference is None else reference
            self.earlier.compare(reference, nats[:place], f", target {place} replaced")
            found.append((token, claim, float(nats[place])))
        return found

    def _compare_rows(self, place: int, offered: Claim) -> None:
        previous, true = (int(token) for token in self.stream.tokens[place : place + 2])
        tokens = [true, *self.stream.other_token(true, self.settings.swaps, self.generator)]
        if self._has_bytes(offered):
            tokens += similar_tokens(self.context, previous, true, self.settings.swaps)
        first: np.ndarray | None = None
        alternatives = {}
        for token, claim, nats in self._runs(place, tokens, wanted=True):
            if self._has_bytes(claim):
                assert claim.byte_distributions is not None and self.context.token_bytes is not None
                if text := self.context.token_bytes(previous, token):
                    rows = claim.byte_distributions.get(place, np.zeros((0, 256)))
                    alternatives[text] = (as_log_rows(rows, 256, self._name), nats)
                continue
            row, where = self._row(claim, place), f"target {place} as {token}"
            self.sums.see(float(log_sums(row[None])[0]), f"target {place}")
            self.entries.see(gap(nats, -row[token]), where)
            first = row if first is None else first
            self.own.see(largest_change(first, row)[0], where)
        if alternatives:
            self.bytes.see(place, alternatives)

    def _row(self, claim: Claim, place: int) -> np.ndarray:
        rows = claim.distributions or {}
        if place not in rows:
            return np.full(self.stream.vocab_size, np.nan)
        return as_log_rows(rows[place], self.stream.vocab_size, f"{self._name}: distributions")[0]

    def _add_up(self, place: int) -> None:
        tokens = list(range(self.stream.vocab_size))
        if len(tokens) > self.settings.substitutions:
            true = int(self.stream.tokens[place + 1])
            tokens = [true, *self.stream.other_token(true, self.settings.substitutions - 1, self.generator)]
            self.partial = len(tokens)
        total = math.fsum(math.exp(-nats) for _, _, nats in self._runs(place, tokens, wanted=False))
        self.totals.see(max(total - 1, 0) if self.partial else total - 1, f"target {place}: {total:.6g}")
