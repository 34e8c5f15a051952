"""Scores of whatever can be scored: our weights, models of ``transformers``, other people's scorers."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pgolf.audit.hugging_face import foreign
from pgolf.audit.isolated import GradedScorer, IsolatedScorer, isolated
from pgolf.audit.subject import Context, context_of, factory_place
from pgolf.audit.watch import Watch
from pgolf.data.dataset import Dataset, Text, open_dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluate import EvalResult
from pgolf.evaluate.ledger import Ledger, text_digest
from pgolf.evaluate.protocol import Scorer, grade
from pgolf.runs.pipeline import eval_job
from pgolf.runtime.files import sha256_file
from pgolf.runtime.progress import counting
from pgolf.runtime.run_files import artifact_digest, is_foreign
from pgolf.runtime.team import SOLO, Team
from pgolf.runtime.writing import check_writable, write_bytes


def eval_any(
    source: Path,
    data: Path | None,
    tokenizer: Path | None,
    mode: str | None,
    stride: int | None,
    limit_targets: int | None,
    overrides: Sequence[str],
    device: torch.device,
    trust: bool = False,
    *,
    scorer: str | None = None,
    ledger: Path | None = None,
    strict: bool = False,
    team: Team = SOLO,
) -> EvalResult:
    """``eval_job`` of weights of ours, or the same of a foreign folder, or of a plug-in's ``scorer``.

    That one runs in a process of its own (see ``isolated``), and ``source`` is what it loads.
    """
    how: dict[str, Any] = {"strict": strict, "team": team}
    strides = [] if stride is None else [f"evaluate.stride={stride}"]
    if scorer is None and not is_foreign(source):
        job = source, data, tokenizer, mode, stride, limit_targets, overrides, device
        return eval_job(*job, ledger=ledger, **how)
    if ledger is not None:
        check_writable(ledger)
    if scorer is not None:
        changes = [*overrides, *strides]
        context, dataset = plug_in_of(source, data, tokenizer, scorer, mode, changes, device)
        result = _eval_plug_in(scorer, context, dataset, limit_targets, **how)
    else:
        found = foreign(source, data, tokenizer, mode, [*overrides, *strides], trust)
        about = {"mode": found.mode, "settings": {"evaluate": found.evaluate.model_dump()}}
        text = found.dataset.validation_text(found.length, limit_targets)
        result = _graded(found.scorer(device), about, source, found.dataset, text, **how)
    if ledger is not None:
        team.first(lambda: write_bytes(ledger, result.ledger.content()))
    return result


def plug_in_of(
    artifact: Path,
    data: Path | None,
    tokenizer: Path | None,
    scorer: str,
    mode: str | None,
    overrides: Sequence[str],
    device: torch.device,
) -> tuple[Context, Dataset]:
    """What a plug-in's factory is told, and the data to score; a ``PgolfError`` where that is not known."""
    if mode is not None or overrides:
        others = "leave them out where --scorer names another"
        raise PgolfError(f"--mode, --stride and --set are for pgolf's own scorers; {others}")
    if not artifact.exists():
        raise PgolfError(f"{artifact}: no such file or folder")
    if data is None:
        raise PgolfError(f"--scorer {scorer}: pass --data DIR, the text to score")
    factory_place(scorer)
    dataset = open_dataset(data, tokenizer)
    return context_of(artifact, dataset, device), dataset


def has_digest(artifact: Path) -> bool:
    """Whether what a plug-in loads has a digest: files have, and folders of models of transformers."""
    return artifact.is_file() or is_foreign(artifact)


def _eval_plug_in(
    name: str, context: Context, dataset: Dataset, limit_targets: int | None, *, strict: bool, team: Team
) -> EvalResult:
    about = {"mode": f"{name}, isolated{', strict' * strict}", "scorer": name, "isolated": True}
    place, _ = factory_place(name)
    if place.endswith(".py"):
        about["scorer_sha256"] = sha256_file(Path(place))
    text = dataset.validation_text(1, limit_targets)
    with Watch(context.artifact, dataset.folder) as watch:
        made = isolated(name, context)
        if not isinstance(made, IsolatedScorer):
            raise PgolfError(
                f"{name}: --isolated needs a Scorer; an evaluator is given the whole text (`pgolf audit` "
                "tests it from outside)"
            )
        scorer = GradedScorer(made, name)
        result = _graded(scorer, about, context.artifact, dataset, text, strict=strict, team=team)
        scorer.check()
    if opened := watch.of_kind("validation"):
        raise PgolfError(f"{name}: opened validation text ({opened[0].what}), so it has no score")
    # Each of these can bring the text.
    near = os.path.realpath(dataset.folder), "/proc/"
    others = watch.of_kind("file", "socket", "process")
    if ways := [event for event in others if event.kind != "file" or event.what.startswith(near)]:
        raise PgolfError(f"{name}: used a {ways[0].kind} ({ways[0].what}), so it has no score")
    used = [f"the plug-in used a {others[0].kind}: {others[0].what}"] if others else []
    return replace(result, warning="; ".join([*filter(None, [result.warning]), *used]))


def _graded(
    scorer: Scorer,
    about: Mapping[str, Any],
    source: Path,
    dataset: Dataset,
    text: Text,
    *,
    strict: bool,
    team: Team,
) -> EvalResult:
    """Score (a part of) the data's validation text."""
    started = time.perf_counter()
    known = {"artifact": artifact_digest(source)} if has_digest(source) else {}
    record = Ledger(
        {
            **known,
            "tokenizer": dataset.tokenizer.digest,
            "data": text_digest(text.tokens),
            "targets": len(text.byte_counts),
            "strict": strict,
            "settings": {},
            **about,
        }
    )
    with counting(f"{about['mode']} evaluation") as progress:
        grade(scorer, *text, record, strict=strict, progress=progress, team=team)
    seconds = time.perf_counter() - started
    return EvalResult.of(record, about["mode"], seconds, warning=dataset.warning())
