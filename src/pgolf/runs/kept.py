"""What is made of a finished run later: it finds the run's data, and is kept in the run's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.data.dataset import TOKENIZER, Dataset, find_tokenizer
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS
from pgolf.runtime.exclusive import working_in
from pgolf.runtime.files import read_json, sha256_file
from pgolf.runtime.run_files import ARTIFACT, AUDIT, PROVENANCE, RESULT, read_result, recorded_data, run_of
from pgolf.runtime.writing import write_bytes, write_json

if TYPE_CHECKING:
    from pgolf.compress.report import PackReport
    from pgolf.compress.weights import Weights
    from pgolf.evaluate.evaluate import EvalResult
    from pgolf.recipe.recipe import Recipe


def own_data(
    source: Path, recipe: Recipe, data: Path | None, tokenizer: Path | None
) -> tuple[Path | None, Path | None]:
    """The given data folder, else that of the run which ``source`` is or belongs to; and the tokenizer.

    The folder is None where only the recipe's built-in corpus is left. PgolfError where the data is gone.
    """
    run = source if source.is_dir() else source.parent
    folder = recorded_data(run) if data is None else data
    if data is None and folder is not None and not folder.is_dir():
        if recipe.data.corpus == "none":
            raise PgolfError(f"{folder}: the data of {run} is not there; pass --data DIR")
        folder = None
    return folder, tokenizer if folder is None else own_tokenizer(run, folder, tokenizer)


def own_tokenizer(run: Path, data: Path, tokenizer: Path | None) -> Path | None:
    """The given tokenizer, else the one that a run keeps, where its data folder holds none."""
    kept = run / TOKENIZER
    lacking = tokenizer is None and data.is_dir() and find_tokenizer(data) is None
    return kept if lacking and kept.is_file() else tokenizer


def keeper_of(weights: Weights, recipe: Recipe, dataset: Dataset) -> tuple[Path | None, str]:
    """The run whose weights, settings and data these are; else None and, of a run's file, what differs."""
    from pgolf.evaluate.build import without_memory

    run = run_of(weights.source)
    if run is None:
        return None, ""
    if recipe not in (weights.recipe, without_memory(weights.recipe)):
        return None, f"not in {run}: other settings than the run's"
    made, recorded = read_json(run / PROVENANCE).get("data", {}), recorded_data(run)
    same_place = recorded is not None and recorded.is_dir() and recorded.samefile(dataset.folder)
    if not same_place or made.get("fingerprint") != dataset.fingerprint():
        return None, f"not in {run}: other data than the run's"
    return run, ""


def keep_score(run: Path, weights: Weights, recipe: Recipe, scored: EvalResult) -> str:
    """Put a score of all targets into the run's folder, with its ledger: where it is, or why it is not."""
    from pgolf.evaluate.build import uses_memory

    which = weights.source.name, scored.mode, uses_memory(recipe, scored.mode)
    for entry in EVALUATIONS.values():
        if (entry.file, entry.mode, entry.memory) == which:
            try:
                with _result(run) as result:
                    write_bytes(run / entry.ledger, scored.ledger.content())
                    result["evaluations"][entry.name] = scored.to_json()
            except PgolfError as error:
                return f"not in {run}: {error}"
            return f"in {run / RESULT} and {entry.ledger}"
    return f"not in {run}: it keeps such scores of its artifact; pack it first"


def keep_audit(run: Path, found: Mapping[str, Any]) -> str:
    """Put an audit, as JSON values, into the run's folder: where it is, or why it is not."""
    try:
        with working_in(run):
            write_json(run / AUDIT, found)
    except PgolfError as error:
        return f"not in {run}: {error}"
    return f"in {run / AUDIT}"


def keep_pack(run: Path, report: PackReport, seconds: float, before: str) -> None:
    """Note how the run's artifact was packed; what was made of another one, of digest ``before``, goes."""
    with _result(run) as result:
        result["pack"] = report.to_json() | {"seconds": seconds}
        if before != sha256_file(run / ARTIFACT):
            for entry in (entry for entry in EVALUATIONS.values() if entry.file == ARTIFACT):
                result["evaluations"].pop(entry.name, None)
                (run / entry.ledger).unlink(missing_ok=True)
            (run / AUDIT).unlink(missing_ok=True)


@contextlib.contextmanager
def _result(run: Path) -> Iterator[dict[str, Any]]:
    """What ``result.json`` holds, written again afterwards."""
    with working_in(run):
        result: dict[str, Any] = read_result(run) or {"evaluations": {}}
        yield result
        write_json(run / RESULT, result)
