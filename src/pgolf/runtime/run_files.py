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
RAW = "raw.safetensors"
MODEL = "model.safetensors"
ARTIFACT = "artifact.pgolf"


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a run's ``result.json`` holds so far; None where there is none.

    Raises:
        PgolfError: it cannot be read, or does not have the shape of what training and ``pipeline.run_all``
            write.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    found = read_json(path)
    if not _is_result(found):
        raise PgolfError(f"{path}: damaged; restore it from a copy")
    assert isinstance(found, dict)
    return found


def _is_result(found: Any) -> bool:
    """Whether it has that shape in the parts that are read later."""
    try:
        evaluations = found["evaluations"].values()
        values = [entry[key] for entry in evaluations for key in ("val_bpb", "val_loss", "targets", "bytes")]
        values += (
            [found["pack"][key] for key in ("total_bytes", "cap", "model_bytes")] if "pack" in found else []
        )
    except (AttributeError, KeyError, TypeError):
        return False
    return isinstance(found.get("train", {}), dict) and all(
        isinstance(value, (int, float)) for value in values
    )
