"""The audit: a subject is made, run once as it is, then experimented on.

Everything that the subject does is watched from its import on; the plain run gives the costs that all
experiments compare with, and the time; experiments change what a valid score must not depend on.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pgolf.audit.evaluator_tests import OwnTarget, count_findings
from pgolf.audit.experiments import Experiments
from pgolf.audit.report import Finding, Report, ordered, verdict
from pgolf.audit.runs import Case, EvaluatorRunner, Nats, Runner, ScorerRunner, Settings, spread
from pgolf.audit.scorer_tests import ScorerTests
from pgolf.audit.streams import Stream
from pgolf.audit.subject import Context, Evaluator, Subject
from pgolf.audit.watch import Watch
from pgolf.data.dataset import Text
from pgolf.data.tokenizer import ByteCounts
from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import Ledger
from pgolf.evaluate.protocol import Scorer

Note = Callable[[str], None]


def audit(
    make: Callable[[], Subject],
    text: Text,
    context: Context,
    settings: Settings,
    *,
    name: str,
    plug_in: bool = True,
    data: Path | None = None,
    full_targets: int | None = None,
    note: Note = lambda _: None,
) -> Report:
    """Test whether scores of a subject are valid on a stretch of text; see ``Context`` and ``Settings``.

    ``make`` imports and makes the subject, and what it opens is watched. If that is a ``plug_in``, a user's
    code, its exceptions are mistakes (a ``PgolfError``) and not bugs of pgolf. The subject must not read the
    validation text in the folder ``data``. ``full_targets`` are those of the whole text, for the time (None:
    the stretch's), and ``note`` is told what is being tested.
    """
    tokens, byte_counts = text
    if len(tokens) < 3:
        raise PgolfError(f"{len(tokens) - 1} targets are too few for an audit; take more")
    started = time.perf_counter()
    stream = Stream(tokens, context.bos_id, context.vocab_size)
    with Watch(context.artifact, data) as watch:
        note("loading")
        subject = make()
        watch.phase = "scoring"
        parts = _Parts(stream, byte_counts, context, settings, name if plug_in else "", note)
        is_evaluator = isinstance(subject, Evaluator)
        part = parts.of_evaluator(subject) if isinstance(subject, Evaluator) else parts.of_scorer(subject)
    per_target = part.seconds / stream.targets
    findings = [*part.findings, *_watched(watch), _time(per_target, full_targets or stream.targets, settings)]
    compiled = len(watch.of_kind("compiler"))
    compiler = f"a compiler was at work ({compiled} files and programs)" if compiled else None
    byte_count = int(byte_counts.sum(dtype=np.int64))
    return Report(
        subject=name,
        kind="evaluator" if is_evaluator else "scorer",
        seed=settings.seed,
        targets=stream.targets,
        val_bpb=float(np.nansum(part.base)) / math.log(2) / byte_count if byte_count else math.nan,
        seconds_per_target=per_target,
        seconds=time.perf_counter() - started,
        findings=ordered(findings),
        notes=[text for text in (*part.notes, compiler) if text],
    )


class _Part(NamedTuple):
    """What the tests of one kind of subject give."""

    base: Nats
    seconds: float
    findings: list[Finding]
    notes: list[str | None]


class _Parts(NamedTuple):
    """What both kinds of subject are tested on."""

    stream: Stream
    byte_counts: ByteCounts
    context: Context
    settings: Settings
    name: str
    """Of a plug-in."""
    note: Note

    def of_scorer(self, scorer: Scorer) -> _Part:
        stream, byte_counts, runner = self.stream, self.byte_counts, ScorerRunner(scorer, self.name)
        self.note("plain run")
        started = time.perf_counter()
        base, ledger = runner.grade(stream.tokens, stream.targets, byte_counts=byte_counts)
        seconds = time.perf_counter() - started
        case = Case(runner, stream, base, self.settings, self.context)
        experiments = Experiments(case)
        self.note("experiments on the text")
        findings = experiments.all([*_edges_of(ledger), _periods(runner, stream)])
        self.note("close examination")
        findings += [*ScorerTests(runner, case).all(), *_graded(ledger, stream, byte_counts)]
        remark = None
        if len({entry.state for entry in ledger.entries}) == 1:
            frozen = "this scorer does not learn, or not within the targets of the audit"
            remark = f"the state never changed: {frozen}"
        return _Part(base, seconds, findings, [remark, experiments.announced()])

    def of_evaluator(self, evaluator: Evaluator) -> _Part:
        stream, table = self.stream, self.context.byte_table
        previous, targets = (stream.tokens[k : stream.targets + k].astype(np.int64) for k in (0, 1))
        if not np.array_equal(table.count(previous, targets), self.byte_counts):
            raise PgolfError(
                f"{self.name}: an evaluator is given a table of bytes by pairs of tokens, which cannot count "
                "those of this data (side-cars say them, or the tokenizer spells spaces in byte pieces); "
                "audit a Scorer, or use other data"
            )
        runner = EvaluatorRunner(evaluator, table)
        self.note("plain run")
        started = time.perf_counter()
        claim = runner.claim(stream.tokens, stream.targets)
        seconds = time.perf_counter() - started
        if not len(claim.nats):
            raise PgolfError(f"{self.name}: scored none of {stream.targets} targets; give it more --targets")
        case = Case(runner, stream, spread(claim, stream.targets), self.settings, self.context)
        experiments = Experiments(case)
        self.note("experiments on the text")
        findings = count_findings(claim, stream, self.byte_counts)
        findings += experiments.all([_periods(runner, stream)])
        self.note("other targets")
        findings += OwnTarget(runner, case).all()
        remark = experiments.announced() if evaluator.takes_announced else None
        return _Part(case.base, seconds, findings, [remark])


def _edges_of(ledger: Ledger) -> list[tuple[str, list[int]]]:
    """Where the scorer learned (the state changed), and where requests begin."""
    entries = ledger.entries
    chunks = [after.first for before, after in itertools.pairwise(entries) if before.state != after.state]
    return [("chunk", chunks), ("window", [entry.first for entry in entries])]


def _periods(runner: Runner, stream: Stream) -> tuple[str, list[int]]:
    """Where windows and chunks of declared lengths end; powers of two if an evaluator declares none."""
    declared = [int(period) for period in runner.periods if period > 0]
    if isinstance(runner, EvaluatorRunner) and not declared:
        declared = [2**power for power in range(4, 16)]
    return "window", sorted({place for period in declared for place in range(period, stream.targets, period)})


def _graded(ledger: Ledger, stream: Stream, byte_counts: ByteCounts) -> list[Finding]:
    """What the grader saw to itself: it asked for every target once, in order, and counted bytes."""
    ends = np.cumsum([0, *(entry.targets for entry in ledger.entries)]).tolist()
    whole = [entry.first for entry in ledger.entries] == ends[:-1] and ends[-1] == stream.targets
    counted, recorded = int(byte_counts.sum(dtype=np.int64)), ledger.score().bytes
    requests = f"{ends[-1]} targets in {len(ledger.entries)} requests, each once, from left to right"
    text = f"{recorded:,} bytes recorded by the grader, the text has {counted:,}"
    return [
        verdict("C4", "coverage and order", not whole, f"the grader asked for {requests}"),
        verdict("bytes", "byte total", recorded != counted, text),
    ]


def _watched(watch: Watch) -> list[Finding]:
    """What was opened."""
    found = []
    for condition, test, kind, otherwise in (
        ("C1", "validation text", "validation", "no validation shard is opened by the audited code"),
        ("isolation", "files", "file", "no file but the artifact, Python modules and the machine's own"),
        ("isolation", "sockets", "socket", "none"),
        ("isolation", "processes", "process", "none"),
    ):
        events = [f"{event.phase}: {event.what}" for event in watch.of_kind(kind)]
        if events:
            more = f" and {len(events) - 1} more" if len(events) > 1 else ""
            found.append(verdict(condition, test, True, f"while {events[0]}{more}", {"events": events[:50]}))
        else:
            found.append(verdict(condition, test, False, otherwise))
    return found


def _time(per_target: float, full_targets: int, settings: Settings) -> Finding:
    whole, limit = per_target * full_targets, settings.limit_seconds
    speed = f"{per_target * 1e6:,.1f} microseconds per target"
    text = f"{speed}, {whole:,.1f} s for {full_targets:,} targets on this machine"
    details = {"seconds": whole, "targets": full_targets, "limit": limit}
    if limit is None:
        return Finding("time", "whole evaluation", "not tested", f"{text}; no limit given", details)
    return verdict("time", "whole evaluation", whole > limit, f"{text}; limit {limit:,.0f} s", details)
