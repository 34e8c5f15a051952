"""The whole main job: data, training, packing, every evaluation. Finished parts are not repeated."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pgolf.compress.calibrate import calibration_for
from pgolf.compress.code_size import code_bytes
from pgolf.compress.legacy import import_reference
from pgolf.compress.pack import carried_bytes, pack
from pgolf.compress.report import PackReport
from pgolf.compress.weights import Weights, load_weights, packed_tokenizer, save_weights
from pgolf.data.corpus import Texts, built_in_corpus, prepare_python_corpus
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.evaluate.build import without_memory
from pgolf.evaluate.evaluate import MODES, EvalResult
from pgolf.evaluate.evaluations import EVALUATIONS, SCORES, evaluation_names, usual_mode
from pgolf.evaluate.weights import score_weights
from pgolf.optim.schedule import remark
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.costs import check_memory, check_size
from pgolf.runs.folder import is_trained, open_run, other_recipe, record_session, saved_recipe, writing
from pgolf.runs.kept import keep_pack, keep_score, keeper_of, own_data
from pgolf.runs.view import TrainingView
from pgolf.runtime.exclusive import working_in
from pgolf.runtime.files import sha256_file
from pgolf.runtime.progress import counting, tell, working
from pgolf.runtime.run_files import ARTIFACT, RAW, RESULT, is_run, read_result, run_of, scored_file
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

Carry = Literal["no", "free", "counted"]
"""Whether an artifact carries its tokenizer, and whether that counts towards the cap."""


def carry_of(with_tokenizer: bool, count_tokenizer: bool) -> Carry:
    """What the options of packing come to; counting it means carrying it."""
    return "counted" if count_tokenizer else "free" if with_tokenizer else "no"


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
    initial: Path | None = None,
    scores: Collection[str] = SCORES,
    keep: Collection[int] = (),
    report: Callable[[Path, Dataset], object] | None = None,
) -> dict[str, Any]:
    """Do everything that is not done yet in the run folder ``out`` and return what ``result.json`` holds.

    Training and evaluation are shared by the team; the first rank packs, and only its result is complete.
    Training starts from the weights in ``initial``, if any. Of the evaluations those named in ``scores`` are
    made, that with memory where the recipe has one. The checkpoints after the steps in ``keep`` stay. In the
    end the first rank has the ``report`` of the folder written, which is told of the data. PgolfError where
    something in the input is wrong; what was finished before stays usable.
    """
    if unknown := [name for name in scores if name not in SCORES]:
        raise PgolfError(f"--score {unknown[0]}: unknown; use {', '.join(SCORES)}")
    made = evaluation_names(recipe.memory.enabled)
    wanted = [EVALUATIONS[name] for name in made if name in ("raw", *scores)]
    with working_in(out, team):
        begun = saved_recipe(out)
        if begun is not None and begun != recipe:
            raise PgolfError(f"{out}: holds a run of {other_recipe(out, begun, recipe)}")
        if begun is not None and data is None:
            data, tokenizer = own_data(out, recipe, data, tokenizer)
        dataset = job_dataset(recipe, data, tokenizer, team)
        result: dict[str, Any] = {"recipe": recipe.name, "evaluations": {}} | (read_result(out) or {})
        evaluations: dict[str, Any] = result["evaluations"]
        trained, packed = is_trained(out), "pack" in result and (out / ARTIFACT).is_file()
        save = partial(team.first, lambda: write_json(out / RESULT, result))
        team.meet()  # Everyone has seen what is done before anyone goes on.
        if not trained:
            check_memory(recipe, device)
            start = _initial(recipe, initial)
            run = open_run(recipe, dataset, out, device, initial=start, resume=begun is not None, team=team)
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
        remedy = "pass --data DIR (see `pgolf data --help`), or text to train on by --text FILE"
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
    data: Path | Texts | None,
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
            lacking = (
                "nothing to resume there; name a recipe" if resume else "no recipe is named for this run"
            )
            raise PgolfError(f"{out}: {lacking} (`pgolf recipes` lists them)")
        if previous is not None and not isinstance(data, Texts):
            data, tokenizer = own_data(out, recipe, data, tokenizer)
        dataset = job_dataset(recipe, data, tokenizer, team)
        check_memory(recipe, device)
        start = _initial(recipe, initial)
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


def _initial(recipe: Recipe, source: Path | None) -> dict[str, Tensor] | None:
    """Weights to start from, which the recipe's model must take, whatever recipe they came from."""
    if source is None:
        return None
    weights = replace(load_weights(source), recipe=recipe)
    weights.check()
    return weights.state


def pack_job(
    source: Path,
    out: Path | None,
    cap: int | None,
    overrides: Sequence[str],
    data: Path | None = None,
    tokenizer: Path | None = None,
    carry: Carry = "no",
) -> PackReport:
    """Pack a run's or a file's weights; ``overrides`` may change compress and memory keys.

    A cap asks for the scheme that uses it: unless the overrides name a scheme, it is "budget". Training text
    for calibration comes from ``data``, the run's own data, or the recipe's built-in corpus. Without ``out``
    the artifact becomes that of the run. ``carry`` puts the tokenizer in: "free" of the cap, or "counted".
    """
    weights = load_weights(source)
    if out is None and not is_run(source):
        raise PgolfError(
            f"{source}: is no run's folder, which has a place for an artifact; name one by --out"
        )
    out = out or source / ARTIFACT
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
    carried = None
    if carry != "no":
        carried = weights.tokenizer(tokenizer if dataset is None else dataset.tokenizer.path)
    with writing(out):
        check_writable(out)
        before, started = sha256_file(out) if out.is_file() else "", time.perf_counter()
        report = _pack(weights, recipe, dataset, out, cap, carried, carry == "counted")
        if (run := run_of(out)) is not None and out.name == ARTIFACT:
            keep_pack(run, report, time.perf_counter() - started, before)
        return report


def _pack(
    weights: Weights,
    recipe: Recipe,
    dataset: Dataset | None,
    out: Path,
    cap: int | None,
    carried: Tokenizer | None = None,
    counted: bool = False,
) -> PackReport:
    with working("packing") as note:
        note("calibrating")
        section = b"" if carried is None else packed_tokenizer(carried)
        calibration = calibration_for(weights.model(), recipe, dataset)
        digest = weights.tokenizer_digest if carried is None else carried.digest
        given = weights.state, recipe, digest, out
        grid = weights.grid_for(recipe.compress)
        how: dict[str, Any] = {"calibration": calibration, "note": note, "grid": grid}
        if recipe.memory.enabled:
            # Compiles functions, which takes seconds where that was never done.
            from pgolf.runs.stored_text import with_memory

            assert dataset is not None
            taken = code_bytes(memory=True) + (carried_bytes(section) if counted else 0)
            how = with_memory((*given, cap or recipe.compress.cap, taken), dataset, how)
        return pack(*given, cap, **how, tokenizer=section, counted=counted)


def training_text(source: Path, recipe: Recipe, data: Path | None, tokenizer: Path | None) -> Dataset:
    """The given data, the run's or file's own, or the built-in corpus; PgolfError where it is not known."""
    data, tokenizer = own_data(source, recipe, data, tokenizer)
    if data is None and recipe.data.corpus == "none":
        raise PgolfError(
            f"{source}: packing needs training text and does not know where it is; pass --data DIR, or "
            + ("leave the memory out (--set memory.enabled=false)" if recipe.memory.enabled else _WITHOUT)
        )
    return job_dataset(recipe, data, tokenizer)


def eval_job(
    source: Path,
    data: Path | None,
    tokenizer: Path | None,
    mode: str | None,
    stride: int | None,
    limit_targets: int | None,
    overrides: Sequence[str],
    device: torch.device,
    *,
    ledger: Path | None = None,
    strict: bool = False,
    team: Team = SOLO,
) -> EvalResult:
    """Score weights; ``overrides`` may change evaluate, ttt and memory keys. Writes a ``ledger`` if named.

    Without a ``mode`` the recipe's usual one. A score of a run's weights with all targets, by the run's own
    settings and data, is kept in its folder.
    """
    if ledger is not None:
        check_writable(ledger)
    if mode not in (None, *MODES):
        raise PgolfError(f"--mode {mode}: unknown; use {', '.join(MODES)}")
    weights = load_weights(scored_file(source))
    strides = [] if stride is None else [f"evaluate.stride={stride}"]
    recipe = weights.recipe.with_overrides([*overrides, *strides], ("evaluate", "ttt", "memory"))
    mode = mode or usual_mode(recipe)
    dataset = job_dataset(recipe, *own_data(source, recipe, data, tokenizer), team)
    score = partial(evaluate_weights, weights, recipe, dataset, mode, device, team=team)
    with writing(ledger, team):
        result = score(limit_targets=limit_targets, ledger=ledger, strict=strict)
    kept = team.first(lambda: _kept(weights, recipe, dataset, result, limit_targets))
    return replace(result, kept=kept or "")


def _kept(weights: Weights, recipe: Recipe, dataset: Dataset, result: EvalResult, limit: int | None) -> str:
    """Keep a score in the folder of its run; where it is, or why it is not there, in words."""
    run, why = keeper_of(weights, recipe, dataset)
    if run is not None and limit is not None:
        return f"not in {run}: only the first targets"
    return why if run is None else keep_score(run, weights, recipe, result)


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
    if said := remark(run.recipe.train):
        tell(f"note: {said}")
    with contextlib.ExitStack() as stack:
        watcher: Watcher = stack.enter_context(TrainingView(run.recipe.train.steps, run.clock.step))
        if profile_into is None:
            return train(run, watcher, keep, averaged)
        from pgolf.train.profile import ProfilingWatcher

        profiler = ProfilingWatcher(watcher, run.folder / "profile", run.device)
        trained = train(run, stack.enter_context(profiler), keep, averaged)
    profile_into["profile"] = profiler.to_json()
    return trained
