"""Which runs of a study can start now, and with what others have done already.

A study runs in rounds. In each, every run starts that shares nothing with another waiting one, and one of
those that do share; the others follow in later rounds. If that one fails, the next of them takes its place,
so a failed run costs the others time, never their results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pgolf.runs.folder import is_trained, saved_recipe
from pgolf.runtime.run_files import RESULT
from pgolf.study.spec import Planned
from pgolf.study.trunk import branch_step, is_packed, pack_key, train_key, trunk_key
from pgolf.train.checkpoint import SNAPSHOTS


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
            steps = {
                int(path.stem.removeprefix("step-"))
                for path in (folder / SNAPSHOTS).glob("step-*.safetensors")
            }
            found.snapshots[cell.name] = steps
        return found


@dataclass(frozen=True)
class Source:
    """What a run begins with."""

    kind: Literal["trunk", "training", "moment"]
    """The first steps, the whole training (and packing, if that is equal), or the weights after some steps.
    """
    cell: Planned
    step: int | None = None

    def describe(self, name: str) -> str:
        """In a few words, with the other run called ``name``."""
        return {
            "trunk": f"from step {self.step} of {name}",
            "training": f"with the training of {name}",
            "moment": f"with the weights of {name} after step {self.step}",
        }[self.kind]


@dataclass(frozen=True)
class Start:
    """A run that can start now."""

    cell: Planned
    source: Source | None
    """None: it does everything itself, or goes on with what it has."""
    keep: tuple[int, ...]
    """Steps after which its checkpoint is kept for others."""

    @property
    def trains(self) -> int:
        """Steps that it trains itself, if it has not begun yet."""
        if self.source is None:
            return self.cell.recipe.train.steps
        return self.cell.recipe.train.steps - (self.source.step or 0) if self.source.kind == "trunk" else 0


class Shares:
    """The sharing among the cells of a study."""

    def __init__(self, cells: Sequence[Planned]) -> None:
        self.cells = cells
        self._train = {cell.name: train_key(cell.recipe) for cell in cells}
        self._pack = {cell.name: pack_key(cell.recipe) for cell in cells}
        self._trunk = {cell.name: trunk_key(cell.recipe) for cell in cells}

    def next_round(self, pending: Sequence[Planned], progress: Progress) -> tuple[list[Start], list[Planned]]:
        """What can start, in the study's order, and which cells can never start: those that look at a moment
        of a run that is over or has failed, and kept no checkpoint there.
        """
        starts, hopeless = [], []
        for cell in pending:
            if cell.name in progress.begun:
                starts.append(Start(cell, None, self._kept_by(cell, pending)))
            elif cell.step is not None:
                source = self._moment(cell, progress)
                if source is not None:
                    starts.append(Start(cell, source, ()))
                elif not any(self._trains_alike(cell, other) for other in pending):
                    hopeless.append(cell)
            elif not self._waits(cell, pending, progress):
                starts.append(
                    Start(cell, self._source(cell, pending, progress), self._kept_by(cell, pending))
                )
        return starts, hopeless

    def rounds(self, pending: Sequence[Planned], progress: Progress) -> list[list[Start]]:
        """What will start when, if nothing fails."""
        left, found = list(pending), []
        state = Progress(
            set(progress.begun), set(progress.trained), set(progress.packed), dict(progress.snapshots)
        )
        while left:
            starts, hopeless = self.next_round(left, state)
            found.append(starts)
            gone = {start.cell.name for start in starts} | {cell.name for cell in hopeless}
            left = [cell for cell in left if cell.name not in gone]
            for names in (state.begun, state.trained, state.packed):
                names |= gone
            for start in starts:
                state.snapshots[start.cell.name] = state.snapshots.get(start.cell.name, set()) | set(
                    start.keep
                )
        return found

    def _trains_alike(self, cell: Planned, other: Planned) -> bool:
        """Whether ``other`` goes to the end of the training that ``cell`` has or looks at."""
        return other.step is None and self._train[other.name] == self._train[cell.name]

    def _moment(self, cell: Planned, progress: Progress) -> Source | None:
        for other in self.cells:
            if self._trains_alike(cell, other) and cell.step in progress.snapshots.get(other.name, ()):
                return Source("moment", other, cell.step)
        return None

    def _waits(self, cell: Planned, pending: Sequence[Planned], progress: Progress) -> bool:
        alike = [other for other in pending if self._trains_alike(cell, other)]
        if any(self._trains_alike(cell, other) and other.name in progress.trained for other in self.cells):
            same = [other for other in alike if self._pack[other.name] == self._pack[cell.name]]
            return same[0] is not cell and not self._packed_like(cell, progress)
        if _first(alike, progress) is not cell:
            return True
        trunk = self._trunk_source(cell, pending, progress)
        if trunk is not None and trunk.step == branch_step(cell.recipe):
            return False
        longest = self._longest(cell, pending)
        return longest is not cell and branch_step(cell.recipe) > 0

    def _source(self, cell: Planned, pending: Sequence[Planned], progress: Progress) -> Source | None:
        if packed := self._packed_like(cell, progress):
            return Source("training", packed[0])
        trained = [
            other
            for other in self.cells
            if self._trains_alike(cell, other) and other.name in progress.trained
        ]
        if trained:
            return Source("training", trained[0])
        return self._trunk_source(cell, pending, progress)

    def _packed_like(self, cell: Planned, progress: Progress) -> list[Planned]:
        key = self._pack[cell.name]
        return [
            other
            for other in self.cells
            if other.step is None and self._pack[other.name] == key and other.name in progress.packed
        ]

    def _trunk_source(self, cell: Planned, pending: Sequence[Planned], progress: Progress) -> Source | None:
        """The latest checkpoint of another run that this one would pass as well, before anyone looks at it."""
        looked_at = [
            o.step for o in pending if o.step is not None and self._train[o.name] == self._train[cell.name]
        ]
        latest = min([branch_step(cell.recipe), *(step - 1 for step in looked_at)])
        found = [
            Source("trunk", other, step)
            for other in self._on_one_trunk(cell, self.cells)
            for step in progress.snapshots.get(other.name, ())
            if step <= min(latest, branch_step(other.recipe))
        ]
        return max(found, key=lambda source: source.step or 0, default=None)

    def _longest(self, cell: Planned, pending: Sequence[Planned]) -> Planned:
        # The first one where several are equally long.
        return max(
            self._on_one_trunk(cell, pending), key=lambda other: branch_step(other.recipe), default=cell
        )

    def _on_one_trunk(self, cell: Planned, among: Sequence[Planned]) -> list[Planned]:
        key = self._trunk[cell.name]
        return [o for o in among if key is not None and o.step is None and self._trunk[o.name] == key]

    def _kept_by(self, cell: Planned, pending: Sequence[Planned]) -> tuple[int, ...]:
        if cell.step is not None:
            return ()
        others = [other for other in pending if other.name != cell.name]
        moments = {
            o.step for o in others if o.step is not None and self._train[o.name] == self._train[cell.name]
        }
        branching = [
            o for o in self._on_one_trunk(cell, others) if self._train[o.name] != self._train[cell.name]
        ]
        branches = {branch_step(other.recipe) for other in branching}
        inside = {step for step in branches if 0 < step <= branch_step(cell.recipe)}
        return tuple(sorted(moments | inside))


def _first(cells: Sequence[Planned], progress: Progress) -> Planned:
    """The one that goes ahead: one that has begun already, or else the first."""
    return next((cell for cell in cells if cell.name in progress.begun), cells[0])
