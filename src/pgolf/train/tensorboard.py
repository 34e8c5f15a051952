"""The metrics as TensorBoard event files (``train.tensorboard``); ``metrics.jsonl`` stays the record."""

from __future__ import annotations

import atexit
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
TAGS = {
    "train_loss": "training/loss",
    "lr_scale": "training/lr_scale",
    "tokens_per_second": "training/tokens_per_second",
    "val_loss": "validation/loss",
    "val_bpb": "validation/bits_per_byte",
}
"""The tag of each entry of the metrics."""


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


def event_files(recipe: Recipe, folder: Path, from_step: int) -> EventFiles | None:
    """The event files of a run folder if the recipe asks for them.

    Raises:
        PgolfError: it does, and the package tensorboard is not installed.
    """
    if not recipe.train.tensorboard:
        return None
    if importlib.util.find_spec("tensorboard") is None:
        raise PgolfError(
            "train.tensorboard: the package tensorboard is not installed; install it (pip install "
            "'pgolf[tensorboard]') or set train.tensorboard=false"
        )
    return EventFiles(folder / FOLDER, from_step)
