"""The end of training: everything is saved first, then scored and recorded, and only then is the run closed.

A run that is cut off at any moment of it goes on from the checkpoint of its last step: it trains nothing
again, and ends with the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.compress.weights import load_weights
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluate import EvalResult
from pgolf.evaluate.weights import score_weights
from pgolf.runtime.run_files import MODEL, RAW, RESULT, read_result
from pgolf.runtime.writing import write_bytes, write_json
from pgolf.train.flops import training_speed
from pgolf.train.run import Run, Watcher


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


def close(
    run: Run, watcher: Watcher, asked_to_stop: Callable[[], bool], averaged: bool = True
) -> TrainResult:
    """Save, score and record a run whose last step is done.

    Args:
        run: is left with its last weights.
        watcher: told of the validation of the last weights.
        asked_to_stop: whether this rank was.
        averaged: score the averaged weights too, with a ledger.

    Raises:
        Stopped: asked to stop; everything is saved.
        PgolfError: a score is not a finite number; everything is saved. Or the disk has room for the weights
            alone (they are saved, and training is over without scores), or not even for them.
    """
    weights = _save(run)
    raw = run.validate(asked_to_stop)
    watcher.validation(run.clock.step, raw)
    scored = _score_averaged(run, weights, watcher, asked_to_stop) if averaged else None
    result = TrainResult(run.clock.step, run.clock.seconds, _speed(run), raw, scored, weights)
    if scored is not None:
        run.team.first(lambda: write_bytes(run.folder / "ledger.float.jsonl", scored.ledger.content()))
    run.team.first(lambda: _record(run, result.figures(), result.evaluations()))
    return result


def _save(run: Run) -> Path:
    """Write the checkpoint, from which all that follows can be done again, then the weights: their path."""
    run.check_weights()
    try:
        run.save_checkpoint()
    except PgolfError as error:
        # Several times larger than the weights. An older one would do the last steps again for nothing.
        run.save_weights()
        figures = {"steps": run.clock.step, "seconds": run.clock.seconds, **_speed(run)}
        run.team.first(lambda: _record(run, figures, {}))
        raise PgolfError(
            f"{error}; training is over all the same: its weights ({RAW}, {MODEL}) are there, their scores "
            f"are not: `pgolf run` with this --out or `pgolf eval {run.folder}` makes them"
        ) from error
    return run.save_weights()


def _speed(run: Run) -> dict[str, float | None]:
    tokens = run.clock.step * run.recipe.train.batch_tokens
    return training_speed(run.recipe, tokens, run.clock.seconds, run.device, run.team.size)


def _score_averaged(run: Run, path: Path, watcher: Watcher, asked_to_stop: Callable[[], bool]) -> EvalResult:
    look = run.unless_stopped(asked_to_stop)

    def progress(done: int, total: int) -> None:
        watcher.evaluation("float BPB", done, total)
        look(done, total)

    weights = load_weights(path)
    return score_weights(weights, run.recipe, run.dataset, "standard", run.device, progress, team=run.team)


def _record(run: Run, figures: dict[str, Any], scores: dict[str, Any]) -> None:
    found = read_result(run.folder) or {"recipe": run.recipe.name, "evaluations": {}}
    found["train"] = figures
    found["evaluations"] |= scores
    write_json(run.folder / RESULT, found)
    run.remove_checkpoint()  # Last: without it, training is over (``folder.is_trained``).
