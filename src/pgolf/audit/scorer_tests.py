"""Close examination of a scorer, request by request: does scoring look at targets, or leave traces?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.isolated import IsolatedScorer
from pgolf.audit.report import ByteRows, Finding, Largest, similar_tokens, verdict
from pgolf.audit.runs import After, Before, Case, Hooks, Nats, ScorerRunner, as_log_rows
from pgolf.audit.state import changes, learned, scorer_parts
from pgolf.audit.streams import gap
from pgolf.audit.subject import blamed
from pgolf.evaluate.protocol import Recorded
from pgolf.runtime.progress import Note

# Requests that are examined have at most so many targets: each is scored some thirty times.
_CLOSE = 64


class ScorerTests:
    """Examines the scorer of a runner."""

    def __init__(self, runner: ScorerRunner, case: Case) -> None:
        self.runner, self.case, self.context = runner, case, case.context
        self.stream, self.settings, self.generator = case.stream, case.settings, case.choices(1)
        self.sums, self.entries, self.later, self.shorter = Largest(), Largest(), Largest(), Largest()
        self.own, self.strict, self.again = Largest(), Largest(), Largest()
        self.bytes = ByteRows()
        self.weights_changed: list[str] = []
        self.other_changed: list[str] = []
        self.digest_changes = 0
        self.probed = 0

    def all(self, note: Note) -> list[Finding]:
        """Every test."""
        requests: list[tuple[int, int]] = []

        def collect(first: int, block: Tensor, _: Tensor) -> None:
            requests.append((first, len(block)))

        note("requests of other sizes", 0, 4)
        plain = self._grade(after=collect)
        sizes, allowed, rounding = Largest(), self.case.allowed, self.case.allowed_rounding
        sizes.compare(self.case.base, plain)
        note("other targets", 1, 4)
        traces = self._probe(plain, requests)
        note("from a snapshot", 2, 4)
        replay = self._replay(plain, requests)
        note("hidden targets", 3, 4)
        hidden = self._hidden()
        own = "C3" if self.runner.learning.seen or self.weights_changed or self.other_changed else "C2"
        probed, rows = f"{self.probed} requests", f"logsumexp of {self.sums.count} rows"
        asked = f"asked in {len(requests)} requests instead"
        same, shown = "losses and distributions of the same targets", f"{self.strict.count} targets scored"
        return [
            sizes.judged("C1", "size of requests", rounding, asked),
            self.later.judged("C1", "later targets of a block", allowed, f"replaced in {probed}"),
            self.shorter.judged("C1", "end of a block", rounding, f"{probed} ended earlier"),
            replay,
            self.sums.judged_sums("probabilities add up to 1", rows),
            self.entries.judged("C2", "losses are entries", allowed, same),
            self.strict.judged("C2", "strict mode", rounding, f"{shown} without being shown"),
            self.own.judged(own, "own target", allowed, f"{self.own.count} targets replaced by others"),
            hidden,
            *(self.bytes.findings(1e-4, own) if self._predicts_bytes else []),
            self._state(),
            traces,
            self.again.judged("C3", "asking again", allowed, f"{probed} scored again after other targets"),
        ]

    @property
    def _predicts_bytes(self) -> bool:
        return hasattr(self.runner.scorer, "byte_distributions") and self.context.token_bytes is not None

    def _ask(self, position: int, wanted: int) -> int:
        """Sizes of requests that depend on the seed and the place only: many single ones, many small ones."""
        generator = np.random.default_rng([self.settings.seed, 2, position])
        kind = generator.random()
        if kind < 0.3:
            return 1
        return int(generator.integers(1, (wanted if kind > 0.7 else min(wanted, _CLOSE)) + 1))

    def _grade(
        self, before: Before | None = None, after: After | None = None, until: int | None = None
    ) -> Nats:
        hooks = Hooks(self._ask, before, after)
        return self.runner.grade(self.stream.tokens, self.stream.announced, until=until, hooks=hooks)[0]

    def _probe(self, plain: Nats, requests: Sequence[tuple[int, int]]) -> Finding:
        """The same run with probes in some requests, which must not leave traces."""
        chosen = self._chosen(plain, requests)
        parts: dict[str, str] = {}
        state = ""

        def before(first: int) -> None:
            nonlocal parts, state
            if first in chosen:
                parts, state = self._parts(), self._digest()

        def after(first: int, block: Tensor, losses: Tensor) -> None:
            if first not in chosen:
                return
            self._examine(first, block, losses)
            self.probed += 1
            changed = changes(parts, self._parts())
            self.weights_changed += learned(changed)
            self.other_changed += [path for path in changed if path not in learned(changed)]
            self.digest_changes += self._digest() != state

        found = Largest()
        found.compare(plain, self._grade(before, after))
        text = "the whole text with and without the other requests"
        return found.judged("C3", "traces of scoring", self.case.allowed, text)

    def _chosen(self, plain: Nats, requests: Sequence[tuple[int, int]]) -> set[int]:
        """Requests to examine: some anywhere, and those of the cheapest targets, where a leak would show."""
        small = [(first, count) for first, count in requests if count <= _CLOSE] or list(requests)
        several = [request for request in small if request[1] > 1] or small
        order = self.generator.permutation(len(several))[: (self.settings.probes + 1) // 2]
        some = [several[int(index)][0] for index in order]
        cheapest = sorted(small, key=lambda request: float(plain[request[0] : sum(request)].min()))
        others = [first for first, _ in cheapest if first not in some]
        return {*some, *others[: max(self.settings.probes - len(some), 0)]}

    def _examine(self, first: int, block: Tensor, losses: Tensor) -> None:
        rows = self.runner.distributions(block[:-1])
        self.sums.take(torch.logsumexp(rows, dim=1).numpy(), first)
        self.entries.compare(-rows.gather(1, block[:, None]).squeeze(1), losses, first=first)
        alone = self.runner.distributions(block[:0])
        self.strict.compare(alone, rows[:1], first=first)
        self.strict.see(float(losses[0] + alone[0, block[0]]), f"target {first}")
        anywhere = int(self.generator.integers(len(block)))
        for index in sorted({anywhere, int(losses.argmin())}):
            self._examine_target(first, index, block, losses, rows)
        self.again.compare(self.runner.losses(block), losses, first=first)

    def _examine_target(self, first: int, index: int, block: Tensor, losses: Tensor, rows: Tensor) -> None:
        """Vary what comes after a target of a block, then the target itself."""
        known, more = index + 1, index + 1 < len(block)
        if more:
            other = block.clone()
            for place in range(known, len(block)):
                other[place] = self.stream.other_token(int(block[place]), 1, self.generator)[0]
            self.later.compare(self.runner.losses(other)[:known], losses[:known], first=first)
            changed = self.runner.distributions(other[:-1])[: known + 1]
            self.later.compare(changed, rows[: known + 1], first=first)
            self.shorter.compare(self.runner.losses(block[:known]), losses[:known], first=first)
        true, likely = int(block[index]), rows[index].topk(min(2, rows.shape[1])).indices.tolist()
        others = [token for token in likely if token != true]
        others += self.stream.other_token(true, self.settings.swaps, self.generator)
        tried = list(dict.fromkeys(others))[: self.settings.swaps]
        for token in tried:
            other = block.clone()
            other[index] = token
            changed = self.runner.losses(other)
            self._see_earlier(changed[:index], losses[:index], first)
            cost = gap(float(changed[index]), -float(rows[index, token]))
            self.own.see(cost, f"target {first + index} as {token}")
            if more:
                changed = self.runner.distributions(other[:-1])
                self._see_earlier(changed[:index], rows[:index], first)
                self.own.compare(changed[index : index + 1], rows[index : index + 1], first=first + index)
        if self._predicts_bytes:
            self._examine_bytes(first, index, block, rows, [true, *tried])

    def _see_earlier(self, one: Tensor, other: Tensor, first: int) -> None:
        if len(one):
            self.later.compare(one, other, first=first)

    def _examine_bytes(
        self, first: int, index: int, block: Tensor, rows: Tensor, tokens: Sequence[int]
    ) -> None:
        assert self.context.token_bytes is not None
        previous = int(block[index - 1]) if index else int(self.stream.tokens[first])
        scorer: Any = self.runner.scorer
        alternatives = {}
        for token in [*tokens, *similar_tokens(self.context, previous, tokens[0], self.settings.swaps)]:
            if text := self.context.token_bytes(previous, token):
                with blamed(self.runner.name, "byte_distributions()"):
                    found = scorer.byte_distributions(block[:index].clone(), token)
                logs = as_log_rows(found, 256, "byte_distributions()")
                alternatives[text] = (logs, -float(rows[index, token]))
        self.bytes.see(first + index, alternatives)

    def _hidden(self) -> Finding:
        """Replace a target in the text itself, and look up what the original one would have cost.

        A scorer that gets hold of its targets elsewhere than in the block, in memory or so, cannot know it
        any more.
        """
        found, base = Largest(), self.case.base
        scored = np.arange(self.stream.targets)
        cheapest = scored[np.argsort(base, kind="stable")][: max(len(scored) // 10, 1)]
        places = [*self.generator.permutation(cheapest)[: self.settings.edges]]
        places += [*self.generator.permutation(scored)[: self.settings.edges]]
        for place in sorted({int(place) for place in places}):

            def after(first: int, block: Tensor, _: Tensor, place: int = place) -> None:
                if first <= place < first + len(block):
                    row = self.runner.distributions(block[: place - first])[-1]
                    cost = -float(row[int(self.stream.tokens[place + 1])])
                    found.see(gap(cost, base[place]), f"target {place}")

            changed = self.stream.other_future(place, self.generator)
            self.runner.grade(changed, self.stream.announced, until=place + 1, hooks=Hooks(after=after))
        text = f"{found.count} targets and all after them replaced in the text, the original looked up"
        return found.judged("C2", "hidden target", self.case.allowed_rounding, text)

    def _parts(self) -> dict[str, str]:
        scorer = self.runner.scorer
        with blamed(self.runner.name, "snapshot()"):
            return scorer.parts() if isinstance(scorer, IsolatedScorer) else scorer_parts(scorer)

    def _digest(self) -> str:
        with blamed(self.runner.name, "state_digest()"):
            return str(self.runner.scorer.state_digest())

    def _state(self) -> Finding:
        changed = {
            "weights": sorted(set(self.weights_changed))[:20],
            "other": sorted(set(self.other_changed))[:20],
        }
        if self.digest_changes:
            evidence = f"state_digest() changed in {self.digest_changes} of {self.probed} requests"
        elif self.weights_changed:
            first = self.weights_changed[0].removeprefix("weights:")
            evidence = f"{first} changed, and state_digest() does not tell"
        else:
            equal = "all weights" if self.other_changed else "snapshot(), and all that it holds,"
            evidence = f"state_digest(), {equal} equal before and after {self.probed} requests"
        if self.other_changed:
            # A cache may change, as long as no result does: "traces of scoring" sees to that.
            evidence += f"; {self.other_changed[0]} changed"
        bad = self.digest_changes > 0 or bool(self.weights_changed)
        return verdict("C3", "state while scoring", bad, evidence, changed)

    def _replay(self, plain: Nats, requests: Sequence[tuple[int, int]]) -> Finding:
        """Go back to a snapshot in the middle of the text and score what follows again."""
        starts = [first for first, _ in requests]
        begin = int(self.generator.integers(max(2 * len(starts) // 3, 1)))
        end = min(begin + max(len(starts) // 4, 2), len(starts) - 1)
        if end <= begin:
            return Finding("C1", "replay", "not tested", "one request covers the text; take more --targets")
        replayed = np.full(len(plain), np.nan)
        kept: list[object] = []

        def before(first: int) -> None:
            if first == starts[begin]:
                with blamed(self.runner.name, "snapshot()"):
                    kept.append(self.runner.scorer.snapshot())
            elif first == starts[end]:
                with blamed(self.runner.name, "restore()"):
                    self.runner.scorer.restore(kept[0])
                self._score_again(requests[begin:end], replayed)

        until = min(starts[end] + _CLOSE, self.stream.targets)
        continued = self._grade(before, until=until)
        found = Largest()
        place, limit = slice(starts[begin], starts[end]), slice(starts[end], until)
        for what, nats, part in (("replayed", replayed, place), ("after the replay", continued, limit)):
            found.compare(plain[part], nats[part], f", {what}", part.start)
        text = f"targets {starts[begin]} to {starts[end]} again from a snapshot"
        return found.judged("C1", "replay", self.case.allowed, text)

    def _score_again(self, requests: Sequence[tuple[int, int]], into: Nats) -> None:
        for first, count in requests:
            block = self.stream.tokens[first + 1 : first + count + 1]
            into[first : first + count] = self.runner.losses(torch.from_numpy(block.astype(np.int64))).numpy()
            with blamed(self.runner.name, "receive()"):
                self.runner.scorer.receive(Recorded(first, block.copy()))
