"""What runs of a study have in common, how one begins with what another has done, and which can start when.

A run goes through stages, and each depends on some sections of its recipe only: training, packing,
evaluations. Runs whose sections are equal up to a stage share it. Training itself has two parts: while the
learning rate is constant, nothing depends on when the warmdown will start, so runs that differ in that have
this part, the *trunk*, in common.

Beginning a run means to put files into its folder as if it had come this far by itself; it then goes on like
any interrupted run and ends with the results that it would have had alone.

A study runs in rounds. In each, every run starts that shares nothing with another waiting one, and one of
those that do share; the others follow in later rounds. If that one fails, the next of them takes its place,
so a failed run costs the others time, never their results.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pgolf.compress.container import encode_artifact, read_artifact
from pgolf.compress.pack import stored_bytes
from pgolf.compress.weights import load_tensors, load_weights, save_tensors, save_weights
from pgolf.errors import PgolfError
from pgolf.optim.averaging import ema_decay
from pgolf.recipe.recipe import Recipe
from pgolf.runs.folder import is_trained, saved_recipe
from pgolf.runtime.files import read_json
from pgolf.runtime.run_files import (
    ARTIFACT,
    CHECKPOINT,
    METRICS,
    MODEL,
    PROVENANCE,
    RAW,
    RECIPE,
    RESULT,
    SNAPSHOTS,
    read_result,
)
from pgolf.runtime.writing import write_bytes, write_json
from pgolf.study.spec import Planned
from pgolf.train.checkpoint import snapshot
from pgolf.train.metrics import read_metrics


def train_key(recipe: Recipe) -> str:
    """Equal for recipes that lead to the same weights, metrics and float scores."""
    tree = _training_part(recipe)
    if recipe.qat.enabled and recipe.qat.grid == "export":
        tree["compress"] = recipe.compress.model_dump(mode="json")
        tree["memory"] = stored_bytes(recipe)
    return json.dumps(tree)


def pack_key(recipe: Recipe) -> str:
    """Equal for recipes that lead to the same packed tensors."""
    sections = recipe.compress, recipe.memory
    return train_key(recipe) + json.dumps([section.model_dump(mode="json") for section in sections])


def trunk_key(recipe: Recipe) -> str | None:
    """Equal for recipes that train alike until the first of them begins its warmdown; None if none can share.

    With a wall-clock limit the warmdown starts when the time says so. Fake quantization and snapshots of SWA
    begin in the warmdown, at learning-rate scales below 1, so they make no difference before it; an EMA runs
    from the start. Where a loop begins at a part of training, or lengths or weight decay follow it, steps
    matter.
    """
    if recipe.train.wallclock_seconds:
        return None
    tree = _training_part(recipe)
    train, loops = recipe.train, {passes for _, passes in recipe.model.loop.stages()}
    stays = len(loops) == 1 and not train.length_schedule and recipe.optim.muon_weight_decay_taper == 1
    warmdown = ("warmdown_steps", "warmdown_fraction", "warmdown_shape", "lr_floor")
    for name in (*warmdown, *(["steps"] if stays else [])):
        del tree["train"][name]
    del tree["qat"]
    decay = ema_decay(recipe.average, recipe.train.steps)
    tree["average"] = decay if recipe.average.kind in ("ema", "swa_of_ema") else None
    return json.dumps(tree)


def branch_step(recipe: Recipe) -> int:
    """Steps at the full learning rate, before the warmdown: the length of the run's trunk."""
    return max(math.floor(recipe.train.steps - recipe.train.warmdown), 0)


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
    given = artifact.tokenizer_digest, artifact.coder, level, artifact.origin, artifact.memory
    content = encode_artifact(artifact.stored, recipe, *given)
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
    """Delete the checkpoints that a run kept for others; PgolfError where that cannot be done."""
    try:
        if (folder / SNAPSHOTS).is_dir():
            shutil.rmtree(folder / SNAPSHOTS)
    except OSError as error:
        raise PgolfError(f"{folder / SNAPSHOTS}: cannot be deleted ({error.strerror or error})") from error


@dataclass
class Progress:
    """How far the runs of a study are, by their names."""

    begun: set[str] = field(default_factory=set)
    """Have a run folder that goes on by itself."""
    trained: set[str] = field(default_factory=set)
    packed: set[str] = field(default_factory=set)
    snapshots: dict[str, set[int]] = field(default_factory=dict)
    """Steps after which a run's checkpoint was kept."""

    @classmethod
    def read(cls, folders: Path, cells: Sequence[Planned]) -> Progress:
        """From the run folders in ``folders``."""
        found = cls()
        for cell in cells:
            folder = folders / cell.name
            if saved_recipe(folder) is None:
                continue
            found.begun.add(cell.name)
            if is_trained(folder) and (folder / RESULT).is_file():
                found.trained.add(cell.name)
                if is_packed(folder, cell.recipe):
                    found.packed.add(cell.name)
            kept = (folder / SNAPSHOTS).glob("step-*.safetensors")
            found.snapshots[cell.name] = {int(path.stem.removeprefix("step-")) for path in kept}
        return found


class Source(NamedTuple):
    """What a run begins with."""

    kind: Literal["trunk", "training", "moment"]
    """First steps, the whole training (with packing, if that is equal), or the weights after some steps."""
    cell: Planned
    step: int | None = None

    def describe(self, name: str) -> str:
        """In a few words, with the other run called ``name``."""
        if self.kind == "training":
            return f"with the training of {name}"
        if self.kind == "trunk":
            return f"from step {self.step} of {name}"
        return f"with the weights of {name} after step {self.step}"


class Start(NamedTuple):
    """A run that can start now; without a source it does all itself, or goes on with what it has."""

    cell: Planned
    source: Source | None
    keep: tuple[int, ...]
    """Steps after which its checkpoint is kept for others."""

    @property
    def trains(self) -> int:
        """Steps that it trains itself, if it has not begun yet."""
        steps = self.cell.recipe.train.steps
        if self.source is None:
            return steps
        return steps - (self.source.step or 0) if self.source.kind == "trunk" else 0


class Shares:
    """The sharing among the cells of a study."""

    def __init__(self, cells: Sequence[Planned]) -> None:
        self.cells = cells
        self._train = {cell.name: train_key(cell.recipe) for cell in cells}
        self._pack = {cell.name: pack_key(cell.recipe) for cell in cells}
        self._trunk = {cell.name: trunk_key(cell.recipe) for cell in cells}

    def next_round(self, pending: Sequence[Planned], progress: Progress) -> tuple[list[Start], list[Planned]]:
        """What can start, in the study's order, and which cells never can.

        Those look at a moment of a run that is over or has failed, and kept no checkpoint there.
        """
        starts, hopeless = [], []
        for cell in pending:
            if cell.name in progress.begun:
                starts.append(Start(cell, None, self._kept_by(cell, pending)))
            elif cell.step is not None:
                ends, kept = self._ends(cell, self.cells), progress.snapshots
                if those := [other for other in ends if cell.step in kept.get(other.name, ())]:
                    starts.append(Start(cell, Source("moment", those[0], cell.step), ()))
                elif not self._ends(cell, pending):
                    hopeless.append(cell)
            elif not self._waits(cell, pending, progress):
                source = self._source(cell, pending, progress)
                starts.append(Start(cell, source, self._kept_by(cell, pending)))
        return starts, hopeless

    def rounds(self, pending: Sequence[Planned], progress: Progress) -> list[list[Start]]:
        """What will start when, if nothing fails."""
        left, found, snapshots = list(pending), [], dict(progress.snapshots)
        state = Progress(set(progress.begun), set(progress.trained), set(progress.packed), snapshots)
        while left:
            starts, hopeless = self.next_round(left, state)
            found.append(starts)
            gone = {start.cell.name for start in starts} | {cell.name for cell in hopeless}
            left = [cell for cell in left if cell.name not in gone]
            for done in (state.begun, state.trained, state.packed):
                done |= gone
            for start in starts:
                snapshots[start.cell.name] = snapshots.get(start.cell.name, set()) | set(start.keep)
        return found

    def _ends(self, cell: Planned, among: Sequence[Planned]) -> list[Planned]:
        """Those that go to the end of the training that ``cell`` has or looks at."""
        return [o for o in among if o.step is None and self._train[o.name] == self._train[cell.name]]

    def _moments(self, cell: Planned, among: Sequence[Planned]) -> set[int]:
        """Steps of its training that others look at."""
        key = self._train[cell.name]
        return {o.step for o in among if o.step is not None and self._train[o.name] == key}

    def _done(self, cell: Planned, progress: Progress) -> tuple[list[Planned], list[Planned]]:
        """Those that have trained what ``cell`` would, and those that have packed it."""
        trained = [other for other in self._ends(cell, self.cells) if other.name in progress.trained]
        alike = [other for other in trained if self._pack[other.name] == self._pack[cell.name]]
        return trained, [other for other in alike if other.name in progress.packed]

    def _waits(self, cell: Planned, pending: Sequence[Planned], progress: Progress) -> bool:
        alike, (trained, packed) = self._ends(cell, pending), self._done(cell, progress)
        if trained:
            same = [other for other in alike if self._pack[other.name] == self._pack[cell.name]]
            return same[0] is not cell and not packed
        # The one that has begun already goes ahead, or else the first.
        if next((other for other in alike if other.name in progress.begun), alike[0]) is not cell:
            return True
        branch, trunk = branch_step(cell.recipe), self._trunk_source(cell, pending, progress)
        if branch == 0 or (trunk is not None and trunk.step == branch):
            return False
        on_trunk = self._on_one_trunk(cell, pending)
        # The first one where several are equally long.
        longest = max(on_trunk, key=lambda other: branch_step(other.recipe), default=cell)
        return longest is not cell

    def _source(self, cell: Planned, pending: Sequence[Planned], progress: Progress) -> Source | None:
        trained, packed = self._done(cell, progress)
        done = packed or trained
        return Source("training", done[0]) if done else self._trunk_source(cell, pending, progress)

    def _trunk_source(self, cell: Planned, pending: Sequence[Planned], progress: Progress) -> Source | None:
        """The latest checkpoint of another run that this one would pass too, before anyone looks at it."""
        branch = branch_step(cell.recipe)
        latest = min([branch, *(step - 1 for step in self._moments(cell, pending))])
        found = [
            Source("trunk", other, step)
            for other in self._on_one_trunk(cell, self.cells)
            for step in progress.snapshots.get(other.name, ())
            if step <= min(latest, branch_step(other.recipe))
        ]
        return max(found, key=lambda source: source.step or 0, default=None)

    def _on_one_trunk(self, cell: Planned, among: Sequence[Planned]) -> list[Planned]:
        key = self._trunk[cell.name]
        return [o for o in among if key is not None and o.step is None and self._trunk[o.name] == key]

    def _kept_by(self, cell: Planned, pending: Sequence[Planned]) -> tuple[int, ...]:
        """The steps after which others want its checkpoint."""
        if cell.step is not None:
            return ()
        others = [other for other in pending if other.name != cell.name]
        alike = self._ends(cell, others)
        branches = {branch_step(o.recipe) for o in self._on_one_trunk(cell, others) if o not in alike}
        inside = {step for step in branches if 0 < step <= branch_step(cell.recipe)}
        return tuple(sorted(self._moments(cell, others) | inside))
