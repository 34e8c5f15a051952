"""The library: what the commands do, as functions with typed results.

Each is thin: checks, messages and numbers are those of the command of the same name (docs/api.md). Paths are
strings, ``Path`` objects, or what an earlier function returned. Nothing is printed unless ``progress`` is
true; then it goes to standard error. What a caller can get wrong raises ``PgolfError``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pgolf.compress.report import PackReport
    from pgolf.evaluate.evaluate import EvalResult
    from pgolf.generate.model import Model
    from pgolf.recipe.recipe import Recipe

Place: TypeAlias = str | os.PathLike[str]
"""A path, or something that has one: a ``TrainedRun``, a ``Model``."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished training. Where a path is wanted, it is the run folder's."""

    folder: Path
    """The run folder: recipe, metrics, provenance, weights."""
    weights: Path
    """The averaged weights in it: what is packed and scored."""
    steps: int
    seconds: float
    """Of training, over all sessions, without validation."""
    val_loss: float
    """Nats per target of ``weights`` in standard windows."""
    val_bpb: float
    """Bits per byte of the same."""
    raw_weights: Path
    """The last weights, before averaging."""
    raw_val_loss: float
    """Nats per target of these."""
    raw_val_bpb: float
    """Bits per byte of the same."""

    def __fspath__(self) -> str:
        return os.fspath(self.folder)


def load(path: Place, tokenizer: Place | None = None) -> Model:
    """Open a model to write text with, on the CPU.

    Args:
        path: artifact, weights file or run folder.
        tokenizer: its tokenizer's file, where that is neither beside the model nor in the data that its run
            recorded.

    Raises:
        PgolfError: nothing usable is there, the file is damaged, or the tokenizer is not the model's.
    """
    from pgolf.generate.model import Model

    return Model(Path(path), _path(tokenizer))


def load_recipe(name: Place, overrides: str | Sequence[str] = ()) -> Recipe:
    """A recipe by the name of a shipped one or the path of a TOML file.

    Args:
        name: for example "quickstart", or "my.toml".
        overrides: settings such as "train.steps=200".

    Raises:
        PgolfError: unknown, malformed or contradictory; every problem is listed.
    """
    from pgolf.recipe.recipe import load_recipe

    return load_recipe(os.fspath(name), _settings(overrides))


def train(
    recipe: Place | Recipe,
    out: Place,
    data: Place | None = None,
    *,
    tokenizer: Place | None = None,
    overrides: str | Sequence[str] = (),
    init: Place | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: bool = False,
) -> TrainedRun:
    """Train a model in the run folder ``out``, as ``pgolf train`` does.

    Args:
        recipe: a shipped recipe's name, a TOML file, or a recipe.
        out: the run folder, new or empty; with ``resume`` one that holds a run of this recipe.
        data: prepared folder, or a bare folder of shards; the recipe's built-in corpus by default.
        tokenizer: its file, where the data folder holds none.
        overrides: settings such as "train.steps=200".
        init: weights to start from.
        resume: go on where the run stopped.
        device: "cpu", "cuda" or "cuda:N"; CUDA where there is one by default.
        progress: show a bar and validations.

    Raises:
        PgolfError: something in the input is wrong, or the loss became infinite.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is saved, and ``resume`` goes on from it.
    """
    from pgolf.recipe.recipe import Recipe
    from pgolf.runs.pipeline import train_job
    from pgolf.runtime.device import pick_device

    named = recipe if isinstance(recipe, Recipe) else os.fspath(recipe)
    places = _path(data), _path(tokenizer), Path(out), pick_device(device)
    with _shown(progress):
        done = train_job(named, _settings(overrides), *places, initial=_path(init), resume=resume)
    return TrainedRun(
        folder=Path(out),
        weights=Path(done["weights"]),
        steps=done["steps"],
        seconds=done["seconds"],
        val_loss=done["val_loss"],
        val_bpb=done["val_bpb"],
        raw_weights=Path(done["raw_weights"]),
        raw_val_loss=done["raw_val_loss"],
        raw_val_bpb=done["raw_val_bpb"],
    )


def pack(
    source: Place,
    out: Place,
    cap: int | None = None,
    *,
    overrides: str | Sequence[str] = (),
    data: Place | None = None,
    tokenizer: Place | None = None,
    progress: bool = False,
) -> PackReport:
    """Quantize and code weights to the artifact ``out``, read it back to verify, and count the bytes.

    Args:
        source: run folder or weights file.
        out: the artifact.
        cap: largest total in bytes, code included; the recipe's by default.
        overrides: settings of the compress section, such as "compress.calibration=self".
        data: training text for the calibration; the run's own by default.
        tokenizer: its file, where the data folder holds none.
        progress: show what is being done.

    Raises:
        PgolfError: something in the input is wrong, or no artifact fits under the cap.
    """
    from pgolf.errors import PgolfError
    from pgolf.runs.pipeline import pack_job

    if cap is not None and cap < 1:
        raise PgolfError(f"cap {cap}: must be at least 1 byte")
    with _shown(progress):
        return pack_job(Path(source), Path(out), cap, _settings(overrides), _path(data), _path(tokenizer))


def evaluate(
    source: Place,
    data: Place | None = None,
    *,
    mode: str = "sliding",
    stride: int | None = None,
    limit_targets: int | None = None,
    overrides: str | Sequence[str] = (),
    tokenizer: Place | None = None,
    ledger: Place | None = None,
    strict: bool = False,
    device: str | None = None,
    progress: bool = False,
) -> EvalResult:
    """Score weights on the validation split of ``data``, in bits per byte, as ``pgolf eval`` does.

    Args:
        source: artifact, weights file or run folder.
        data: prepared folder, or a bare folder of shards; the recipe's built-in corpus by default.
        mode: "standard", "sliding" or "ttt".
        stride: targets scored per sliding window.
        limit_targets: score only so many targets, the first ones.
        overrides: settings of the evaluate and ttt sections, such as "ttt.epochs=1".
        tokenizer: its file, where the data folder holds none.
        ledger: write what every range of targets cost to this file (JSON lines).
        strict: reveal one target at a time; slow, with the same score.
        device: "cpu", "cuda" or "cuda:N"; CUDA where there is one by default.
        progress: show a bar.

    Raises:
        PgolfError: something in the input is wrong, such as data of another tokenizer.
    """
    from pgolf.errors import PgolfError
    from pgolf.runs.pipeline import eval_job
    from pgolf.runtime.device import pick_device

    for name, value in (("stride", stride), ("limit_targets", limit_targets)):
        if value is not None and value < 1:
            raise PgolfError(f"{name} {value}: must be at least 1 target")
    chosen = _settings(overrides), pick_device(device)
    with _shown(progress):
        return eval_job(
            *(Path(source), _path(data), _path(tokenizer), mode, stride, limit_targets, *chosen),
            ledger=_path(ledger),
            strict=strict,
        )


@contextlib.contextmanager
def _shown(progress: bool) -> Iterator[None]:
    from pgolf.runtime.progress import quiet

    with contextlib.nullcontext() if progress else quiet():
        yield


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)


def _settings(overrides: str | Sequence[str]) -> Sequence[str]:
    return [overrides] if isinstance(overrides, str) else overrides
