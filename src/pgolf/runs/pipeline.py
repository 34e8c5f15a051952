"""The whole main job: data, training, packing, every evaluation. Finished parts are not repeated."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pgolf.compress.calibrate import calibration_for
from pgolf.compress.code_size import code_bytes
from pgolf.compress.legacy import import_reference
from pgolf.compress.pack import pack
from pgolf.compress.report import PackReport
from pgolf.compress.weights import Weights, load_weights, save_weights, weights_file
from pgolf.data.corpus import Texts, built_in_corpus, prepare_python_corpus
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.data.inspect import check_bytes
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.evaluate.build import without_memory
from pgolf.evaluate.evaluate import MODES, EvalResult
from pgolf.evaluate.evaluations import EVALUATIONS, SCORES, evaluation_names
from pgolf.evaluate.ledger import Verification, read_header, verify_ledger
from pgolf.evaluate.weights import score_weights
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.estimate import check_memory, check_size
from pgolf.runs.folder import is_trained, open_run, record_session, saved_recipe, writing
from pgolf.runs.view import TrainingView
from pgolf.runtime.exclusive import working_in
from pgolf.runtime.files import sha256_file
from pgolf.runtime.progress import counting, tell, working
from pgolf.runtime.run_files import ARTIFACT, RAW, RECIPE, RESULT, read_result, recorded_data
from pgolf.runtime.team import SOLO, Team
from pgolf.runtime.writing import check_writable, write_bytes, write_json
from pgolf.train.closing import TrainResult
from pgolf.train.loop import train
from pgolf.train.run import Run, Watcher

# What a cap means for a recipe with another scheme.
BUDGET = (
    "compress.scheme=budget",
    "compress.rounding=gptq",
    "compress.calibration=train",
    "compress.codec=range",
    "compress.level=[1]",
)

_WITHOUT = (
    "use the model's own text (--set compress.calibration=self) or none (--set compress.calibration=none)"
)


def run_all(
    recipe: Recipe,
    data: Path | Texts | None,
    tokenizer: Path | None,
    out: Path,
    device: torch.device,
    team: Team = SOLO,
    *,
    scores: Collection[str] = SCORES,
    keep: Collection[int] = (),
    report: Callable[[Path, Dataset], object] | None = None,
) -> dict[str, Any]:
    """Do everything that is not done yet in the run folder ``out`` and return what ``result.json`` holds.

    Training and evaluation are shared by the team; the first rank packs, and only its result is complete. Of
    the evaluations those named in ``scores`` are made, that with memory where the recipe has one. The
    checkpoints after the steps in ``keep`` stay. In the end the first rank has the ``report`` of the folder
    written, which is told of the data. PgolfError where something in the input is wrong; what was finished
    before stays usable.
    """
    if unknown := [name for name in scores if name not in SCORES]:
        raise PgolfError(f"--score {unknown[0]}: unknown; use {', '.join(SCORES)}")
    made = evaluation_names(recipe.memory.enabled)
    wanted = [EVALUATIONS[name] for name in made if name in ("raw", *scores)]
    with working_in(out, team):
        begun = saved_recipe(out)
        if begun not in (None, recipe):
            raise PgolfError(f"{out}: holds a run of another recipe ({out / RECIPE}); choose another --out")
        dataset = job_dataset(recipe, data, tokenizer, team)
        result: dict[str, Any] = {"recipe": recipe.name, "evaluations": {}} | (read_result(out) or {})
        evaluations: dict[str, Any] = result["evaluations"]
        trained, packed = is_trained(out), "pack" in result and (out / ARTIFACT).is_file()
        save = partial(team.first, lambda: write_json(out / RESULT, result))
        team.meet()  # Everyone has seen what is done before anyone goes on.
        if not trained:
            check_memory(recipe, device)
            run = open_run(recipe, dataset, out, device, resume=begun is not None, team=team)
            done = _train(run, keep, averaged="float" in scores)
            result["train"] = done.figures()
            evaluations |= done.evaluations()
        elif any(entry.name not in evaluations for entry in wanted):
            team.first(lambda: record_session(out))
        if not packed:
            result["pack"] = team.first(lambda: _pack_run(recipe, dataset, out))
            save()
        # A study's run may lack the raw weights' score: its weights are from another run's checkpoint.
        for entry in wanted:
            if entry.name not in evaluations:
                shown: dict[str, Any] = {"label": f"{entry.name} BPB", "ledger": out / entry.ledger}
                weights = load_weights(out / entry.file)
                how = recipe if entry.memory else without_memory(recipe)
                scored = evaluate_weights(weights, how, dataset, entry.mode, device, team=team, **shown)
                evaluations[entry.name] = scored.to_json()
                save()
        if report is not None:
            team.first(lambda: report(out, dataset))
        return result


def _pack_run(recipe: Recipe, dataset: Dataset, out: Path) -> dict[str, Any]:
    started = time.perf_counter()
    report = _pack(load_weights(out), recipe, dataset, out / ARTIFACT, None)
    return report.to_json() | {"seconds": time.perf_counter() - started}


def job_dataset(
    recipe: Recipe, data: Path | Texts | None, tokenizer: Path | None, team: Team = SOLO
) -> Dataset:
    """The given data, or what the recipe makes of the given texts or of its own corpus (once, then reused).

    PgolfError where they are missing or wrong, or the recipe's model is too large for any of our jobs.
    """
    check_size(recipe)
    how = recipe.model.vocab_size, recipe.data.validation_fraction, tell, recipe.data.transform
    if isinstance(data, Texts):
        texts, folder = data, data.folder(recipe.model.vocab_size, recipe.data.transform)
        team.first(lambda: texts.prepare(folder, *how))
        data, tokenizer = folder, None
    if data is not None:
        dataset = open_dataset(data, tokenizer, recipe.model.vocab_size)
        if recipe.data.transform not in ("none", dataset.tokenizer.transform):
            raise PgolfError(
                f"{data}: its tokenizer has no operators for capital letters, which the recipe's "
                f"data.transform {recipe.data.transform} asks for; prepare the data with --transform "
                f"{recipe.data.transform}, or leave the key out"
            )
        begins, model = dataset.tokenizer.bos_id, recipe.model
        if (model.document_mask or model.window_smear.width) and begins != model.bos:
            raise PgolfError(
                f"{dataset.tokenizer.path}: a document begins with token {begins}, but the recipe's "
                f"model.bos is {model.bos}; train with --set model.bos={begins} (a trained model needs data "
                "like its own)"
            )
        return dataset
    if recipe.data.corpus != "python":
        remedy = "pass --text FILE or --data DIR (see `pgolf data --help`)"
        raise PgolfError(f"recipe {recipe.name}: has no corpus of its own; {remedy}")
    folder = built_in_corpus(recipe.model.vocab_size, recipe.data.transform)
    if team.is_first and not (folder / "manifest.json").is_file():
        tell("collecting the English prose of this Python and training a tokenizer on it")
    team.first(lambda: prepare_python_corpus(folder, *how))
    return open_dataset(folder, None, recipe.model.vocab_size)


def evaluate_weights(
    weights: Weights,
    recipe: Recipe,
    dataset: Dataset,
    mode: str,
    device: torch.device,
    *,
    limit_targets: int | None = None,
    label: str | None = None,
    ledger: Path | None = None,
    strict: bool = False,
    team: Team = SOLO,
) -> EvalResult:
    """``score_weights`` with a bar; writes the ledger of it if a file is named."""
    with counting(label or f"{mode} evaluation") as progress:
        score = partial(score_weights, limit_targets=limit_targets, strict=strict, team=team)
        result = score(weights, recipe, dataset, mode, device, progress)
    if ledger is not None:
        team.first(lambda: write_bytes(ledger, result.ledger.content()))
    _warn(dataset)
    return result


def _warn(dataset: Dataset) -> None:
    if warning := dataset.warning():
        tell(f"warning: {warning}")


def train_job(
    name: str | Recipe | None,
    overrides: Sequence[str],
    data: Path | None,
    tokenizer: Path | None,
    out: Path,
    device: torch.device,
    *,
    initial: Path | None = None,
    resume: bool = False,
    profile: bool = False,
    team: Team = SOLO,
) -> dict[str, Any]:
    """Train in the run folder ``out``; with ``resume`` the recipe and the data are the run's own by default.

    With ``profile`` a few steps are profiled; the result then holds what was found, as ``profile``. A team
    that was restarted resumes. PgolfError where recipe or data are missing, or the folder holds something
    else.
    """
    resume = resume or team.restarted
    with working_in(out, team):
        previous = saved_recipe(out) if resume else None
        if isinstance(name, Recipe):
            recipe = name.with_overrides(overrides)
        elif name is not None:
            recipe = load_recipe(name, overrides)
        elif previous is not None:
            recipe = previous
        else:
            lacking = f"{out}: nothing to resume there; name a --recipe" if resume else "name a --recipe"
            raise PgolfError(lacking)
        if previous is not None and data is None and recipe.data.corpus == "none":
            data = recorded_data(out)
        dataset = job_dataset(recipe, data, tokenizer, team)
        check_memory(recipe, device)
        weights = None if initial is None else load_weights(initial)
        if weights is not None:
            # The new recipe's model must take these weights, whatever recipe they came from.
            replace(weights, recipe=recipe).check()
        start = None if weights is None else weights.state
        run = open_run(recipe, dataset, out, device, initial=start, resume=resume, team=team)
        found: dict[str, Any] = {}
        trained = _train(run, profile_into=found if profile and team.is_first else None)
        assert trained.averaged is not None
        return {
            **trained.figures(),
            "weights": str(trained.weights),
            "val_loss": trained.averaged.val_loss,
            "val_bpb": trained.averaged.val_bpb,
            "raw_weights": str(trained.weights.with_name(RAW)),
            "raw_val_loss": trained.raw.val_loss,
            "raw_val_bpb": trained.raw.val_bpb,
            **found,
        }


def pack_job(
    source: Path,
    out: Path,
    cap: int | None,
    overrides: Sequence[str],
    data: Path | None = None,
    tokenizer: Path | None = None,
) -> PackReport:
    """Pack a run's or a file's weights; ``overrides`` may change compress and memory keys.

    A cap asks for the scheme that uses it: unless the overrides name a scheme, it is "budget". Training text
    for calibration comes from ``data``, the run's own data, or the recipe's built-in corpus.
    """
    weights = load_weights(source)
    if weights.kind == "artifact":
        raise PgolfError(f"{source}: is an artifact already; pack the run or the weights it was made from")
    named = [text.partition("=")[0].strip() for text in overrides]
    recipe = weights.recipe
    if cap is not None and recipe.compress.scheme != "budget" and "compress.scheme" not in named:
        recipe = recipe.with_overrides(BUDGET)
    recipe = recipe.with_overrides(overrides, ("compress", "memory"))
    dataset = None
    if recipe.compress.calibration == "train" or recipe.memory.enabled:
        dataset = training_text(source, recipe, data, tokenizer)
    with writing(out):
        return _pack(weights, recipe, dataset, out, cap)


def _pack(
    weights: Weights, recipe: Recipe, dataset: Dataset | None, out: Path, cap: int | None
) -> PackReport:
    with working("packing") as note:
        note("calibrating")
        calibration = calibration_for(weights.model(), recipe, dataset)
        given = weights.state, recipe, weights.tokenizer_digest, out
        grid = weights.grid_for(recipe.compress)
        how: dict[str, Any] = {"calibration": calibration, "note": note, "grid": grid}
        if recipe.memory.enabled:
            # Compiles functions, which takes seconds where that was never done.
            from pgolf.runs.stored_text import with_memory

            assert dataset is not None
            limits = cap or recipe.compress.cap, code_bytes(memory=True)
            how = with_memory((*given, *limits), dataset, how)
        return pack(*given, cap, **how)


def training_text(source: Path, recipe: Recipe, data: Path | None, tokenizer: Path | None) -> Dataset:
    """The given data, the run's or file's own, or the built-in corpus; PgolfError where it is not known."""
    folder = source if source.is_dir() else source.parent
    if data is None and recipe.data.corpus == "none":
        data = recorded_data(folder)
        if data is None:
            raise PgolfError(
                f"{source}: packing needs training text and does not know where it is; pass --data DIR, or "
                + ("leave the memory out (--set memory.enabled=false)" if recipe.memory.enabled else _WITHOUT)
            )
    return job_dataset(recipe, data, tokenizer)


def eval_job(
    source: Path,
    data: Path | None,
    tokenizer: Path | None,
    mode: str,
    stride: int | None,
    limit_targets: int | None,
    overrides: Sequence[str],
    device: torch.device,
    *,
    ledger: Path | None = None,
    strict: bool = False,
    team: Team = SOLO,
) -> EvalResult:
    """Score weights; ``overrides`` may change evaluate, ttt and memory keys. Writes a ``ledger`` if named."""
    if ledger is not None:
        check_writable(ledger)
    if mode not in MODES:
        raise PgolfError(f"--mode {mode}: unknown; use {', '.join(MODES)}")
    weights = load_weights(source)
    strides = [] if stride is None else [f"evaluate.stride={stride}"]
    recipe = weights.recipe.with_overrides([*overrides, *strides], ("evaluate", "ttt", "memory"))
    dataset = job_dataset(recipe, data, tokenizer, team)
    score = partial(evaluate_weights, weights, recipe, dataset, mode, device, team=team)
    with writing(ledger, team):
        return score(limit_targets=limit_targets, ledger=ledger, strict=strict)


def verify_job(
    ledger: Path, data: Path | None, tokenizer: Path | None, artifact: Path | None
) -> Verification:
    """Recompute a ledger, against the data and the artifact where they are given."""
    header = read_header(ledger)
    expected = {} if artifact is None else {"artifact": sha256_file(weights_file(artifact))}
    if data is None:
        return verify_ledger(ledger, expected=expected)
    dataset = open_dataset(data, tokenizer)
    expected["tokenizer"] = dataset.tokenizer.digest
    text = dataset.validation_text(1)
    found = verify_ledger(ledger, *text.first(header["targets"]), expected)
    counts = check_bytes(dataset, text)
    share = f"{found.score.targets:,} of the {len(text.byte_counts):,} targets of the validation split"
    checks = [*found.checks, *counts.rows(), ("share of the data", share)]
    return replace(found, checks=checks, problem=found.problem or counts.problem)


def import_job(
    source: Path, name: str, overrides: Sequence[str], out: Path, tokenizer: Path | None
) -> dict[str, Any]:
    """Convert a reference system's weights to a weights file of ours."""
    recipe = load_recipe(name, overrides)
    state = import_reference(source, recipe)
    digest = Tokenizer.load(tokenizer).digest if tokenizer is not None else ""
    save_weights(out, state, recipe, digest)
    parameters = sum(tensor.numel() for tensor in state.values())
    return {"weights": str(out), "tensors": len(state), "parameters": parameters}


def _train(
    run: Run, keep: Collection[int] = (), averaged: bool = True, profile_into: dict[str, Any] | None = None
) -> TrainResult:
    """Train with a bar; what a profiler finds, if asked for, goes into the mapping as ``profile``."""
    _warn(run.dataset)
    with contextlib.ExitStack() as stack:
        watcher: Watcher = stack.enter_context(TrainingView(run.recipe.train.steps, run.clock.step))
        if profile_into is None:
            return train(run, watcher, keep, averaged)
        from pgolf.train.profile import ProfilingWatcher

        profiler = ProfilingWatcher(watcher, run.folder / "profile", run.device)
        trained = train(run, stack.enter_context(profiler), keep, averaged)
    profile_into["profile"] = profiler.to_json()
    return trained
