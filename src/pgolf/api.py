"""The library: what the commands do, as functions with typed results.

Each is thin: checks, messages and numbers are those of the command of the same name (docs/api.md). Paths are
strings, ``Path`` objects, or what an earlier function returned. Nothing is printed unless ``progress`` is
true; then it goes to standard error. What a caller can get wrong raises ``PgolfError``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pgolf.errors import PgolfError
from pgolf.runtime.wording import in_python

if TYPE_CHECKING:
    from pgolf.audit.report import Report as AuditReport
    from pgolf.compress.report import PackReport
    from pgolf.evaluate.evaluate import EvalResult
    from pgolf.generate.model import Model
    from pgolf.recipe.recipe import Recipe
    from pgolf.study.cells import Cell

Place: TypeAlias = str | os.PathLike[str]
"""A path, or something that has one: a ``TrainedRun``, a ``Model``."""
Overrides: TypeAlias = str | Sequence[str] | Mapping[str, Any]
"""Recipe keys to change: "train.steps=200", several of these, or {"train.steps": 200}, also nested."""


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A finished training. Where a path is wanted, it is the run folder's."""

    folder: Path
    """The run folder: recipe, metrics, provenance, weights."""
    weights: Path
    """The averaged weights in it: what is packed and scored."""
    steps: int
    seconds: float
    """Of training, over all sessions, without validation."""
    val_loss: float
    """Nats per target of ``weights`` in standard windows."""
    val_bpb: float
    """Bits per byte of the same."""
    raw_weights: Path
    """The last weights, before averaging."""
    raw_val_loss: float
    """Nats per target of these."""
    raw_val_bpb: float
    """Bits per byte of the same."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The metrics, step by step: "step" with "train_loss" in nats, or "val_loss" and "val_bpb", ..."""
        from pgolf.runtime.run_files import METRICS
        from pgolf.train.metrics import read_metrics

        return read_metrics(self.folder / METRICS)

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __repr__(self) -> str:
        return f"<pgolf.TrainedRun {self.folder}, {self.steps:,} steps, {self.val_bpb:.4f} bits per byte>"


@dataclass(frozen=True)
class Compressed:
    """What ``compress`` and ``decompress`` did. Where a path is wanted, it is the written file's."""

    file: Path
    """The file that was written."""
    bytes: int
    """Size of the original."""
    compressed_bytes: int
    seconds: float
    """Of coding, without loading the model."""

    @property
    def bits_per_byte(self) -> float:
        """Bits of the compressed file by bytes of the original."""
        return 8 * self.compressed_bytes / max(self.bytes, 1)

    def __fspath__(self) -> str:
        return os.fspath(self.file)


@dataclass(frozen=True, repr=False)
class StudyResult:
    """What became of a study. Where a path is wanted, it is its folder's."""

    folder: Path
    cells: list[Cell]
    """Its runs: ``changes``, ``seed``, ``status``, ``scores`` in bits per byte, ``bytes``, ``error``."""
    statements: list[str]
    """What they show, the most important first."""

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __repr__(self) -> str:
        finished = sum(cell.status == "finished" for cell in self.cells)
        return f"<pgolf.StudyResult {self.folder}, {finished} of {len(self.cells)} runs finished>"


@in_python()
def load(path: Place, tokenizer: Place | None = None) -> Model:
    """Open a model to write text with, on the CPU.

    Args:
        path: artifact, weights file, or run folder: its artifact, before packing its weights.
        tokenizer: its tokenizer's file, where that is neither in the artifact, nor beside the model, nor in
            the data that its run recorded.

    Raises:
        PgolfError: nothing usable is there, the file is damaged, or the tokenizer is not the model's.
    """
    from pgolf.generate.model import Model

    return Model(Path(path), _path(tokenizer))


@in_python()
def load_recipe(name: Place, overrides: Overrides = ()) -> Recipe:
    """A recipe by the name of a shipped one or the path of a TOML file.

    Args:
        name: for example "quickstart", or "my.toml".
        overrides: keys to change, such as {"train.steps": 200}; see ``Overrides``.

    Raises:
        PgolfError: unknown, malformed or contradictory; every problem is listed.
    """
    from pgolf.recipe.recipe import load_recipe

    return load_recipe(os.fspath(name), _settings(overrides))


@in_python()
def train(
    recipe: Place | Recipe,
    out: Place | None = None,
    data: Place | None = None,
    *,
    text: Place | Sequence[Place] = (),
    val_text: Place | Sequence[Place] = (),
    tokenizer: Place | None = None,
    overrides: Overrides = (),
    init: Place | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: bool = False,
) -> TrainedRun:
    """Train a model in the run folder ``out``, as ``pgolf train`` does.

    Args:
        recipe: a shipped recipe's name, a TOML file, or a recipe.
        out: the run folder, runs/NAME by default; new or empty, or with ``resume`` that of a begun run.
        data: prepared folder, or a bare folder of shards; the recipe's built-in corpus by default.
        text: instead of data, text files or folders, of which a data folder is made.
        val_text: the same of validation text; by default a part of the text is held out.
        tokenizer: its file, where the data folder holds none, or for the text.
        overrides: keys to change; see ``Overrides``.
        init: weights to start from.
        resume: go on where the run stopped.
        device: "cpu", "cuda", "cuda:N" or "mps"; CUDA where there is one by default.
        progress: show a bar and validations.

    Raises:
        PgolfError: something in the input is wrong, or the loss became infinite.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is saved, and ``resume`` goes on from it.
    """
    from pgolf.data.corpus import data_given
    from pgolf.recipe import recipe as recipes
    from pgolf.runs.pipeline import train_job
    from pgolf.runtime.device import pick_device

    named = recipe if isinstance(recipe, recipes.Recipe) else recipes.load_recipe(os.fspath(recipe))
    named = named.with_overrides(_settings(overrides))
    folder = Path("runs") / named.name if out is None else Path(out)
    given = data_given(_path(data), _paths(text), _paths(val_text), _path(tokenizer))
    places = given, _path(tokenizer), folder, pick_device(device)
    with _shown(progress):
        done = train_job(named, (), *places, initial=_path(init), resume=resume)
    return TrainedRun(
        folder=folder,
        weights=Path(done["weights"]),
        steps=done["steps"],
        seconds=done["seconds"],
        val_loss=done["val_loss"],
        val_bpb=done["val_bpb"],
        raw_weights=Path(done["raw_weights"]),
        raw_val_loss=done["raw_val_loss"],
        raw_val_bpb=done["raw_val_bpb"],
    )


@in_python()
def pack(
    source: Place,
    out: Place | None = None,
    cap: int | None = None,
    *,
    overrides: Overrides = (),
    data: Place | None = None,
    tokenizer: Place | None = None,
    with_tokenizer: bool = False,
    count_tokenizer: bool = False,
    progress: bool = False,
) -> PackReport:
    """Quantize and code weights to the artifact ``out``, read it back to verify, and count the bytes.

    Args:
        source: run folder or weights file.
        out: the artifact; by default that of the run folder.
        cap: largest total in bytes, code included; the recipe's by default.
        overrides: keys of the compress and memory sections, such as "compress.calibration=self".
        data: training text for the calibration; the run's own by default.
        tokenizer: its file, where the data folder holds none.
        with_tokenizer: put the tokenizer into the artifact, so that it can be used by itself.
        count_tokenizer: the same, and its bytes count towards the cap.
        progress: show what is being done.

    Raises:
        PgolfError: something in the input is wrong, or no artifact fits under the cap.
    """
    from pgolf.runs.pipeline import carry_of, pack_job

    if cap is not None and cap < 1:
        raise PgolfError(f"cap {cap}: must be at least 1 byte")
    given = cap, _settings(overrides), _path(data), _path(tokenizer)
    with _shown(progress):
        return pack_job(Path(source), _path(out), *given, carry_of(with_tokenizer, count_tokenizer))


@in_python()
def evaluate(
    source: Place,
    data: Place | None = None,
    *,
    mode: str | None = None,
    stride: int | None = None,
    limit_targets: int | None = None,
    overrides: Overrides = (),
    tokenizer: Place | None = None,
    ledger: Place | None = None,
    strict: bool = False,
    trust_remote_code: bool = False,
    device: str | None = None,
    progress: bool = False,
) -> EvalResult:
    """Score weights on the validation split of ``data``, in bits per byte, as ``pgolf eval`` does.

    A score of all targets of a run's data, with the run's own settings, is kept in its folder.

    Args:
        source: artifact, weights file, run folder (its artifact, before packing its weights), or folder of a
            model of transformers.
        data: prepared folder, or a bare folder of shards; by default the run's, or the recipe's own corpus.
        mode: "standard", "sliding" or "ttt"; by default ttt where the recipe learns from scored text.
        stride: targets scored per sliding window.
        limit_targets: score only so many targets, the first ones.
        overrides: keys of the evaluate, ttt and memory sections, such as "ttt.epochs=1".
        tokenizer: its file, where the data folder holds none.
        ledger: write what every range of targets cost to this file (JSON lines).
        strict: reveal one target at a time; slow, with the same score.
        trust_remote_code: run code that a folder of a model of transformers brings along.
        device: "cpu", "cuda", "cuda:N" or "mps"; CUDA where there is one by default.
        progress: show a bar.

    Raises:
        PgolfError: something in the input is wrong, such as data of another tokenizer.
    """
    from pgolf.audit.evaluation import eval_any
    from pgolf.runtime.device import pick_device

    for name, value in (("stride", stride), ("limit_targets", limit_targets)):
        if value is not None and value < 1:
            raise PgolfError(f"{name} {value}: must be at least 1 target")
    chosen = _settings(overrides), pick_device(device)
    with _shown(progress):
        return eval_any(
            *(Path(source), _path(data), _path(tokenizer), mode, stride, limit_targets, *chosen),
            trust_remote_code,
            ledger=_path(ledger),
            strict=strict,
        )


@in_python()
def audit(
    source: Place,
    data: Place | None = None,
    *,
    mode: str | None = None,
    scorer: str | None = None,
    seed: int = 0,
    targets: int | None = None,
    limit_seconds: float | None = None,
    overrides: Overrides = (),
    tokenizer: Place | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    progress: bool = False,
) -> AuditReport:
    """Test whether scores are valid, as ``pgolf audit`` does; the report's ``ok`` and ``violated`` say it.

    Args:
        source: run folder, artifact, or folder of a model of transformers; with ``scorer`` any file that the
            plug-in loads.
        data: as for ``evaluate``.
        mode: of pgolf's own scorer: as for ``evaluate``.
        scorer: a plug-in, "MODULE:FACTORY" or "FILE.py:FACTORY"; pgolf's own by default.
        seed: chooses what is changed where.
        targets: take so many, the first ones; a few windows or chunks by default.
        limit_seconds: time that the whole evaluation may take.
        overrides: keys of the evaluate, ttt and memory sections.
        tokenizer: its file, where the data folder holds none.
        trust_remote_code: run code that a folder of a model of transformers brings along.
        device: "cpu", "cuda", "cuda:N" or "mps"; CUDA where there is one by default.
        progress: show what is being done.

    Raises:
        PgolfError: something in the input is wrong. A violation is none: the report has it.
    """
    from pgolf.audit.audit import audit_job
    from pgolf.audit.runs import Settings
    from pgolf.runtime.device import pick_device
    from pgolf.runtime.progress import working

    if targets is not None and targets < 2:
        raise PgolfError(f"targets {targets}: must be at least 2")
    given = scorer, mode, _settings(overrides), pick_device(device)
    with _shown(progress), working("auditing") as note:
        job = audit_job(Path(source), _path(data), _path(tokenizer), *given, trust_remote_code)
        return job.audit(Settings(seed=seed, limit_seconds=limit_seconds), targets, note)


@in_python()
def report(
    source: Place,
    out: Place | None = None,
    *,
    mode: str | None = None,
    targets: int | None = None,
    score: bool = True,
    data: Place | None = None,
    tokenizer: Place | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Path:
    """Write the page about a run or a study, as ``pgolf report`` does; returns its path.

    Args:
        source: folder of a run or of a study.
        out: a .html or .md file; report.html in the folder by default.
        mode: how to score the text for what each target costs; as for ``evaluate``.
        targets: look at so many, the first ones; 32,768 by default.
        score: score text again and write samples; False: only what the folder holds.
        data: the run's own by default.
        tokenizer: its file, where the data folder holds none.
        device: "cpu", "cuda", "cuda:N" or "mps"; CUDA where there is one by default.
        progress: show a bar.

    Raises:
        PgolfError: there is no run or study, or its data is not found or not its own.
    """
    from pgolf.report.job import TARGETS, Wanted, page_of, report_job, write_page
    from pgolf.runtime.device import pick_device
    from pgolf.study.analysis import study_page
    from pgolf.study.cells import CELLS

    if targets is not None and targets < 1:
        raise PgolfError(f"targets {targets}: must be at least 1")
    wanted = Wanted(score, mode, targets or TARGETS, _path(data), _path(tokenizer))
    folder = Path(source)
    page, form = page_of(folder, _path(out), None)
    with _shown(progress):
        if (folder / CELLS).is_dir():
            write_page("study", lambda: study_page(folder), page, form)
        else:
            report_job(folder, page, form, wanted, pick_device(device))
    return page


@in_python()
def study(
    name: Place,
    out: Place | None = None,
    *,
    small: bool = False,
    data: Place | None = None,
    text: Place | Sequence[Place] = (),
    val_text: Place | Sequence[Place] = (),
    tokenizer: Place | None = None,
    device: str | None = None,
    jobs: int | None = None,
    progress: bool = False,
) -> StudyResult:
    """Do all runs of a study that are not done yet, and say what they show, as ``pgolf study`` does.

    Args:
        name: a shipped study, or a TOML file.
        out: its folder; studies/NAME by default.
        small: the study's version for minutes on a CPU.
        data: prepared folder, or a bare folder of shards; the recipes' own corpus by default.
        text, val_text: instead of data, as for ``train``.
        tokenizer: its file, where the data folder holds none, or for the text.
        device: "cpu", "cuda", "cuda:N" or "mps"; CUDA where there is one by default.
        jobs: runs at a time; one per GPU, or one on the CPU, by default.
        progress: show bars and what became of each run.

    Raises:
        PgolfError: something in the input is wrong; a run that fails is none, its cell says why.
        Interrupted: Ctrl-C; the same call goes on.
    """
    from pgolf.data.corpus import data_given
    from pgolf.study.analysis import analyse
    from pgolf.study.cells import read_cells
    from pgolf.study.runner import Session, Workplace, compare, in_places
    from pgolf.study.spec import load_study, usual_folder

    planned = load_study(os.fspath(name), small)
    folder = _path(out) or usual_folder(os.fspath(name), small)
    given = data_given(_path(data), _paths(text), _paths(val_text), _path(tokenizer))
    place = Workplace(folder, given, _path(tokenizer), device)
    with _shown(progress):
        compare(planned, place)
        Session(planned, place, in_places(device, jobs), lambda cell, outcome: None).run()
    cells = read_cells(folder)
    return StudyResult(folder, cells, list(analyse(cells, planned.file.title).statements))


@in_python()
def compress(
    file: Place,
    out: Place,
    model: Place,
    *,
    tokenizer: Place | None = None,
    ttt: bool = False,
    memory: bool = False,
    threads: int = 1,
    progress: bool = False,
) -> Compressed:
    """Compress a file without loss with a model's predictions, on the CPU, as ``pgolf compress`` does.

    Args:
        file: any file; text like the model's training text shrinks most.
        out: the compressed file.
        model: artifact, weights file or run folder.
        tokenizer: as for ``load``.
        ttt: let the model learn from the text as it goes.
        memory: mix counts of the text so far with its predictions.
        threads: of torch, 1 to 255; recorded, since decompressing needs as many.
        progress: show a bar.

    Raises:
        PgolfError: something in the input is wrong.
    """
    from pgolf.codec.job import compress_file
    from pgolf.runtime.progress import counting

    if not 1 <= threads <= 255:
        raise PgolfError(f"threads {threads}: must be 1 to 255")
    places = Path(file), Path(out), Path(model), _path(tokenizer)
    with _shown(progress), counting("compressing") as bar:
        done = compress_file(*places, ttt, threads, bar, memory=memory)
    return Compressed(Path(out), done["bytes"], done["compressed_bytes"], done["seconds"])


@in_python()
def decompress(
    file: Place, out: Place, model: Place, *, tokenizer: Place | None = None, progress: bool = False
) -> Compressed:
    """Restore what ``compress`` made of a file, with the same model; nothing is written unless it is right.

    Raises:
        PgolfError: something in the input is wrong, or was made with another model or on another machine.
    """
    from pgolf.codec.job import decompress_file
    from pgolf.runtime.progress import counting

    with _shown(progress), counting("decompressing") as bar:
        done = decompress_file(Path(file), Path(out), Path(model), _path(tokenizer), bar)
    return Compressed(Path(out), done["bytes"], done["compressed_bytes"], done["seconds"])


@contextlib.contextmanager
def _shown(progress: bool) -> Iterator[None]:
    from pgolf.runtime.progress import quiet

    with contextlib.nullcontext() if progress else quiet():
        yield


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)


def _paths(places: Place | Sequence[Place]) -> list[Path]:
    return [Path(places)] if isinstance(places, (str, os.PathLike)) else [Path(place) for place in places]


def _settings(overrides: Overrides) -> Sequence[str]:
    """Overrides as ``--set`` has them."""
    if isinstance(overrides, str):
        return [overrides]
    if not isinstance(overrides, Mapping):
        return overrides
    from pgolf.runtime.run_files import flattened

    try:
        # What JSON knows but null is written alike in TOML.
        return [f"{key}={json.dumps(value)}" for key, value in flattened(overrides).items()]
    except TypeError as error:
        raise PgolfError(f"overrides: {error}; give numbers, text, or lists of these") from error
