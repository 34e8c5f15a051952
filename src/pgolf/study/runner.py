"""Runs the cells of a study: what is finished is skipped, what is shared done once; failures stop nothing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pgolf.data.corpus import Texts, built_in_corpus
from pgolf.data.dataset import open_dataset
from pgolf.errors import Interrupted, PgolfError
from pgolf.launch.jobs import Outcome, Place, RunJob, local_places, run_queue
from pgolf.launch.slurm import Resources, is_queued, submit
from pgolf.recipe.sections import DataSection
from pgolf.report.job import write_report
from pgolf.runs.costs import check_size
from pgolf.runs.folder import CELL, LAUNCH, saved_recipe
from pgolf.runs.pipeline import job_dataset, run_all
from pgolf.runtime.device import pick_device
from pgolf.runtime.exclusive import working_in
from pgolf.runtime.files import read_json
from pgolf.runtime.locks import LOCK, held
from pgolf.runtime.paths import write_error
from pgolf.runtime.progress import stderr, tell
from pgolf.runtime.run_files import PROVENANCE
from pgolf.runtime.writing import remove_file, write_bytes, write_json
from pgolf.study import sharing
from pgolf.study.cells import CELLS, STUDY, Status
from pgolf.study.spec import Planned, Study

_SUBMITTED = "submitted.json"
_BEGIN = {"training": sharing.begin_trained, "trunk": sharing.begin_on_trunk, "moment": sharing.begin_at_step}
# Does some runs and tells what became of each as soon as it is over. False: they go on elsewhere, without us.
DataOf = tuple[int, DataSection]
Launcher = Callable[[Sequence[RunJob], Callable[[Outcome], None]], bool]


class Workplace(NamedTuple):
    """A study's folder, and what its runs are given."""

    out: Path
    data: Path | Texts | None = None
    """Data folder; or texts, of which each cell's recipe makes its own, with its pieces and its transform."""
    tokenizer: Path | None = None
    device: str | None = None

    def folder(self, cell: Planned) -> Path:
        """A cell's run folder."""
        return self.out / CELLS / cell.name

    def job(self, study: Study, cell: Planned, keep: tuple[int, ...] = ()) -> RunJob:
        """A cell's run."""
        data, tokenizer = self.data, self.tokenizer
        if isinstance(data, Texts):
            data, tokenizer = data.folder(cell.recipe.model.vocab_size, cell.recipe.data.transform), None
        data, tokenizer = (None if path is None else path.absolute() for path in (data, tokenizer))
        out, rest = self.folder(cell).absolute(), (self.device, Path.cwd(), study.file.scores, keep)
        return RunJob(cell.recipe, "run", out, data, tokenizer, *rest, audit=False)


@dataclass(frozen=True)
class Comparison:
    """A study beside what its folder holds already; names of cells."""

    finished: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """In the folder and no longer in the study; their run folders stay, but are no cells any more."""

    def __str__(self) -> str:
        gone = "no longer in the study (left out, their folders stay)"
        words = {"finished": self.finished, "begun": self.begun, "new": self.new, gone: self.gone}
        return ", ".join(f"{len(names)} {what}" for what, names in words.items() if names)


def compare(study: Study, place: Workplace, make: bool = True) -> Comparison:
    """What a run of the study would find; writes nothing but data that the runs themselves would make.

    Without ``make`` it writes nothing, and what of these data is not there yet is not compared.

    PgolfError where the data are missing or wrong for a cell, or the folder holds something else than this
    study, or cells of the same name with other recipes or other data.
    """
    begun = place.out.is_dir() and any(not path.name.startswith(LOCK) for path in place.out.iterdir())
    if begun and not (place.out / STUDY).is_file():
        raise PgolfError(f"{place.out}: is not empty and holds no study; choose another --out")
    # Here and not in the runs: mistakes show at once, and no two runs prepare the same corpus.
    prints: dict[DataOf, str | None] = {}
    for cell in study.cells:
        check_size(cell.recipe)
        if _corpus(cell) not in prints:
            prints[_corpus(cell)] = _fingerprint(study, place, cell, make)
    found, changed, moved = Comparison(), [], []
    for cell in study.cells:
        folder = place.folder(cell)
        previous = saved_recipe(folder)
        if previous is None:
            found.new.append(cell.name)
        elif previous != cell.recipe:
            changed.append(cell.name)
        elif prints[_corpus(cell)] not in (None, read_json(folder / PROVENANCE)["data"]["fingerprint"]):
            moved.append(cell.name)
        else:
            (found.finished if place.job(study, cell).is_finished() else found.begun).append(cell.name)
    there = {path.parent.name for path in (place.out / CELLS).glob(f"*/{CELL}")}
    found.gone.extend(sorted(there - {cell.name for cell in study.cells}))
    for names, what in ((changed, "other settings than the study has now"), (moved, "other data")):
        if names:
            kept = f"; {found}" if str(found) else ""
            raise PgolfError(
                f"{place.out}: {len(names)} of its cells ran with {what}: {', '.join(names)}{kept}; choose "
                f"another --out, or delete their folders in {place.out / CELLS}"
            )
    return found


def _fingerprint(study: Study, place: Workplace, cell: Planned, make: bool) -> str | None:
    """Of a cell's data; None where its job has yet to make them."""
    recipe = cell.recipe
    given = isinstance(place.data, Path) or (place.data is None and recipe.data.corpus == "none")
    if make or given:
        return job_dataset(recipe, place.data, place.tokenizer).fingerprint()
    own = built_in_corpus(recipe.model.vocab_size, recipe.data.transform)
    folder = place.job(study, cell).data or own
    return open_dataset(folder).fingerprint() if folder.is_dir() else None


def _corpus(cell: Planned) -> DataOf:
    return cell.recipe.model.vocab_size, cell.recipe.data


class Session(NamedTuple):
    """One call that works on a study."""

    study: Study
    place: Workplace
    launcher: Launcher
    told: Callable[[Planned, Outcome], None]
    """Hears what became of each cell when it is over."""
    is_away: Callable[[RunJob], bool] = lambda job: False
    """Whether a run is being done elsewhere already; it is left alone then."""

    def run(self) -> None:
        """Do every cell that is not finished; cells that failed before are tried again.

        Interrupted where asked to stop: what is finished stays, and the same call goes on. PgolfError: see
        ``compare``, or another process works on this study.
        """
        study, place = self.study, self.place
        before = compare(study, place)
        with held(place.out / LOCK, "study", tell):
            for name in before.gone:
                remove_file(place.out / CELLS / name / CELL)
            write_bytes(place.out / STUDY, study.to_toml().encode())
            for cell in study.cells:
                self._mark(cell, "finished" if cell.name in before.finished else "waiting")
            self._rounds([cell for cell in study.cells if cell.name not in before.finished])
            if all(place.job(study, cell).is_finished() for cell in study.cells):
                for cell in study.cells:
                    sharing.remove_snapshots(place.folder(cell))

    def _rounds(self, pending: list[Planned]) -> None:
        """Round after round, until nothing is left that has not been tried."""
        shares = sharing.Shares(self.study.cells)
        while pending:
            progress = sharing.Progress.read(self.place.out / CELLS, self.study.cells)
            starts, hopeless = shares.next_round(pending, progress)
            for cell in hopeless:
                why = f"the run kept no checkpoint after step {cell.step}"
                self._over(_failure(self.place.job(self.study, cell), why))
            here = [start for start in starts if not self.is_away(self.place.job(self.study, start.cell))]
            jobs = [job for start in here if (job := self._begin(start)) is not None]
            if not self.launcher(jobs, self._over):
                return
            gone = {cell.name for cell in hopeless} | {start.cell.name for start in starts}
            pending = [cell for cell in pending if cell.name not in gone]

    def _begin(self, start: sharing.Start) -> RunJob | None:
        job = self.place.job(self.study, start.cell, start.keep)
        try:
            with working_in(job.out):
                sharing.clear_half_begun(job.out)
                if start.source is not None:
                    source = self.place.folder(start.source.cell)
                    _BEGIN[start.source.kind](source, start.source.step or 0, job.out, job.recipe)
                    self._mark(start.cell, "waiting")
        except (PgolfError, OSError) as error:
            self._over(_failure(job, str(error)))
            return None
        return job

    def _over(self, outcome: Outcome) -> None:
        cell = next(cell for cell in self.study.cells if cell.name == outcome.name)
        if outcome.state in ("done", "done before"):
            self._mark(cell, "finished")
        elif outcome.state == "failed":
            self._mark(cell, "failed", outcome.message)
        self.told(cell, outcome)

    def _mark(self, cell: Planned, status: Status, error: str | None = None) -> None:
        """Write ``cell.json``."""
        folder, place = self.place.folder(cell), self.study.cells.index(cell)
        about: dict[str, Any] = {"place": place, "changes": dict(cell.changes), "seed": cell.seed}
        about |= {"status": status, "error": error}
        if (folder / PROVENANCE).is_file():
            about["shared"] = read_json(folder / PROVENANCE).get("shared", [])
        write_json(folder / CELL, about)


def in_places(device: str | None, jobs: int | None) -> Launcher:
    """So many runs at a time on this machine; by default one on each GPU, or one on the CPU."""
    chosen = pick_device(device)
    if jobs in (None, 1) and chosen.type == "cpu":
        return in_this_process(chosen)
    # Also one run at a time on a GPU: compiled models of many kinds do not belong into one process.
    return in_processes(local_places(device, jobs))


def in_this_process(device: torch.device) -> Launcher:
    """One run after the other, without the seconds that a new process takes to start."""

    def launch(jobs: Sequence[RunJob], ended: Callable[[Outcome], None]) -> bool:
        for job in jobs:
            started = time.monotonic()
            quiet, stderr.quiet = stderr.quiet, not stderr.is_terminal
            try:
                given = job.recipe, job.data, job.tokenizer, job.out, device
                run_all(*given, scores=job.scores, keep=job.keep, report=write_report)
            except Interrupted:
                raise Interrupted("stopped; the same command goes on") from None
            except PgolfError as error:
                ended(_failure(job, str(error)))
            except Exception as error:  # Whatever it is (memory, a bug), the other runs are worth doing.
                ended(_failure(job, f"{type(error).__name__}: {error}", traceback.format_exc()))
            else:
                seconds = round(time.monotonic() - started, 1)
                ended(Outcome(job.name, "done", seconds, str(job.out), str(job.log())))
            finally:
                stderr.quiet = quiet
        return True

    return launch


def in_processes(places: Sequence[Place]) -> Launcher:
    """As many runs at a time as there are places, each in a process of its own."""

    def launch(jobs: Sequence[RunJob], ended: Callable[[Outcome], None]) -> bool:
        outcomes = run_queue(jobs, places, lambda line: None, ended)
        if any(outcome.state in ("interrupted", "not started") for outcome in outcomes):
            raise Interrupted("stopped; the same command goes on")
        return True

    return launch


def as_cluster_jobs(resources: Resources, executor: str) -> Launcher:
    """Each run as a job of its own; says its number, and that of a job that ended before the run was done."""

    def launch(jobs: Sequence[RunJob], ended: Callable[[Outcome], None]) -> bool:
        for job in jobs:
            before = _submitted(job)
            number = submit([job], resources, executor)[0]["id"]
            write_json(job.out / LAUNCH / _SUBMITTED, {"id": number})
            why = f"; job {before} ended before it was done, see {job.log()}" if before else ""
            tell(f"{job.name}: submitted as job {number}{why}")
        return False

    return launch


def is_in_the_queue(job: RunJob, executor: str) -> bool:
    """Whether a job of the cluster waits for or works on this run; says which."""
    number = _submitted(job)
    if queued := bool(number) and is_queued(number, executor):
        tell(f"{job.name}: job {number} is in the queue")
    return queued


def _submitted(job: RunJob) -> str:
    note = job.out / LAUNCH / _SUBMITTED
    return str(read_json(note)["id"]) if note.is_file() else ""


def _failure(job: RunJob, message: str, details: str = "") -> Outcome:
    line = " ".join(message.split()) or "no reason given"
    try:
        job.log().parent.mkdir(parents=True, exist_ok=True)
        with job.log().open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{details}pgolf: error: {line}\n")
    except OSError as error:
        raise write_error(job.log(), error) from error
    return Outcome(job.name, "failed", 0.0, str(job.out), str(job.log()), line)
