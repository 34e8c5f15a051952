"""The end of training: everything is saved first, then scored and recorded, and only then is the run closed.

A run that is cut off at any moment of it goes on from the checkpoint of its last step: it trains nothing again, and
ends with the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.device import place
from pgolf.evaluate.evaluate import EvalResult, evaluate
from pgolf.files import read_json, sha256_file
from pgolf.flops import training_speed
from pgolf.weights import load_weights
from pgolf.writing import write_bytes, write_json

if TYPE_CHECKING:
    from pgolf.train.loop import Run, Watcher

RAW, MODEL, RESULT = "raw.safetensors", "model.safetensors", "result.json"


@dataclass(frozen=True)
class TrainResult:
    """How training ended."""

    steps: int
    seconds: float
    """Of training, over all sessions, without validation."""
    speed: dict[str, float | None]
    """See ``flops.training_speed``."""
    raw: EvalResult
    """Score of the last weights, in ``raw.safetensors``."""
    averaged: EvalResult | None
    """Score of the averaged weights, in ``model.safetensors``; None where it was not asked for."""
    weights: Path
    """The averaged weights."""

    def figures(self) -> dict[str, Any]:
        """Steps, seconds and speed, as JSON values."""
        return {"steps": self.steps, "seconds": self.seconds, **self.speed}

    def evaluations(self) -> dict[str, Any]:
        """The scores by their names in ``result.json``."""
        scores = {"raw": self.raw, "float": self.averaged}
        return {name: score.to_json() for name, score in scores.items() if score is not None}


def close(run: Run, watcher: Watcher, asked_to_stop: Callable[[], bool], averaged: bool = True) -> TrainResult:
    """Save, score and record a run whose last step is done.

    Args:
        run: is left with its last weights.
        watcher: told of the validation of the last weights.
        asked_to_stop: whether this rank was.
        averaged: score the averaged weights too, with a ledger.

    Raises:
        Stopped: asked to stop; everything is saved.
        PgolfError: a score is not a finite number; everything is saved.
    """
    run.save_checkpoint()
    weights = run.save_weights()
    raw = run.validate(asked_to_stop)
    watcher.validation(run.clock.step, raw)
    scored = _validate_averaged(run, weights, asked_to_stop) if averaged else None
    clock, recipe = run.clock, run.recipe
    speed = training_speed(recipe, clock.step * recipe.train.batch_tokens, clock.seconds, run.device, run.team.size)
    result = TrainResult(clock.step, clock.seconds, speed, raw, scored, weights)
    run.team.first(lambda: _record(run, result))
    return result


def _validate_averaged(run: Run, path: Path, asked_to_stop: Callable[[], bool]) -> EvalResult:
    """What ``pgolf eval --mode standard`` says of the file."""
    network = place(load_weights(path).model(), run.recipe, run.device)
    tokenizer = run.dataset.tokenizer
    known = {"tokenizer": tokenizer.digest, "artifact": sha256_file(path)}
    run.team.meet()  # Loading may have taken longer on one rank than on another.
    return evaluate(
        *(network, run.recipe, *run.validation_text, "standard"),
        run.unless_stopped(asked_to_stop),
        known=known,
        team=run.team,
    )


def _record(run: Run, result: TrainResult) -> None:
    if result.averaged is not None:
        write_bytes(run.folder / "ledger.float.jsonl", result.averaged.ledger.content())
    path = run.folder / RESULT
    found: dict[str, Any] = read_json(path) if path.is_file() else {"recipe": run.recipe.name, "evaluations": {}}
    found["train"] = result.figures()
    found["evaluations"] |= result.evaluations()
    write_json(path, found)
    run.remove_checkpoint()  # Last: without it, training is over (``folder.is_trained``).
