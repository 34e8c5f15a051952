"""Experiments on streams: what a change of the future must not change. For scorers and evaluators alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from pgolf.audit.report import Finding, Largest
from pgolf.audit.runs import Nats, Runner
from pgolf.audit.settings import Settings
from pgolf.audit.streams import Edge, Stream, largest_change
from pgolf.data.shards import Tokens


class Experiments:
    """Runs variations of the audited stream and compares them with the plain run.

    Args:
        runner: of what is audited.
        stream: the audited stretch.
        base: what its targets cost in the plain run (N,).
        settings: how much to test.
        generator: chooses.
    """

    def __init__(
        self, runner: Runner, stream: Stream, base: Nats, settings: Settings, generator: np.random.Generator
    ) -> None:
        self.runner, self.stream, self.base, self.settings = runner, stream, base, settings
        self.generator = generator
        self.noise = 0.0

    @property
    def allowed(self) -> float:
        """Largest difference that is none: machines that do not repeat themselves exactly are given their
        noise.
        """
        return max(self.settings.tolerance, 4 * self.noise)

    @property
    def allowed_rounding(self) -> float:
        """The same where blocks have other sizes."""
        return max(self.settings.rounding, self.allowed)

    def all(self, periodic: Iterable[tuple[str, Iterable[int]]]) -> list[Finding]:
        """Every experiment; ``periodic`` are the places of chunk and window edges."""
        edges = self.stream.edges(periodic, self.settings.edges, self.generator)
        return [self.repeat(), self.future(edges), self.boundaries(), self.cut(edges), self.documents()]

    def repeat(self) -> Finding:
        """The same stream once more."""
        again = self._run(self.stream.tokens)
        found = Largest()
        change, place = largest_change(self.base, again)
        found.see(change, f"target {place}")
        # Noise is granted to a machine, not to a scorer that throws dice.
        limit = max(self.settings.tolerance, self.settings.rounding)
        self.noise = change if change <= limit else 0.0
        return found.judged("C1", "repetition", limit, "the same text scored twice")

    def future(self, edges: Sequence[Edge]) -> Finding:
        """Every token after an edge replaced; documents begin where they did."""
        found = Largest()
        for edge in edges:
            self._compare(found, self.stream.other_future(edge.at, self.generator), edge)
            if found.value > self.allowed:
                break
        return found.judged(
            "C1", "future tokens", self.allowed, f"all tokens after {_listed(edges)} replaced"
        )

    def boundaries(self) -> Finding:
        """Documents begin elsewhere after an edge."""
        begins = np.array([0, *self.stream.documents])
        # Inside documents, so that some of the document is scored before the edge.
        inside = [e for e in range(2, self.stream.targets) if e - begins[begins <= e].max() >= 2]
        edges = [
            Edge(int(e), "document") for e in self.generator.permutation(inside)[: 2 * self.settings.edges]
        ]
        found = Largest()
        for edge in edges:
            for what, tokens in self.stream.other_boundaries(edge.at, self.generator):
                self._compare(found, tokens, edge, f"document starts {what} after target {edge.at}")
            if found.value > self.allowed:
                break
        text = f"document starts removed and added after {len(edges)} places inside documents"
        return found.judged("C1", "document boundaries", self.allowed, text)

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
            end = int(scored[-1]) + 1 if len(scored) else 0
            if end:
                change, place = largest_change(self.base[:end], nats[:end])
                found.see(change, f"target {place}, the stream cut after {at}")
        text = f"the stream cut after {', '.join(map(str, sorted(chosen)))} targets"
        return found.judged("C1", "length of the stream", self.allowed_rounding, text)

    def documents(self) -> Finding:
        """Other tokens in all documents before one; only where independence is declared."""
        test = "independence"
        if not self.runner.documents_independent:
            return Finding("documents", test, "not tested", "not declared (documents_independent)")
        starts = [start for start in self.stream.documents if start < self.stream.targets]
        found = Largest()
        for start in sorted(map(int, self.generator.permutation(starts)[: 2 * self.settings.edges])):
            nats = self._run(self.stream.other_past(start, self.generator))
            change, place = largest_change(self.base[start:], nats[start:])
            found.see(change, f"target {start + place}, tokens before the document at {start} replaced")
        return found.judged("documents", test, self.allowed, f"{found.count} documents after other documents")

    def announced(self) -> str | None:
        """A remark if results depend on how many targets are announced, as those of a schedule do."""
        other = self.runner.nats(self.stream.tokens, announced=2 * self.stream.targets + 1)
        change, place = largest_change(self.base, other)
        if change <= self.allowed:
            return None
        size = f"by up to {change:.2g} nats, target {place}"
        return f"results depend on the announced number of targets ({size}), as those of a schedule do"

    def _run(self, tokens: Tokens, until: int | None = None) -> Nats:
        return self.runner.nats(tokens, announced=self.stream.targets, until=until)

    def _compare(self, found: Largest, tokens: Tokens, edge: Edge, what: str = "") -> None:
        nats = self._run(tokens, until=edge.at)
        change, place = largest_change(self.base[: edge.at], nats[: edge.at])
        found.see(change, f"target {place}, {what or str(edge)}")


def _listed(edges: Sequence[Edge]) -> str:
    kinds = Counter(edge.kind for edge in edges)
    return f"{len(edges)} edges ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"
