"""Run folders as a reader sees them: found, read, filtered, sorted, compared; finished or not."""

from __future__ import annotations

import fnmatch
import operator
import os
import re
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS, SCORES, evaluation_names
from pgolf.evaluate.ledger import read_ledger
from pgolf.recipe.files import nearest
from pgolf.recipe.recipe import load_recipe, recipe_keys
from pgolf.runs.folder import CELL, is_trained
from pgolf.runtime.files import read_json, read_text
from pgolf.runtime.run_files import (
    METRICS,
    PROVENANCE,
    RECIPE,
    Provenance,
    flattened,
    is_run,
    read_checked,
    read_result,
)
from pgolf.train.metrics import read_metrics

FIELDS = ("name", "recipe", "steps", "state", *EVALUATIONS, "bytes", "date")

State = Literal["training", "trained", "packed", "finished"]
Value = str | int | float | bool | None


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says about it."""

    folder: Path
    recipe: Mapping[str, Any]
    """The recipe's keys, dotted, defaults included if this version knows the recipe."""
    provenance: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def steps(self) -> int:
        """Finished optimizer steps."""
        return max((int(entry["step"]) for entry in self.metrics), default=0)

    @property
    def state(self) -> State:
        """How far it is; "training" also where nobody is at work on it any more."""
        if not is_trained(self.folder) and "train" not in self.result:
            return "training"
        if "pack" not in self.result:
            return "trained"
        wanted = evaluation_names(self.recipe.get("memory.enabled") is True)
        scored = all(name in self.evaluations for name in wanted if name in SCORES)
        return "finished" if scored or self.cell.get("status") == "finished" else "packed"

    @property
    def cell(self) -> Mapping[str, Any]:
        """What a study says of it in ``cell.json``; empty for a run that is no cell."""
        path = self.folder / CELL
        found = read_json(path) if path.is_file() else {}
        return found if isinstance(found, dict) else {}

    @property
    def evaluations(self) -> Mapping[str, Any]:
        """Its scores by name, as ``EvalResult.to_json`` gives them."""
        found = self.result.get("evaluations", {})
        return found if isinstance(found, dict) else {}

    @property
    def date(self) -> str:
        """When it was started, in ISO format; empty if that is not recorded."""
        return str(self.provenance.get("started", ""))

    def score(self, name: str) -> float | None:
        """Bits per byte of an evaluation; of the raw weights also the last validation."""
        if name in self.evaluations:
            return float(self.evaluations[name]["val_bpb"])
        validations = [entry for entry in self.metrics if "val_bpb" in entry]
        return float(validations[-1]["val_bpb"]) if name == "raw" and validations else None

    def field(self, key: str) -> Value:
        """One of ``FIELDS``, or a key of the recipe; None if it is not known."""
        if key in EVALUATIONS:
            return self.score(key)
        if key == "recipe":
            return str(self.recipe.get("name", ""))
        if key == "bytes":
            return self.result.get("pack", {}).get("total_bytes")
        if key in FIELDS:
            return getattr(self, key)
        value = self.recipe.get(key)
        return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value

    def to_json(self) -> dict[str, Any]:
        """``FIELDS`` with the folder, as JSON values."""
        return {"folder": str(self.folder)} | {key: self.field(key) for key in FIELDS}


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder; PgolfError where it is none, or one of its files is damaged."""
    if not folder.is_dir():
        raise PgolfError(f"{folder}: no such run folder")
    if not is_run(folder):
        lacking = f"holds no run (no {RECIPE} with a {PROVENANCE})"
        raise PgolfError(f"{folder}: {lacking}; name a folder of `pgolf run`")
    result = read_result(folder) or {}
    made = read_checked(folder / PROVENANCE, Provenance)
    return RunRecord(folder, recipe_keys_of(folder / RECIPE), made, result, read_metrics(folder / METRICS))


def recipe_keys_of(path: Path) -> dict[str, Any]:
    try:
        return flattened(load_recipe(str(path)).model_dump(mode="json"))
    except PgolfError:
        pass  # Of another version of pgolf: its keys are shown as they stand.
    try:
        return flattened(tomllib.loads(read_text(path)))
    except ValueError as error:
        raise PgolfError(f"{path}: damaged ({error}); restore it from a copy") from error


def find_runs(root: Path) -> tuple[list[RunRecord], list[str]]:
    """All runs in a folder (which must be there) or below it, by path, and what is wrong with unreadable
    ones.
    """
    if not root.is_dir():
        raise PgolfError(f"{root}: no such folder; name one that holds runs")
    found, problems = [], []
    for place, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if is_run(Path(place)):
            try:
                found.append(read_run(Path(place)))
            except PgolfError as error:
                problems.append(str(error))
    return found, problems


_CONDITION = re.compile(r"\s*([\w.]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*$", re.DOTALL)
_ORDER: Mapping[str, Callable[[Any, Any], bool]]
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Condition(NamedTuple):
    """What ``--where`` asks for: a field or recipe key, and whether a run meets it."""

    key: str
    holds: Callable[[RunRecord], bool]


def parse_condition(text: str) -> Condition:
    """Read ``KEY=VALUE``, ``KEY!=VALUE``, ``KEY<VALUE`` and so on; PgolfError for others and unknown keys.

    Numbers are compared as such, words match the patterns * and ?; what a run lacks never meets a condition.
    """
    found = _CONDITION.match(text)
    if found is None:
        forms = "KEY=VALUE or with !=, <, <=, > or >=, such as 'ttt<1.8'"
        raise PgolfError(f"--where {text!r}: write it as {forms}")
    key, comparison, value = found.groups()
    check_key(key, "--where")
    wanted, compare = _as_number(value), _ORDER.get(comparison)

    def holds(run: RunRecord) -> bool:
        if (field := run.field(key)) is None:
            return False
        known = _as_number(field)
        numeric = None not in (wanted, known)
        if compare is not None:
            return compare(known, wanted) if numeric else compare(_word(field), value)
        same = known == wanted if numeric else fnmatch.fnmatchcase(_word(field), value)
        return same == (comparison == "=")

    return Condition(key, holds)


def check_key(key: str, option: str) -> None:
    """PgolfError where runs have no such field."""
    if key not in FIELDS and key not in recipe_keys():
        hint = nearest(key, FIELDS) or nearest(key, recipe_keys())
        raise PgolfError(f"{option} {key}: unknown{hint}; use {', '.join(FIELDS)} or a key of the recipe")


def select(
    runs: Sequence[RunRecord], conditions: Sequence[Condition], sort: str | None = None
) -> list[RunRecord]:
    """The runs that meet all conditions, sorted by a known key (falling: ``-KEY``), what lacks it last."""
    kept = [run for run in runs if all(condition.holds(run) for condition in conditions)]
    if sort is None:
        return kept
    key = sort.removeprefix("-")
    check_key(key, "--sort")
    values = [(run.field(key), run) for run in kept]
    known = [(value, run) for value, run in values if value is not None]
    # Values of a key have one type, but for recipes of other versions.
    numeric = all(_as_number(value) is not None for value, _ in known)
    place: Callable[[Any], Any] = _as_number if numeric else _word
    known.sort(key=lambda pair: place(pair[0]), reverse=sort != key)
    return [run for _, run in known] + [run for value, run in values if value is None]


def _as_number(value: Value) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _word(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
        found.append(Difference(EVALUATIONS[name].label, *scores))
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
