"""What a finished run leaves behind, read for a submission."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pgolf.compress.calibrate import calibration_for
from pgolf.compress.container import read_artifact
from pgolf.compress.pack import fit
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import Verification, verify_ledger
from pgolf.files import read_json, sha256_file, write_bytes
from pgolf.pipeline import ARTIFACT, evaluate_weights
from pgolf.recipe import Recipe
from pgolf.train.metrics import read_metrics
from pgolf.weights import load_weights


@dataclass(frozen=True)
class RunRecord:
    """One run: its files and what they say."""

    folder: Path
    recipe: Recipe
    """As the artifact has it."""
    artifact: Path
    ledger: Path
    """Of the evaluation that counts."""
    sliding_ledger: Path
    score: dict[str, Any]
    """That evaluation, as in ``result.json``."""
    result: dict[str, Any]
    provenance: dict[str, Any]
    metrics: list[dict[str, Any]]
    origin: dict[str, Any]
    """What the artifact says about how it was packed."""
    packing_seconds: float

    @property
    def seed(self) -> int:
        """Seed of the initial weights."""
        return self.recipe.train.seed

    @property
    def train_seconds(self) -> float:
        """Training time; what packing reads of the training text counts as training."""
        reads = self.origin.get("calibration", {}).get("source") == "train"
        return float(self.result["train"]["seconds"]) + (self.packing_seconds if reads else 0.0)

    @property
    def machine(self) -> str:
        """What it ran on, in a few words."""
        environment, ranks = self.provenance["environment"], self.provenance.get("ranks", 1)
        return f"{ranks} x {environment['device_name']} (torch {environment['torch']})"


def read_run(folder: Path, mode: str) -> RunRecord:
    """Read a finished run.

    Args:
        folder: of ``pgolf run``.
        mode: the evaluation that counts, "ttt" or "sliding".

    Raises:
        PgolfError: it is none, or not finished.
    """
    if not (folder / "result.json").is_file():
        raise PgolfError(f"{folder}: holds no finished run (no result.json); make one with `pgolf run`")
    result, provenance = read_json(folder / "result.json"), read_json(folder / "provenance.json")
    for what in ("train", "pack"):
        if what not in result:
            raise PgolfError(f"{folder}: the run is not finished ({what} is missing); continue it with `pgolf run`")
    for name in ("sliding", mode):
        if name not in result.get("evaluations", {}) or not (folder / f"ledger.{name}.jsonl").is_file():
            raise PgolfError(f"{folder}: has no {name} evaluation with a ledger; continue the run with `pgolf run`")
    if not (folder / ARTIFACT).is_file():
        raise PgolfError(f"{folder}: holds no {ARTIFACT}; continue the run with `pgolf run`")
    artifact = read_artifact(folder / ARTIFACT)
    return RunRecord(
        folder=folder,
        recipe=artifact.recipe,
        artifact=folder / ARTIFACT,
        ledger=folder / f"ledger.{mode}.jsonl",
        sliding_ledger=folder / "ledger.sliding.jsonl",
        score=result["evaluations"][mode],
        result=result,
        provenance=provenance,
        metrics=read_metrics(folder / "metrics.jsonl"),
        origin=artifact.origin,
        packing_seconds=float(result["pack"].get("seconds", 0.0)),
    )


def find_data(run: RunRecord, data: Path | None, tokenizer: Path | None) -> Dataset:
    """The data that a run was scored on: the given folder, or the recorded one.

    Raises:
        PgolfError: it is not there any more, or of another tokenizer.
    """
    folder = data or Path(run.provenance["data"]["folder"])
    if not folder.is_dir():
        raise PgolfError(f"{folder}: the data of {run.folder} is not there any more; pass --data DIR")
    dataset = open_dataset(folder, tokenizer, run.recipe.model.vocab_size)
    if dataset.tokenizer.digest != run.provenance["data"]["tokenizer_sha256"]:
        raise PgolfError(f"{dataset.tokenizer.path}: is not the tokenizer that {run.folder} was trained with")
    return dataset


def verify(run: RunRecord, dataset: Dataset) -> Verification:
    """Recompute a run's ledger against the data, the artifact and the tokenizer."""
    expected = {"artifact": sha256_file(run.artifact), "tokenizer": dataset.tokenizer.digest}
    tokens = dataset.validation_tokens(run.recipe.evaluation_length)
    return verify_ledger(run.ledger, tokens, dataset.tokenizer.byte_table, expected)


def repacked(run: RunRecord, dataset: Dataset, folder: Path, code: int, device: torch.device, mode: str) -> RunRecord:
    """The run packed again so that artifact and ``code`` bytes use the cap, and scored again; files go to ``folder``.

    Raises:
        PgolfError: it does not fit.
    """
    import time

    started = time.perf_counter()
    weights, path = load_weights(run.folder), folder / f"artifact_seed{run.seed}.pgolf"
    calibration = calibration_for(weights.model(), run.recipe, dataset)
    grid, cap = weights.grid_for(run.recipe.compress), run.recipe.compress.cap
    digest = weights.tokenizer_digest
    packed = fit(weights.state, run.recipe, digest, path, cap, code, calibration, lambda what: None, grid)
    write_bytes(path, packed.content)
    seconds = time.perf_counter() - started
    found, scores = load_weights(path), {}
    for name in dict.fromkeys(("sliding", mode)):
        ledger = folder / f"ledger_{name}_seed{run.seed}.jsonl"
        scores[name] = evaluate_weights(found, run.recipe, dataset, name, device, ledger=ledger).to_json()
    return replace(
        run,
        artifact=path,
        ledger=folder / f"ledger_{mode}_seed{run.seed}.jsonl",
        sliding_ledger=folder / f"ledger_sliding_seed{run.seed}.jsonl",
        score=scores[mode],
        result=run.result | {"evaluations": run.result["evaluations"] | scores},
        origin=packed.origin,
        packing_seconds=seconds,
    )
