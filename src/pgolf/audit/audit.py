"""The audit: a subject is made, run once as it is, then experimented on.

The order of things: everything that the subject does is watched from its import on; the plain run gives the
costs that all experiments compare with, and the time; experiments change what a valid score must not depend
on.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from pgolf.audit.evaluator_tests import OwnTarget, count_findings
from pgolf.audit.experiments import Experiments
from pgolf.audit.report import Finding, Report, ordered, verdict
from pgolf.audit.runs import EvaluatorRunner, Nats, Runner, ScorerRunner, spread
from pgolf.audit.scorer_tests import ScorerTests
from pgolf.audit.settings import Settings
from pgolf.audit.streams import Stream
from pgolf.audit.subject import Context, Evaluator, Subject
from pgolf.audit.watch import Watch
from pgolf.data.dataset import Text
from pgolf.data.tokenizer import ByteCounts
from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import Ledger

__all__ = ["audit"]

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
    """Test whether scores of a subject are valid.

    Args:
        make: imports and makes the subject; what it opens is watched.
        text: the stretch that it is audited on.
        context: what the subject's factory was told.
        settings: seed and amounts.
        name: of the subject.
        plug_in: whether the code is a user's, whose exceptions are mistakes and not bugs of pgolf.
        data: the folder that holds the validation text, which the subject must not read.
        full_targets: of the whole validation text, for the time; None takes the stretch.
        note: told what is being tested.

    Raises:
        PgolfError: the subject cannot be made or run, or the stretch is too short.
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
        audited = _audit_evaluator if isinstance(subject, Evaluator) else _audit_scorer
        part = audited(subject, stream, byte_counts, context, settings, name if plug_in else "", note)
    per_target = part.seconds / stream.targets
    findings = [*part.findings, *_watched(watch), _time(per_target, full_targets or stream.targets, settings)]
    compiled = watch.of_kind("compiler")
    notes = [
        *part.notes,
        *([f"a compiler was at work ({len(compiled)} files and programs)"] if compiled else []),
    ]
    byte_count = int(byte_counts.sum(dtype=np.int64))
    return Report(
        subject=name,
        kind="evaluator" if isinstance(subject, Evaluator) else "scorer",
        seed=settings.seed,
        targets=stream.targets,
        val_bpb=float(np.nansum(part.base)) / math.log(2) / byte_count if byte_count else math.nan,
        seconds_per_target=per_target,
        seconds=time.perf_counter() - started,
        findings=ordered(findings),
        notes=notes,
    )


class _Part:
    """What the tests of one kind of subject give."""

    def __init__(
        self, base: Nats, seconds: float, findings: Sequence[Finding], notes: Iterable[str | None]
    ) -> None:
        self.base, self.seconds, self.findings = base, seconds, findings
        self.notes = [text for text in notes if text]


def _audit_scorer(
    scorer: Subject,
    stream: Stream,
    byte_counts: ByteCounts,
    context: Context,
    settings: Settings,
    name: str,
    note: Note,
) -> _Part:
    assert not isinstance(scorer, Evaluator)
    runner = ScorerRunner(scorer, name)
    note("plain run")
    started = time.perf_counter()
    base, ledger = runner.grade(stream.tokens, stream.targets, byte_counts=byte_counts)
    seconds = time.perf_counter() - started
    experiments = _experiments(runner, stream, base, settings)
    note("experiments on the text")
    findings = experiments.all([*_edges_of(ledger), *_periods(runner, stream)])
    note("close examination")
    findings += ScorerTests(runner, stream, base, settings, experiments.allowed, context).all()
    findings += _graded(ledger, stream, byte_counts)
    states = len({entry.state for entry in ledger.entries})
    learned = None
    if states == 1:
        learned = (
            "the state never changed: this scorer does not learn, or not within the targets of the audit"
        )
    return _Part(base, seconds, findings, [learned, experiments.announced()])


def _audit_evaluator(
    evaluator: Subject,
    stream: Stream,
    byte_counts: ByteCounts,
    context: Context,
    settings: Settings,
    name: str,
    note: Note,
) -> _Part:
    assert isinstance(evaluator, Evaluator)
    previous, targets = (stream.tokens[k : stream.targets + k].astype(np.int64) for k in (0, 1))
    if not np.array_equal(context.byte_table.count(previous, targets), byte_counts):
        raise PgolfError(
            f"{name}: an evaluator is given a table of bytes by pairs of tokens, which cannot count those of "
            "this data (side-cars say them, or the tokenizer spells spaces in byte pieces); audit a Scorer, "
            "or use other data"
        )
    runner = EvaluatorRunner(evaluator, context.byte_table)
    note("plain run")
    started = time.perf_counter()
    claim = runner.claim(stream.tokens, stream.targets)
    seconds = time.perf_counter() - started
    if not len(claim.nats):
        raise PgolfError(f"{name}: scored none of {stream.targets} targets; give it more --targets")
    base = spread(claim, stream.targets)
    findings = count_findings(claim, stream, byte_counts)
    experiments = _experiments(runner, stream, base, settings)
    note("experiments on the text")
    findings += experiments.all(_periods(runner, stream))
    note("other targets")
    findings += OwnTarget(runner, stream, base, settings, experiments.allowed, context).all()
    remark = experiments.announced() if evaluator.takes_announced else None
    return _Part(base, seconds, findings, [remark])


def _experiments(runner: Runner, stream: Stream, base: Nats, settings: Settings) -> Experiments:
    return Experiments(runner, stream, base, settings, np.random.default_rng([settings.seed, 0]))


def _edges_of(ledger: Ledger) -> list[tuple[str, list[int]]]:
    """Where the scorer learned (the state changed), and where requests begin."""
    entries = ledger.entries
    chunks = [after.first for before, after in itertools.pairwise(entries) if before.state != after.state]
    return [("chunk", chunks), ("window", [entry.first for entry in entries])]


def _periods(runner: Runner, stream: Stream) -> list[tuple[str, list[int]]]:
    """Where windows and chunks of declared lengths end; powers of two if none is declared."""
    declared = [int(period) for period in runner.periods if period > 0]
    if isinstance(runner, EvaluatorRunner) and not declared:
        declared = [2**power for power in range(4, 16)]
    places = {place for period in declared for place in range(period, stream.targets, period)}
    return [("window", sorted(places))]


def _graded(ledger: Ledger, stream: Stream, byte_counts: ByteCounts) -> list[Finding]:
    """What the grader saw to itself: it asked for every target once, in order, and counted bytes."""
    place, whole = 0, True
    for entry in ledger.entries:
        whole = whole and entry.first == place
        place += entry.targets
    whole = whole and place == stream.targets
    counted, recorded = int(byte_counts.sum(dtype=np.int64)), ledger.score().bytes
    coverage = f"the grader asked for {place} targets in {len(ledger.entries)} requests, each once, from left to right"
    text = f"{recorded:,} bytes recorded by the grader, the text has {counted:,}"
    return [
        verdict("C4", "coverage and order", not whole, coverage),
        verdict("bytes", "byte total", recorded != counted, text),
    ]


def _watched(watch: Watch) -> list[Finding]:
    """What was opened."""
    early = "no validation shard is opened by the audited code"
    found = [_opened("C1", "validation text", watch, ("validation",), early)]
    files = "no file but the artifact, Python modules and the machine's own"
    found.append(_opened("isolation", "files", watch, ("file",), files))
    found.append(_opened("isolation", "sockets", watch, ("socket",), "none"))
    found.append(_opened("isolation", "processes", watch, ("process",), "none"))
    return found


def _opened(condition: str, test: str, watch: Watch, kinds: tuple[str, ...], otherwise: str) -> Finding:
    events = watch.of_kind(*kinds)
    if not events:
        return verdict(condition, test, False, otherwise)
    first = events[0]
    more = f" and {len(events) - 1} more" if len(events) > 1 else ""
    details = {"events": [f"{event.phase}: {event.what}" for event in events[:50]]}
    return verdict(condition, test, True, f"while {first.phase}: {first.what}{more}", details)


def _time(per_target: float, full_targets: int, settings: Settings) -> Finding:
    whole = per_target * full_targets
    text = f"{per_target * 1e6:,.1f} microseconds per target, {whole:,.1f} s for {full_targets:,} targets on this machine"
    details = {"seconds": whole, "targets": full_targets, "limit": settings.limit_seconds}
    if settings.limit_seconds is None:
        return Finding("time", "whole evaluation", "not tested", f"{text}; no limit given", details)
    evidence = f"{text}; limit {settings.limit_seconds:,.0f} s"
    return verdict("time", "whole evaluation", whole > settings.limit_seconds, evidence, details)
