"""What the files of a run folder are called, and how the one that holds its results is read.

``runs/folder.py`` says what each of them is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json

RECIPE = "recipe.toml"
PROVENANCE = "provenance.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
CHECKPOINT = "checkpoint.safetensors"
SNAPSHOTS = "snapshots"
RAW = "raw.safetensors"
MODEL = "model.safetensors"
ARTIFACT = "artifact.pgolf"


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a run's ``result.json`` holds so far; None where there is none.

    Raises:
        PgolfError: it cannot be read, or lacks what training and ``pipeline.run_all`` write.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    try:
        scores = found["evaluations"].values()
        numbers = [score[key] for score in scores for key in ("val_bpb", "val_loss", "targets", "bytes")]
        packed = found.get("pack", {"total_bytes": 0, "cap": 0, "model_bytes": 0})
        numbers += [packed[key] for key in ("total_bytes", "cap", "model_bytes")]
        damaged = not all(isinstance(number, (int, float)) for number in numbers)
        damaged |= not isinstance(found.get("train", {}), dict)
    except (AttributeError, KeyError, TypeError):
        damaged = True
    if damaged:
        raise PgolfError(f"{path}: damaged; restore it from a copy")
    return found


def weights_file(path: Path) -> Path:
    """The file that ``load_weights`` opens: a run folder's weights, or the file itself.

    Raises:
        PgolfError: there is none; the message says what was found.
    """
    if path.is_dir():
        file = path / MODEL
        if file.is_file():
            return file
        if (path / RECIPE).is_file():
            raise PgolfError(
                f"{path}: training has not finished; continue it with `pgolf train --resume --out {path}`"
            )
        raise PgolfError(f"{path}: holds no run (no {MODEL})")
    if not path.is_file():
        raise PgolfError(f"{path}: no such file or run folder")
    return path


def recorded_data(run: Path) -> Path | None:
    """The data folder that a run folder's ``provenance.json`` names; None where there is none."""
    path = run / PROVENANCE
    made = read_json(path) if path.is_file() else None
    data = made.get("data") if isinstance(made, dict) else None
    folder = data.get("folder") if isinstance(data, dict) else None
    return Path(folder) if isinstance(folder, str) else None
