"""How two runs differ: recipe, code, data, and the numbers side by side. Works on unfinished runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
        return asdict(self) | {
            "metrics": [vars(metric) | {"change": metric.change} for metric in self.metrics]
        }


def diff_runs(a: RunRecord, b: RunRecord) -> Diff:
    """Compare two runs."""
    code, data = (
        _differences(*(flattened(run.provenance.get(part) or {}) for run in (a, b)))
        for part in ("environment", "data")
    )
    metrics = [metric for metric in _metrics(a, b) if metric.a is not None or metric.b is not None]
    recipe = _differences(a.recipe, b.recipe)
    return Diff(str(a.folder), str(b.folder), recipe, code, data + _texts(a, b), metrics, _notes(a, b))


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    return [Difference(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def _texts(a: RunRecord, b: RunRecord) -> list[Difference]:
    """Evaluations that both have, but of different texts."""
    found = []
    for name in EVALUATIONS:
        one, other = _text(a, name), _text(b, name)
        if one is not None and other is not None and one != other:
            found.append(Difference(f"text of {name}", one, other))
    return found


def _text(run: RunRecord, name: str) -> Any:
    try:
        return read_ledger(run.folder / f"ledger.{name}.jsonl")[0].get("data")
    except PgolfError:
        return None  # It was not written, or is damaged: then it says nothing about the text.


def _metrics(a: RunRecord, b: RunRecord) -> list[Metric]:
    found = [Metric("steps", a.steps, b.steps)]
    for key, name in (("train_loss", "training loss"), ("val_bpb", "validation BPB")):
        one, other = ({entry["step"]: entry[key] for entry in run.metrics if key in entry} for run in (a, b))
        if common := one.keys() & other.keys():
            last = max(common)
            found.append(Metric(f"{name} at step {last}", float(one[last]), float(other[last])))
    if any(metric.key.startswith("training loss") for metric in found):
        found.append(Metric("tokens per second (median)", _median_rate(a), _median_rate(b)))
    # A validation in the middle of training is no score of the raw weights.
    found += [
        Metric(f"{name} BPB", *(run.score(name) if name in run.evaluations else None for run in (a, b)))
        for name in EVALUATIONS
    ]
    figures = [
        ("bytes with code", "pack", "total_bytes"),
        ("artifact bytes", "pack", "model_bytes"),
        ("cap", "pack", "cap"),
        ("train seconds", "train", "seconds"),
        ("pack seconds", "pack", "seconds"),
    ]
    for name, part, key in figures:
        found.append(Metric(name, *(run.result.get(part, {}).get(key) for run in (a, b))))
    return found


def _median_rate(run: RunRecord) -> float | None:
    rates = [float(entry["tokens_per_second"]) for entry in run.metrics if "tokens_per_second" in entry]
    return statistics.median_high(rates) if rates else None


def _notes(a: RunRecord, b: RunRecord) -> list[str]:
    unfinished = [run for run in (a, b) if run.state != "finished"]
    notes = [f"{run.folder}: {run.state}, {run.steps} steps so far" for run in unfinished]
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
