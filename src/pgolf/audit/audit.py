"""The audit: artifact, data and scorer put together; the subject is run once as it is, then experimented on.

Everything that the subject does is watched from its import on; the plain run gives the costs that all
experiments compare with, and the time; experiments change what a valid score must not depend on.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pgolf.audit.evaluation import has_digest, plug_in_of
from pgolf.audit.evaluator_tests import OwnTarget, count_findings
from pgolf.audit.experiments import Experiments
from pgolf.audit.held import held_by, held_text
from pgolf.audit.hugging_face import foreign
from pgolf.audit.isolated import Remote, isolated
from pgolf.audit.report import Finding, Report, ordered, verdict
from pgolf.audit.runs import Case, EvaluatorRunner, Nats, Runner, ScorerRunner, Settings, spread
from pgolf.audit.scorer_tests import ScorerTests
from pgolf.audit.streams import Stream
from pgolf.audit.subject import Context, Evaluator, Subject, context_of, make_subject
from pgolf.audit.watch import Watch
from pgolf.codec.proof import Proof, decode_check
from pgolf.compress.weights import Weights, load_weights
from pgolf.data.dataset import Dataset, Text
from pgolf.data.inspect import ByteCheck, check_bytes
from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteCounts
from pgolf.errors import PgolfError
from pgolf.evaluate.build import MODES, build_scorer
from pgolf.evaluate.evaluations import usual_mode
from pgolf.evaluate.ledger import Ledger, text_digest
from pgolf.evaluate.protocol import Scorer
from pgolf.evaluate.weights import memory_for
from pgolf.optim.place import place
from pgolf.recipe.recipe import Recipe
from pgolf.runs.kept import keep_audit, keeper_of, own_data
from pgolf.runs.pipeline import job_dataset
from pgolf.runtime.progress import Note
from pgolf.runtime.run_files import artifact_digest, is_foreign, scored_file

_FEWEST, _MOST = 1024, 16384
# Decoding asks for one target at a time, in three passes.
_DECODED = 256
# On CUDA matrix products are in bfloat16, and blocks of another size are rounded in another way.
_CUDA_ROUNDING = 0.05


def audit(
    make: Callable[[], Subject],
    text: Text,
    context: Context,
    settings: Settings,
    *,
    name: str,
    plug_in: bool = True,
    data: Path | None = None,
    whole: Tokens | None = None,
    note: Note = lambda *_: None,
) -> Report:
    """Test whether scores of a subject are valid on a stretch of text; see ``Context`` and ``Settings``.

    ``make`` imports and makes the subject, and what it opens is watched. If that is a ``plug_in``, a user's
    code, its exceptions are mistakes (a ``PgolfError``) and not bugs of pgolf. The subject must not read the
    validation text in the folder ``data``. ``whole`` are the tokens of the whole text, of which this is a
    stretch (None: the stretch's), for the number of targets that is announced, for the time, and for what the
    subject holds of it. ``note`` is told what is being tested.
    """
    tokens, byte_counts = text
    if len(tokens) < 3:
        raise PgolfError(f"{len(tokens) - 1} targets are too few for an audit; take more")
    started = time.perf_counter()
    whole = tokens if whole is None else whole
    stream = Stream(tokens, context.bos_id, context.vocab_size, len(whole) - 1)
    with Watch(context.artifact, data) as watch:
        note("loading")
        subject = make()
        function = subject.function if isinstance(subject, Evaluator) else subject
        held = held_text(function.held() if isinstance(function, Remote) else held_by(subject), whole)
        watch.phase = "scoring"
        parts = _Parts(stream, byte_counts, context, settings, name if plug_in else "", note)
        is_evaluator = isinstance(subject, Evaluator)
        part = parts.of_evaluator(subject) if isinstance(subject, Evaluator) else parts.of_scorer(subject)
    per_target = part.seconds / stream.targets
    findings = [*part.findings, *_watched(watch), held, _time(per_target, len(whole) - 1, settings)]
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
        base, ledger = runner.grade(stream.tokens, stream.announced, byte_counts=byte_counts)
        seconds = time.perf_counter() - started
        case = Case(runner, stream, base, self.settings, self.context)
        experiments = Experiments(case)
        findings = experiments.all([*_edges_of(ledger), _periods(runner, stream)], self.note)
        findings += [*ScorerTests(runner, case).all(self.note), *_graded(ledger, stream, byte_counts)]
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
        claim = runner.claim(stream.tokens, stream.announced)
        seconds = time.perf_counter() - started
        if not len(claim.nats):
            raise PgolfError(f"{self.name}: scored none of {stream.targets} targets; give it more --targets")
        case = Case(runner, stream, spread(claim, stream.targets), self.settings, self.context)
        experiments = Experiments(case)
        findings = count_findings(claim, stream, self.byte_counts)
        findings += experiments.all([_periods(runner, stream)], self.note)
        findings += OwnTarget(runner, case).all(self.note)
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


@dataclass(frozen=True)
class Job:
    """An artifact with what scores it and the text to audit it on."""

    name: str
    context: Context
    make: Callable[[], Subject]
    plug_in: bool
    text: Text
    """The whole validation text."""
    counts: ByteCheck
    """Whether its bytes are counted right."""
    data: Path
    usual_targets: int
    """How many targets to take where none are asked for."""
    audited: dict[str, str]
    """Goes into the report."""
    run: Path | None = None
    """The run folder that keeps the report: that of the artifact, its settings and its data."""
    weights: Weights | None = None
    """The opened artifact, for what follows: a memory's stored text takes seconds to decode."""

    def audit(self, settings: Settings, targets: int | None, note: Note) -> Report:
        """Audit on the first targets; see the function ``audit``."""
        if self.context.device.type == "cuda":
            settings = replace(settings, rounding=max(settings.rounding, _CUDA_ROUNDING))
        found = audit(
            self.make,
            self.text.first(targets or self.usual_targets),
            self.context,
            settings,
            name=self.name,
            plug_in=self.plug_in,
            data=self.data,
            whole=self.text.tokens,
            note=note,
        )
        change = self.counts.normalisation
        (_, how), (_, normalisation) = self.counts.rows()
        longer = change is not None and change.makes_longer
        of_bytes = [
            verdict("bytes", "bytes per target", self.counts.problem is not None, how),
            verdict("bytes", "normalisation", longer, normalisation),
        ]
        found = replace(found, audited=self.audited, findings=ordered([*found.findings, *of_bytes]))
        if self.run is None:
            return found
        kept = keep_audit(self.run, {"artifact": str(self.context.artifact), **found.to_json()})
        return replace(found, notes=[*found.notes, f"kept {kept}"])

    def decode(self, targets: int | None, progress: Callable[[int, int], None]) -> Proof:
        """Encode the first targets with one scorer and decode them with another; see ``codec.proof``."""

        def scorer() -> Scorer:
            made = self.make()
            if isinstance(made, Evaluator):
                raise PgolfError(
                    f"{self.name}: --by-decoding needs a Scorer; an evaluator is given all tokens, so it "
                    "cannot decode"
                )
            return made

        return decode_check(scorer, self.text.tokens, targets or _DECODED, progress=progress)


def audit_job(
    artifact: Path,
    data: Path | None,
    tokenizer: Path | None,
    scorer: str | None,
    mode: str | None,
    overrides: Sequence[str],
    device: torch.device,
    trust: bool = False,
) -> Job:
    """Prepare an audit of an artifact, of a model of transformers, or of what a ``scorer`` loads.

    ``data`` is the folder of the validation text; None takes that of the artifact's run, or what its recipe
    names. ``scorer`` is a plug-in's factory, MODULE:FUNCTION or FILE.py:FUNCTION; None takes pgolf's own of a
    ``mode`` (None: the recipe's usual one), with ``overrides`` of evaluate and ttt keys. ``trust`` lets code
    in the folder of a model of transformers run.
    """
    if scorer is None and is_foreign(artifact):
        model = foreign(artifact, data, tokenizer, mode, overrides, trust)
        context = context_of(artifact, model.dataset, device)
        make = functools.partial(make_subject, lambda _: model.scorer(device), context, model.name)
        return _plugged(context, model.dataset, make, model.name, model.length)
    if scorer is None:
        return _own(artifact, data, tokenizer, mode, overrides, device)
    context, dataset = plug_in_of(artifact, data, tokenizer, scorer, mode, overrides, device)
    return _plugged(context, dataset, functools.partial(isolated, scorer, context), scorer)


def _plugged(
    context: Context, dataset: Dataset, make: Callable[[], Subject], name: str, length: int = 1
) -> Job:
    """An audit of what ``make`` makes, on text in windows of a ``length``."""
    artifact, text = context.artifact, dataset.validation_text(length)
    usual = min(max(2 * _FEWEST, 4 * length), _MOST, len(text.byte_counts))
    about = {"scorer": name, **_digests(artifact, dataset, text.tokens)}
    return Job(name, context, make, True, text, check_bytes(dataset, text), dataset.folder, usual, about)


def audited(artifact: Path, recipe: Recipe, dataset: Dataset, mode: str) -> dict[str, str]:
    """What an audit of one of pgolf's own scorers is about: mode, and digests of all that it depends on.

    The recipe has the settings of the evaluation, and ``mode`` is a key of ``MODES``.
    """
    tokens = dataset.validation_tokens(recipe.evaluation_length)
    return {"mode": mode, "recipe_sha256": recipe.digest(), **_digests(artifact, dataset, tokens)}


def _digests(artifact: Path, dataset: Dataset, tokens: Tokens) -> dict[str, str]:
    # A plug-in may load a folder.
    known = {"artifact_sha256": artifact_digest(artifact)} if has_digest(artifact) else {}
    return known | {"tokenizer_sha256": dataset.tokenizer.digest, "text_sha256": text_digest(tokens)}


def _own(
    artifact: Path,
    data: Path | None,
    tokenizer: Path | None,
    mode: str | None,
    overrides: Sequence[str],
    device: torch.device,
) -> Job:
    if mode not in (None, *MODES):
        raise PgolfError(f"--mode {mode}: unknown; use {', '.join(MODES)}")
    weights = load_weights(scored_file(artifact))
    artifact = weights.source
    recipe = weights.recipe.with_overrides(overrides, ("evaluate", "ttt", "memory"))
    mode = mode or usual_mode(recipe)
    dataset = job_dataset(recipe, *own_data(artifact, recipe, data, tokenizer))
    weights.check_data(dataset)
    weights.model()  # what does not fit is a mistake that is better told now
    context = context_of(artifact, dataset, device)
    memory = memory_for(weights, recipe, mode, dataset.tokenizer)  # Decoding stored text takes long.

    def make() -> Subject:
        network = place(context.weights().model(), recipe, device)
        return build_scorer(network, recipe, mode, context.bos_id, memory=memory)

    text = dataset.validation_text(recipe.evaluation_length)
    usual = min(usual_targets(recipe, mode), len(text.byte_counts))
    about = audited(weights.source, recipe, dataset, mode)
    counts = check_bytes(dataset, dataset.validation_text(1))
    run, _ = keeper_of(weights, recipe, dataset)
    return Job(
        f"pgolf {mode}", context, make, False, text, counts, dataset.folder, usual, about, run, weights
    )


def usual_targets(recipe: Recipe, mode: str) -> int:
    """A few windows and, for test-time training, three chunks; no more than takes long on a CPU."""
    targets = max(_FEWEST, 4 * recipe.evaluation_length)
    if mode == "ttt":
        chunk = recipe.ttt.chunk_tokens if recipe.ttt.method == "full" else recipe.ttt.lora.chunk_tokens
        targets = max(targets, 3 * chunk)
    return min(targets, _MOST)
