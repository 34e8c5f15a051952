"""What the files of a run folder are called, and how the one that holds its results is read.

``runs/folder.py`` says what each of them is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json, sha256_file

RECIPE = "recipe.toml"
PROVENANCE = "provenance.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
CHECKPOINT = "checkpoint.safetensors"
SNAPSHOTS = "snapshots"
RAW = "raw.safetensors"
MODEL = "model.safetensors"
ARTIFACT = "artifact.pgolf"
AUDIT = "audit.json"


class Part(pydantic.BaseModel):
    """A part of a file: what readers of run folders rely on; a number may be whole or not."""

    model_config = pydantic.ConfigDict(strict=True, protected_namespaces=())


class _Score(Part):
    val_bpb: float
    val_loss: float
    targets: float
    bytes: float
    seconds: float | None = None
    chunks: list[float] = []


class _Group(Part):
    bytes: float
    entries: float
    tensors: float


class _Tensor(Part):
    name: str
    group: str
    bytes: float
    bits_per_weight: float
    entries: float
    width: float
    predicted: float | None = None
    measured: float | None = None


class _Pack(Part):
    total_bytes: float
    cap: float
    model_bytes: float
    groups: dict[str, _Group] = {}
    tensors: list[_Tensor] = []
    origin: dict[str, Any] = {}


class _Train(Part):
    steps: float = 0.0
    seconds: float = 0.0


class _Result(Part):
    evaluations: dict[str, _Score]
    pack: _Pack = _Pack(total_bytes=0, cap=0, model_bytes=0)
    train: _Train = _Train()


class Provenance(Part):
    """What readers of ``provenance.json`` rely on."""

    started: str = ""
    command: list[str] = []
    environment: dict[str, Any] = {}
    data: dict[str, Any] = {}
    sessions: list[dict[str, Any]] = []
    shared: list[dict[str, Any]] = []
    ranks: int = 1


class Audit(Part):
    """What readers of ``audit.json`` rely on."""

    ok: bool
    findings: list[dict[str, Any]]
    violated: list[str]
    targets: int
    seed: int


def read_checked(path: Path, kind: type[Part], remedy: str = "restore it from a copy") -> dict[str, Any]:
    """What a JSON file holds; PgolfError where it cannot be read, or lacks what readers rely on."""
    found: dict[str, Any] = read_json(path)
    try:
        kind.model_validate(found)
    except pydantic.ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "no object"
        raise PgolfError(f"{path}: damaged ({where}); {remedy}") from error
    return found


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a run's ``result.json`` holds so far; None where there is none. PgolfError as ``read_checked``."""
    path = folder / RESULT
    return read_checked(path, _Result) if path.is_file() else None


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run: one with a recipe, and a record of how it was made."""
    return (folder / RECIPE).is_file() and (folder / PROVENANCE).is_file()


def is_foreign(folder: Path) -> bool:
    """Whether a folder is a model of the library transformers: one with its configuration, and no run."""
    return (folder / "config.json").is_file() and not is_run(folder)


def artifact_digest(path: Path) -> str:
    """SHA-256 of the file that ``load_weights`` opens; of a foreign folder, of names and digests there."""
    if not is_foreign(path):
        return sha256_file(weights_file(path))
    files = sorted(file for file in path.iterdir() if file.is_file())
    lines = "".join(f"{sha256_file(file)} {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def run_of(source: Path) -> Path | None:
    """The run folder that a path is, or whose file it is; None where it belongs to no run."""
    folder = source if source.is_dir() else source.parent
    return folder if is_run(folder) else None


def weights_file(path: Path) -> Path:
    """The file that ``load_weights`` opens: a run folder's weights, or the file itself; PgolfError where
    there is none.
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


def scored_file(path: Path) -> Path:
    """What a path stands for where a model is used: of a run folder its artifact, before packing its weights.

    PgolfError where there is none.
    """
    artifact = path / ARTIFACT
    return artifact if artifact.is_file() else weights_file(path)


def recorded_data(run: Path) -> Path | None:
    """The data folder that a run folder's ``provenance.json`` names; None where there is none."""
    path = run / PROVENANCE
    made = read_json(path) if path.is_file() else None
    data = made.get("data") if isinstance(made, dict) else None
    folder = data.get("folder") if isinstance(data, dict) else None
    return Path(folder) if isinstance(folder, str) else None


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping, such as a recipe, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
