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

# (name, part of the result, key)
_FIGURES = (
    *(("bytes with code", "pack", "total_bytes"), ("artifact bytes", "pack", "model_bytes")),
    *(("cap", "pack", "cap"), ("train seconds", "train", "seconds"), ("pack seconds", "pack", "seconds")),
)


@dataclass(frozen=True)
class Difference:
    """One thing of two runs; None where a run does not have it."""

    key: str
    a: Any
    b: Any

    @property
    def change(self) -> Any:
        """Of two numbers b - a, if both are there."""
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
    metrics: list[Difference]
    """Numbers that at least one of the two has, equal or not."""
    notes: list[str]
    """Why numbers may not compare."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; a metric also has its ``change``, b - a."""
        metrics = [vars(metric) | {"change": metric.change} for metric in self.metrics]
        return asdict(self) | {"metrics": metrics}


def diff_runs(a: RunRecord, b: RunRecord) -> Diff:
    """Compare two runs."""
    names = ("environment", "data")
    code, data = (
        _differences(*(flattened(run.provenance.get(name) or {}) for run in (a, b))) for name in names
    )
    # Evaluations that both have, but of different texts.
    texts = [Difference(f"text of {name}", _text(a, name), _text(b, name)) for name in EVALUATIONS]
    data += [text for text in texts if None not in (text.a, text.b) and text.a != text.b]
    metrics = [metric for metric in _metrics(a, b) if metric.a is not None or metric.b is not None]
    recipe = _differences(a.recipe, b.recipe)
    return Diff(str(a.folder), str(b.folder), recipe, code, data, metrics, _notes(a, b))


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    return [Difference(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def _text(run: RunRecord, name: str) -> Any:
    try:
        return read_ledger(run.folder / f"ledger.{name}.jsonl")[0].get("data")
    except PgolfError:
        return None  # It was not written, or is damaged: then it says nothing about the text.


def _metrics(a: RunRecord, b: RunRecord) -> list[Difference]:
    found = [Difference("steps", a.steps, b.steps)]
    for key, name in (("train_loss", "training loss"), ("val_bpb", "validation BPB")):
        one, other = ({entry["step"]: entry[key] for entry in run.metrics if key in entry} for run in (a, b))
        if common := one.keys() & other.keys():
            last = max(common)
            found.append(Difference(f"{name} at step {last}", float(one[last]), float(other[last])))
    if any(metric.key.startswith("training loss") for metric in found):
        found.append(Difference("tokens per second (median)", _median_rate(a), _median_rate(b)))
    for name in EVALUATIONS:
        # A validation in the middle of training is no score of the raw weights.
        scores = (run.score(name) if name in run.evaluations else None for run in (a, b))
        found.append(Difference(f"{name} BPB", *scores))
    for name, part, key in _FIGURES:
        found.append(Difference(name, *(run.result.get(part, {}).get(key) for run in (a, b))))
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
            first = f"{one['targets']:,} targets ({one['bytes']:,} bytes)"
            second = f"{other['targets']:,} ({other['bytes']:,})"
            notes.append(f"the {name} scores do not compare: {first} against {second}")
    return notes
