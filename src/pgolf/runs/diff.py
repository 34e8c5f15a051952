"""How two runs differ: recipe, code, data, and the numbers side by side. Works on unfinished runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS
from pgolf.evaluate.ledger import read_ledger
from pgolf.runs.records import RunRecord, flattened


@dataclass(frozen=True)
class Difference:
    """One thing that two runs have, and not the same."""

    key: str
    a: Any
    b: Any
    """None where a run does not have it."""


@dataclass(frozen=True)
class Metric:
    """A number of two runs."""

    key: str
    a: float | None
    b: float | None

    @property
    def change(self) -> float | None:
        """b - a, if both are there."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class Diff:
    """Everything in which two runs differ."""

    a: str
    b: str
    recipe: list[Difference]
    code: list[Difference]
    """Version and digest of pgolf, versions of what it stands on, hardware."""
    data: list[Difference]
    metrics: list[Metric]
    """Numbers that at least one of the two has, equal or not."""
    notes: list[str]
    """Why numbers may not compare."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; a metric also has its ``change``, b - a."""
        plain = {name: [vars(entry) for entry in getattr(self, name)] for name in ("recipe", "code", "data")}
        metrics = [vars(metric) | {"change": metric.change} for metric in self.metrics]
        return {"a": self.a, "b": self.b, **plain, "metrics": metrics, "notes": self.notes}


def diff_runs(a: RunRecord, b: RunRecord) -> Diff:
    """Compare two runs."""
    return Diff(
        str(a.folder),
        str(b.folder),
        _differences(a.recipe, b.recipe),
        _differences(_part(a, "environment"), _part(b, "environment")),
        _differences(_part(a, "data"), _part(b, "data")) + _texts(a, b),
        [metric for metric in _metrics(a, b) if metric.a is not None or metric.b is not None],
        _notes(a, b),
    )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    keys = [*a, *(key for key in b if key not in a)]
    return [Difference(key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)]


def _part(run: RunRecord, name: str) -> dict[str, Any]:
    found = run.provenance.get(name, {})
    return flattened(found) if isinstance(found, dict) else {}


def _texts(a: RunRecord, b: RunRecord) -> list[Difference]:
    """Evaluations that both have, but of different texts."""
    found = []
    for name in EVALUATIONS:
        one, other = _header(a, name), _header(b, name)
        if one is not None and other is not None and one.get("data") != other.get("data"):
            found.append(Difference(f"text of {name}", one.get("data"), other.get("data")))
    return found


def _header(run: RunRecord, name: str) -> dict[str, Any] | None:
    try:
        return read_ledger(run.folder / f"ledger.{name}.jsonl")[0]
    except PgolfError:
        return None  # It was not written, or is damaged: then it says nothing about the text.


def _metrics(a: RunRecord, b: RunRecord) -> list[Metric]:
    found = [Metric("steps", a.steps, b.steps)]
    common = sorted(
        {entry["step"] for entry in _of(a, "train_loss")} & {e["step"] for e in _of(b, "train_loss")}
    )
    for key, name in (("train_loss", "training loss"), ("val_bpb", "validation BPB")):
        shared = sorted({entry["step"] for entry in _of(a, key)} & {entry["step"] for entry in _of(b, key)})
        if shared:
            found.append(
                Metric(f"{name} at step {shared[-1]}", _at(a, key, shared[-1]), _at(b, key, shared[-1]))
            )
    if common:
        found.append(Metric("tokens per second (median)", _median_rate(a), _median_rate(b)))
    found += [Metric(f"{name} BPB", _score(a, name), _score(b, name)) for name in EVALUATIONS]
    for key, name in (("total_bytes", "bytes with code"), ("model_bytes", "artifact bytes"), ("cap", "cap")):
        found.append(Metric(name, a.result.get("pack", {}).get(key), b.result.get("pack", {}).get(key)))
    for part in ("train", "pack"):
        both = (a.result.get(part, {}).get("seconds"), b.result.get(part, {}).get("seconds"))
        found.append(Metric(f"{part} seconds", *both))
    return found


def _of(run: RunRecord, key: str) -> list[Mapping[str, Any]]:
    return [entry for entry in run.metrics if key in entry]


def _at(run: RunRecord, key: str, step: int) -> float:
    return float(next(entry[key] for entry in run.metrics if key in entry and entry["step"] == step))


def _median_rate(run: RunRecord) -> float | None:
    rates = sorted(float(entry["tokens_per_second"]) for entry in _of(run, "tokens_per_second"))
    return rates[len(rates) // 2] if rates else None


def _score(run: RunRecord, name: str) -> float | None:
    # A validation in the middle of training is no score of the raw weights.
    return run.score(name) if name in run.evaluations else None


def _notes(a: RunRecord, b: RunRecord) -> list[str]:
    notes = [
        f"{run.folder}: {run.state}, {run.steps} steps so far" for run in (a, b) if run.state != "finished"
    ]
    if a.folder.resolve() == b.folder.resolve():
        return ["A and B are the same run", *notes[:1]]
    for name in EVALUATIONS:
        one, other = a.evaluations.get(name), b.evaluations.get(name)
        if one and other and (one["targets"], one["bytes"]) != (other["targets"], other["bytes"]):
            notes.append(
                f"the {name} scores do not compare: {one['targets']:,} targets ({one['bytes']:,} bytes) "
                f"against {other['targets']:,} ({other['bytes']:,})"
            )
    return notes
