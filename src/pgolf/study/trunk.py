"""What runs of a study have in common, and how one begins with what another has done already.

A run goes through stages, and each depends on some sections of its recipe only: training, packing,
evaluations. Runs whose sections are equal up to a stage share it. Training itself has two parts: while the
learning rate is constant, nothing depends on when the warmdown will start, so runs that differ in that have
this part, the *trunk*, in common.

Beginning a run means to put files into its folder as if it had come this far by itself; it then goes on like
any interrupted run and ends with the results that it would have had alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pgolf.compress.container import encode_artifact, read_artifact
from pgolf.compress.weights import load_tensors, load_weights, save_tensors, save_weights
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe
from pgolf.runs.folder import saved_recipe
from pgolf.runtime.files import read_json
from pgolf.runtime.run_files import ARTIFACT, METRICS, MODEL, PROVENANCE, RAW, RECIPE, RESULT, read_result
from pgolf.runtime.writing import write_bytes, write_json
from pgolf.train.checkpoint import CHECKPOINT, SNAPSHOTS, snapshot
from pgolf.train.metrics import read_metrics


def train_key(recipe: Recipe) -> str:
    """Equal for recipes that lead to the same weights, metrics and float scores."""
    tree = _training_part(recipe)
    if recipe.qat.enabled and recipe.qat.grid == "export":
        tree["compress"] = recipe.compress.model_dump(mode="json")
    return json.dumps(tree)


def pack_key(recipe: Recipe) -> str:
    """Equal for recipes that lead to the same packed tensors."""
    return train_key(recipe) + json.dumps(recipe.compress.model_dump(mode="json"))


def trunk_key(recipe: Recipe) -> str | None:
    """Equal for recipes that train alike until the first of them begins its warmdown; None if none can share.

    With a wall-clock limit the warmdown starts when the time says so. Fake quantization and snapshots of SWA
    begin in the warmdown, at learning-rate scales below 1, so they make no difference before it; an EMA runs
    from the start.
    """
    if recipe.train.wallclock_seconds:
        return None
    tree = _training_part(recipe)
    for name in ("steps", "warmdown_steps", "warmdown_shape"):
        del tree["train"][name]
    del tree["qat"]
    tree["average"] = recipe.average.decay if recipe.average.kind in ("ema", "swa_of_ema") else None
    return json.dumps(tree)


def branch_step(recipe: Recipe) -> int:
    """Steps at the full learning rate, before the warmdown: the length of the run's trunk."""
    return max(recipe.train.steps - recipe.train.warmdown_steps, 0)


def _training_part(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json", include={"data", "model", "train", "optim", "average", "qat"})
    # Validation during training, and of the averaged weights, depends on these.
    tree["validation"] = [recipe.evaluation_length, recipe.evaluate.batch]
    return tree


def clear_half_begun(folder: Path) -> None:
    """Remove what a beginning that was cut off has left; a folder with a recipe is whole and stays."""
    if saved_recipe(folder) is None:
        for name in (CHECKPOINT, METRICS, PROVENANCE, RAW, MODEL, RESULT, ARTIFACT):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)


def begin_on_trunk(source: Path, step: int, folder: Path, recipe: Recipe) -> None:
    """Let training start after ``step`` steps of the run in ``source``, which kept a checkpoint there."""
    tensors, metadata = load_tensors(snapshot(source, step))
    save_tensors(folder / CHECKPOINT, tensors, metadata | {"recipe": recipe.model_dump(mode="json")})
    _begin(source, folder, recipe, {"training": f"steps 1 to {step}"}, step)


def begin_at_step(source: Path, step: int, folder: Path, recipe: Recipe) -> None:
    """Take the weights of the run in ``source`` as if its training had ended after ``step`` steps."""
    path = snapshot(source, step)
    averaged = load_weights(path)
    tensors, metadata = load_tensors(path)
    raw = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    save_weights(folder / RAW, raw, recipe, averaged.tokenizer_digest, averaged.grid)
    save_weights(folder / MODEL, averaged.state, recipe, averaged.tokenizer_digest, averaged.grid)
    trained = {"steps": step, "seconds": metadata["clock"]["seconds"]}
    write_json(folder / RESULT, {"recipe": recipe.name, "evaluations": {}, "train": trained})
    _begin(source, folder, recipe, {"training": f"steps 1 to {step}"}, step)


def begin_trained(source: Path, step: int, folder: Path, recipe: Recipe) -> None:
    """Take over the training of the run in ``source`` and, if it packed in the same way, its packed weights.

    The files get the new recipe. Scores that depend on nothing else are taken over too; their ledgers stay in
    ``source``, since they name the files there. ``step`` is not asked for: all steps are shared.
    """
    done, source_recipe = read_result(source), saved_recipe(source)
    assert done is not None and source_recipe is not None, "a trained run has results and a recipe"
    for name in (RAW, MODEL):
        tensors, metadata = load_tensors(source / name)
        save_tensors(folder / name, tensors, metadata | {"recipe": recipe.model_dump(mode="json")})
    result: dict[str, Any] = {key: done[key] for key in ("recipe", "train") if key in done}
    shared, scores = {"training": "all steps"}, ["raw", "float"]
    packed = _relabelled(source, recipe, done["pack"]) if is_packed(source, recipe) else None
    if packed is not None:
        content, result["pack"] = packed
        write_bytes(folder / ARTIFACT, content)
        shared["packing"] = "all"
        scores += ["packed", "sliding"] if source_recipe.evaluate == recipe.evaluate else ["packed"]
    found = done["evaluations"]
    result["evaluations"] = {name: found[name] for name in scores if name in found}
    shared["scores"] = ", ".join(result["evaluations"])
    write_json(folder / RESULT, result)
    _begin(source, folder, recipe, shared, None)


def is_packed(folder: Path, recipe: Recipe) -> bool:
    """Whether the run in ``folder`` has finished packing as ``recipe`` asks for it."""
    own = saved_recipe(folder)
    if own is None or pack_key(own) != pack_key(recipe) or not (folder / ARTIFACT).is_file():
        return False
    return "pack" in (read_result(folder) or {})


def _relabelled(source: Path, recipe: Recipe, report: dict[str, Any]) -> tuple[bytes, dict[str, Any]] | None:
    """The artifact with another recipe in its header, and its report; None if the cap forbids it."""
    artifact, level = read_artifact(source / ARTIFACT), int(report["level"])
    given = artifact.stored, recipe, artifact.tokenizer_digest, artifact.coder, level, artifact.origin
    content = encode_artifact(*given)
    total = len(content) + int(report["code_bytes"])
    sizes = {"total_bytes": total, "model_bytes": len(content)}
    return (content, report | sizes) if total <= recipe.compress.cap else None


def _begin(source: Path, folder: Path, recipe: Recipe, shared: dict[str, str], step: int | None) -> None:
    entries = [entry for entry in read_metrics(source / METRICS) if step is None or entry["step"] <= step]
    write_bytes(folder / METRICS, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
    made = read_json(source / PROVENANCE)
    notes = [*made.get("shared", []), {"with": source.name, **shared}]
    write_json(folder / PROVENANCE, made | {"shared": notes})
    # Written last: a folder with a recipe is a run that can be continued.
    write_bytes(folder / RECIPE, recipe.to_toml().encode())


def remove_snapshots(folder: Path) -> None:
    """Delete the checkpoints that a run kept for others.

    Raises:
        PgolfError: they cannot be deleted.
    """
    try:
        if (folder / SNAPSHOTS).is_dir():
            shutil.rmtree(folder / SNAPSHOTS)
    except OSError as error:
        raise PgolfError(f"{folder / SNAPSHOTS}: cannot be deleted ({error.strerror or error})") from error
