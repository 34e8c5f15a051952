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
            kept = (folder / SNAPSHOTS).glob("step-*.safetensors")
            found.snapshots[cell.name] = {int(path.stem.removeprefix("step-")) for path in kept}
        return found


@dataclass(frozen=True)
class Source:
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


@dataclass(frozen=True)
class Start:
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
                kept = [
                    o for o in self._ends(cell, self.cells) if cell.step in progress.snapshots.get(o.name, ())
                ]
                if kept:
                    starts.append(Start(cell, Source("moment", kept[0], cell.step), ()))
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

    def _trained(self, cell: Planned, progress: Progress) -> list[Planned]:
        return [other for other in self._ends(cell, self.cells) if other.name in progress.trained]

    def _packed(self, cell: Planned, progress: Progress) -> list[Planned]:
        """Those that have packed what ``cell`` would."""
        ends = self._ends(cell, self.cells)
        return [o for o in ends if self._pack[o.name] == self._pack[cell.name] and o.name in progress.packed]

    def _waits(self, cell: Planned, pending: Sequence[Planned], progress: Progress) -> bool:
        alike = self._ends(cell, pending)
        if self._trained(cell, progress):
            same = [other for other in alike if self._pack[other.name] == self._pack[cell.name]]
            return same[0] is not cell and not self._packed(cell, progress)
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
        done = self._packed(cell, progress) or self._trained(cell, progress)
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
