"""What a finished run leaves behind, read for a submission."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pgolf.compress.calibrate import calibration_for
from pgolf.compress.container import read_artifact
from pgolf.compress.pack import fit
from pgolf.compress.weights import load_weights
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.build import uses_memory, without_memory
from pgolf.evaluate.evaluations import EVALUATIONS, evaluation_names
from pgolf.evaluate.ledger import Verification, read_header, verify_ledger
from pgolf.recipe.recipe import Recipe
from pgolf.runs.pipeline import evaluate_weights
from pgolf.runs.records import RunRecord, read_run
from pgolf.runs.stored_text import with_memory
from pgolf.runtime.files import sha256_file
from pgolf.runtime.run_files import ARTIFACT, METRICS, PROVENANCE, RESULT
from pgolf.runtime.writing import write_bytes

CAP = 16_000_000
_NUMBER = (int, float)
# The fields of a run's files that are read later.
_TEXTS = (
    *("started", "environment.code_sha256", "environment.device", "environment.device_name"),
    *("environment.torch", "data.folder", "data.tokenizer_sha256", "data.fingerprint"),
)
_VALIDATION = {"step": int, "val_loss": _NUMBER, "val_bpb": _NUMBER}
_STEP = {"step": int, "train_loss": _NUMBER, "lr_scale": _NUMBER, "tokens_per_second": _NUMBER}


@dataclass(frozen=True)
class Candidate:
    """A finished run that is to be submitted: its files and what they say."""

    record: RunRecord
    counts: str
    """The evaluation that counts: "sliding", "ttt", or "memory" where the recipe has one."""
    recipe: Recipe
    """As the artifact has it."""
    origin: dict[str, Any]
    """What the artifact says about how it was packed."""
    artifact: Path
    ledgers: dict[str, Path]
    """By evaluation: sliding, and the one that counts."""
    scores: Mapping[str, Any]
    """The evaluations in ``result.json``."""
    packing_seconds: float

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.record.folder

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What made it."""
        return self.record.provenance

    @property
    def trained(self) -> Any:
        """Steps and seconds of training."""
        return self.record.result["train"]

    @property
    def score(self) -> Any:
        """The evaluation that counts."""
        return self.scores[self.counts]

    @property
    def mode(self) -> str:
        """Its mode, "ttt" or "sliding"."""
        return EVALUATIONS[self.counts].mode

    @property
    def seed(self) -> int:
        """Seed of the initial weights."""
        return self.recipe.train.seed

    @property
    def cap(self) -> int:
        """Bytes that script and artifact may have together."""
        return min(CAP, self.recipe.compress.cap)

    @property
    def model_bytes(self) -> int:
        """Size of the artifact."""
        return self.artifact.stat().st_size

    @property
    def train_seconds(self) -> float:
        """Training time; what packing reads of the training text counts as training."""
        reads = self.origin.get("calibration", {}).get("source") == "train" or "memory" in self.origin
        return float(self.trained["seconds"]) + (self.packing_seconds if reads else 0.0)

    @property
    def machine(self) -> str:
        """What it ran on, in a few words."""
        environment, ranks = self.provenance["environment"], self.provenance.get("ranks", 1)
        return f"{ranks} x {environment['device_name']} (torch {environment['torch']})"


def read_candidate(folder: Path, mode: str) -> Candidate:
    """Read a finished run whose evaluation in a mode counts, "ttt" or "sliding".

    PgolfError where it is none, not finished, or one of its files is damaged.
    """
    if not (folder / RESULT).is_file():
        raise PgolfError(f"{folder}: holds no finished run (no {RESULT}); make one with `pgolf run`")
    found = read_run(folder)
    for what in ("train", "pack"):
        if what not in found.result:
            lacking = f"the run is not finished ({what} is missing)"
            raise PgolfError(f"{folder}: {lacking}; continue it with `pgolf run`")
    if not (folder / ARTIFACT).is_file():
        raise PgolfError(f"{folder}: holds no {ARTIFACT}; continue the run with `pgolf run`")
    _check_fields(folder / PROVENANCE, found.provenance, dict.fromkeys(_TEXTS, str))
    _check_fields(folder / RESULT, found.result, {"train.steps": int, "train.seconds": _NUMBER})
    artifact = read_artifact(folder / ARTIFACT)
    counts = "memory" if uses_memory(artifact.recipe, mode) else mode
    ledgers = {name: folder / EVALUATIONS[name].ledger for name in ("sliding", counts)}
    for name, ledger in ledgers.items():
        if name not in found.evaluations:
            raise PgolfError(f"{folder}: has no {name} evaluation; continue the run with `pgolf run`")
        if found.evaluations[name].get("mode") != EVALUATIONS[name].mode:
            wrong = f"damaged (evaluations.{name}.mode is wrong)"
            raise PgolfError(f"{folder / RESULT}: {wrong}; restore it from a copy")
        _check_ledger(found, name, ledger)
    for name, score in found.evaluations.items():
        _check_fields(folder / RESULT, score, {"seconds": _NUMBER, "mode": str}, f"evaluations.{name}.")
    for entry in found.metrics:
        _check_fields(folder / METRICS, entry, _VALIDATION if "val_bpb" in entry else _STEP)
    recipe, scores, seconds = artifact.recipe, found.evaluations, found.result["pack"].get("seconds", 0.0)
    origin, path = artifact.origin, folder / ARTIFACT
    return Candidate(found, counts, recipe, origin, path, ledgers, scores, float(seconds))


def _check_fields(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> None:
    """See to it that the fields that a submission needs are there, of their types."""
    for key, kind in wanted.items():
        value: Any = found
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, kind):
            raise PgolfError(f"{path}: damaged ({prefix}{key} is missing or wrong); restore it from a copy")


def _check_ledger(found: RunRecord, name: str, ledger: Path) -> None:
    """See to it that an evaluation's ledger can be read; what it says is verified later."""
    if ledger.is_file():
        read_header(ledger)
        return
    missing = f"{found.folder}: has no {ledger.name}"
    how = f"--mode {EVALUATIONS[name].mode} --ledger {ledger}"
    again = f"`pgolf eval {found.folder / ARTIFACT} --data DIR {how}`"
    # What a cell of a study has in common with another one is computed there.
    notes = [note for note in found.provenance.get("shared") or [] if isinstance(note, dict)]
    for note in reversed(notes):
        if name in str(note.get("scores", "")).split(", "):
            lies = f"whose {name} score is that of {note.get('with')}, where the ledger is"
            raise PgolfError(f"{missing}: it is a study's cell {lies}; write its own with {again}")
    raise PgolfError(f"{missing}; write it with {again}")


def find_data(run: Candidate, data: Path | None, tokenizer: Path | None) -> Dataset:
    """The data that a run was scored on: the given folder, or the recorded one.

    PgolfError where it is not there any more, or of another tokenizer.
    """
    folder = data or Path(run.provenance["data"]["folder"])
    if not folder.is_dir():
        raise PgolfError(f"{folder}: the data of {run.folder} is not there any more; pass --data DIR")
    dataset = open_dataset(folder, tokenizer, run.recipe.model.vocab_size)
    if dataset.tokenizer.digest != run.provenance["data"]["tokenizer_sha256"]:
        raise PgolfError(f"{dataset.tokenizer.path}: is not the tokenizer that {run.folder} was trained with")
    return dataset


def verify(run: Candidate, dataset: Dataset) -> dict[str, Verification]:
    """Recompute a run's ledgers, by evaluation, against the data, the artifact and the tokenizer."""
    expected = {"artifact": sha256_file(run.artifact), "tokenizer": dataset.tokenizer.digest}
    text = dataset.validation_text(run.recipe.evaluation_length)
    return {name: verify_ledger(path, *text, expected) for name, path in run.ledgers.items()}


def in_folder(run: Candidate, folder: Path) -> Candidate:
    """The run with artifact and ledgers of another folder."""
    ledgers = {name: folder / f"ledger_{name}_seed{run.seed}.jsonl" for name in run.ledgers}
    return replace(run, artifact=folder / f"artifact_seed{run.seed}.pgolf", ledgers=ledgers)


def repacked(run: Candidate, dataset: Dataset, folder: Path, code: int, device: torch.device) -> Candidate:
    """The run packed again into ``folder`` so that artifact and ``code`` bytes use the cap, and scored again;
    PgolfError where it does not fit.
    """
    started = time.perf_counter()
    weights, made = load_weights(run.folder), in_folder(run, folder)
    given = (weights.state, run.recipe, weights.tokenizer_digest, made.artifact, run.cap, code)
    calibration = calibration_for(weights.model(), run.recipe, dataset)
    grid = weights.grid_for(run.recipe.compress)
    how: dict[str, Any] = {"calibration": calibration, "note": lambda *_: None, "grid": grid}
    if run.recipe.memory.enabled:
        how = with_memory(given, dataset, how)
    packed = fit(*given, **how)
    write_bytes(made.artifact, packed.content)
    seconds = time.perf_counter() - started
    # No score of the artifact before is left.
    scores = {name: run.scores[name] for name in ("raw", "float") if name in run.scores}
    found = load_weights(made.artifact)
    names = evaluation_names(run.counts == "memory")
    for name in names[names.index("packed") : names.index(run.counts) + 1]:
        mode, ledger = EVALUATIONS[name].mode, made.ledgers.get(name)
        recipe = run.recipe if EVALUATIONS[name].memory else without_memory(run.recipe)
        scores[name] = evaluate_weights(found, recipe, dataset, mode, device, ledger=ledger).to_json()
    return replace(made, scores=scores, origin=packed.origin, packing_seconds=seconds)
