"""The metrics also for TensorBoard (``train.tensorboard``) and Weights & Biases (``train.wandb``).

``metrics.jsonl`` stays the record: a tracker is told what was written there, and nothing is read from it.
"""

from __future__ import annotations

import atexit
import importlib.util
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.files import read_text
from pgolf.runtime.writing import write_bytes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER, WANDB = "tensorboard", "wandb"
TAGS = {
    "train_loss": "training/loss",
    "lr_scale": "training/lr_scale",
    "tokens_per_second": "training/tokens_per_second",
    "val_loss": "validation/loss",
    "val_bpb": "validation/bits_per_byte",
}
"""The tag of each entry of the metrics."""


class Tracker(Protocol):
    """Is told the metrics."""

    def add(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Take entries, as ``train.metrics`` describes them."""


class EventFiles:
    """Event files of a run.

    Args:
        folder: where they are; made with the first entry.
        from_step: steps that are finished; TensorBoard forgets what an interrupted process wrote after them.
    """

    def __init__(self, folder: Path, from_step: int) -> None:
        self.folder, self.from_step = folder, from_step
        self._writer: SummaryWriter | None = None

    def add(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write entries of the metrics; after a validation all of them are on the disk."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            purge = self.from_step + 1 if self.from_step else None
            self._writer = SummaryWriter(str(self.folder), purge_step=purge)
            # What is still in memory is written also where training is interrupted.
            atexit.register(self._writer.close)
        for entry in entries:
            for key, tag in TAGS.items():
                if key in entry:
                    self._writer.add_scalar(tag, float(entry[key]), int(entry["step"]))
        if any("val_bpb" in entry for entry in entries):
            self._writer.flush()


class WandbRun:
    """The run at Weights & Biases: begun with the first entry, ended with the process.

    Whether it is sent or only kept in the run folder is W&B's own setting, ``WANDB_MODE``. A resumed run goes
    on as the same one. W&B leaves out steps that it has, and a repeated step has the numbers it had.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self._run: Any = None

    def add(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Hand entries of the metrics over; a ``PgolfError`` if W&B does not take the run."""
        if self._run is None:
            self._run = self._begin()
        for entry in entries:
            found = {tag: float(entry[key]) for key, tag in TAGS.items() if key in entry}
            self._run.log(found, step=int(entry["step"]))

    def _begin(self) -> Any:
        import wandb

        mark = self.folder / WANDB / "id"
        if not mark.is_file():
            write_bytes(mark, secrets.token_hex(4).encode())
        try:
            return wandb.init(
                project="pgolf",
                name=self.folder.resolve().name,
                id=read_text(mark),
                resume="allow",
                reinit="create_new",
                dir=self.folder,
                config=self.recipe.model_dump(mode="json"),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            remedy = "run `wandb login`, set WANDB_MODE=offline, or set train.wandb=false"
            raise PgolfError(f"train.wandb: {error}; {remedy}") from error


def trackers(recipe: Recipe, folder: Path, from_step: int) -> list[Tracker]:
    """Those that the recipe asks for, of a run in a folder with so many finished steps.

    Raises:
        PgolfError: the package of one is not installed.
    """
    asked = {FOLDER: recipe.train.tensorboard, WANDB: recipe.train.wandb}
    for package in (name for name, wanted in asked.items() if wanted):
        if importlib.util.find_spec(package) is None:
            raise PgolfError(
                f"train.{package}: the package {package} is not installed; install it (pip install "
                f"'pgolf[{package}]') or set train.{package}=false"
            )
    made: list[Tracker] = [EventFiles(folder / FOLDER, from_step)] if asked[FOLDER] else []
    return [*made, WandbRun(folder, recipe)] if asked[WANDB] else made
