"""Experiments on streams: what a change of the future must not change. For scorers and evaluators alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from pgolf.audit.report import Finding, Largest
from pgolf.audit.runs import Case, Nats
from pgolf.audit.streams import Edge
from pgolf.data.shards import Tokens
from pgolf.runtime.progress import Note


class Experiments:
    """Runs variations of the audited stream and compares them with the plain run."""

    def __init__(self, case: Case) -> None:
        self.case, self.stream, self.base, self.settings = case, case.stream, case.base, case.settings
        self.generator = case.choices(0)

    def all(self, periodic: Iterable[tuple[str, Iterable[int]]], note: Note) -> list[Finding]:
        """Every experiment; ``periodic`` are the places of chunk and window edges."""
        edges = self.stream.edges(periodic, self.settings.edges, self.generator)
        tests: dict[str, Callable[[], Finding]] = {
            "the same text again": self.repeat,
            "other tokens after an edge": partial(self.future, edges),
            "other documents": self.boundaries,
            "a shorter text": partial(self.cut, edges),
            "other documents before": self.documents,
        }
        findings = []
        for done, (what, test) in enumerate(tests.items()):
            note(what, done, len(tests))
            findings.append(test())
        return findings

    def repeat(self) -> Finding:
        """The same stream once more."""
        found = Largest()
        found.compare(self.base, self._run(self.stream.tokens))
        # Noise is granted to a machine, not to a scorer that throws dice.
        limit = max(self.settings.tolerance, self.settings.rounding)
        self.case.noise = found.value if found.value <= limit else 0.0
        return found.judged("C1", "repetition", limit, "the same text scored twice")

    def future(self, edges: Sequence[Edge]) -> Finding:
        """Every token after an edge replaced; documents begin where they did."""
        found, allowed = Largest(), self.case.allowed
        for edge in edges:
            self._compare(found, self.stream.other_future(edge.at, self.generator), edge.at, str(edge))
            if found.value > allowed:
                break
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(edge.kind for edge in edges).items())
        text = f"all tokens after {len(edges)} edges ({kinds}) replaced"
        return found.judged("C1", "future tokens", allowed, text)

    def boundaries(self) -> Finding:
        """Documents begin elsewhere after an edge."""
        found, allowed, begins = Largest(), self.case.allowed, np.array([0, *self.stream.documents])
        # Inside documents, so that some of the document is scored before the edge.
        inside = [e for e in range(2, self.stream.targets) if e - begins[begins <= e].max() >= 2]
        places = self.generator.permutation(inside)[: 2 * self.settings.edges]
        for at in map(int, places):
            for what, tokens in self.stream.other_boundaries(at, self.generator):
                self._compare(found, tokens, at, f"document starts {what} after target {at}")
            if found.value > allowed:
                break
        text = f"document starts removed and added after {len(places)} places inside documents"
        return found.judged("C1", "document boundaries", allowed, text)

    def cut(self, edges: Sequence[Edge]) -> Finding:
        """The stream ends at an edge; the announced number of targets stays."""
        found = Largest()
        later = [edge.at for edge in edges if edge.kind != "early"]
        chosen = {edge.at for edge in edges if edge.kind == "early"}
        chosen |= {int(at) for at in self.generator.permutation(later)[: self.settings.edges]}
        for at in sorted(chosen):
            nats = self._run(self.stream.tokens[: at + 1])
            scored = np.flatnonzero(~np.isnan(nats))
            # A script may leave out what does not fill its last window.
            if end := int(scored[-1]) + 1 if len(scored) else 0:
                found.compare(self.base[:end], nats[:end], f", the stream cut after {at}")
        text = f"the stream cut after {', '.join(map(str, sorted(chosen)))} targets"
        return found.judged("C1", "length of the stream", self.case.allowed_rounding, text)

    def documents(self) -> Finding:
        """Other tokens in all documents before one; only where independence is declared."""
        test = "independence"
        if not self.case.runner.documents_independent:
            return Finding("documents", test, "not tested", "not declared (documents_independent)")
        starts = [start for start in self.stream.documents if start < self.stream.targets]
        found = Largest()
        for start in sorted(map(int, self.generator.permutation(starts)[: 2 * self.settings.edges])):
            nats = self._run(self.stream.other_past(start, self.generator))
            where = f", tokens before the document at {start} replaced"
            found.compare(self.base[start:], nats[start:], where, start)
        text = f"{found.count} documents after other documents"
        return found.judged("documents", test, self.case.allowed, text)

    def announced(self) -> str | None:
        """A remark if results depend on how many targets are announced, as those of a schedule do."""
        found, announced = Largest(), 2 * self.stream.announced + 1
        found.compare(self.base, self.case.runner.nats(self.stream.tokens, announced=announced))
        if found.value <= self.case.allowed:
            return None
        size = f"by up to {found.value:.2g} nats, {found.place}"
        return f"results depend on the announced number of targets ({size}), as those of a schedule do"

    def _run(self, tokens: Tokens, until: int | None = None) -> Nats:
        return self.case.runner.nats(tokens, announced=self.stream.announced, until=until)

    def _compare(self, found: Largest, tokens: Tokens, at: int, what: str) -> None:
        found.compare(self.base[:at], self._run(tokens, until=at)[:at], f", {what}")
