"""What each target costs: the text graded once more, held against the ledger of the run.

A ledger has the sum of every block only. Here the same grader asks the same scorer for the same blocks, and
what it answers is kept. So the costs belong to the ledger's score, and where they do not add up to its
entries that is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.compress.weights import Weights
from pgolf.data.dataset import Dataset
from pgolf.data.shards import Tokens
from pgolf.errors import PgolfError
from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.ledger import Entry, Ledger, read_ledger
from pgolf.evaluate.protocol import Scorer, grade
from pgolf.optim.place import place

# An entry's nats on the machine that wrote it and here differ by rounding: relative to the entry's nats.
_ROUNDING = 1e-5
# Beyond this the ledger is of something else, not of another device.
_SAME_MODEL = 2e-2


@dataclass(frozen=True)
class TargetCosts:
    """Targets of a stream, from its first on, with what each cost."""

    weights: str
    """What scored them, in words."""
    mode: str
    tokens: Tokens
    """(n + 1,) uint16: the targets, with the token before them."""
    nats: NDArray[np.float64]
    """(n,) of each target."""
    bytes: NDArray[np.int64]
    """(n,) of text that each target stands for."""
    announced: int
    """Targets of the whole stream."""
    check: str
    """How they relate to the ledger, as a sentence."""
    agrees: bool
    """Whether all entries of the ledger are met within rounding; False also where there is no ledger."""

    def bits(self, where: slice | NDArray[np.bool_] = slice(None)) -> float:
        """What some of the targets cost together."""
        return float(self.nats[where].sum() / np.log(2))

    def size(self, where: slice | NDArray[np.bool_] = slice(None)) -> int:
        """Bytes of text that some of the targets stand for."""
        return int(self.bytes[where].sum())


def score_targets(
    weights: Weights,
    dataset: Dataset,
    mode: str,
    limit: int,
    ledger: Path | None,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> TargetCosts:
    """Grade the first targets of the validation split again and keep what each costs.

    At most ``limit`` targets are scored; with a ledger, which is that of the run's evaluation in this mode,
    only whole entries of it, but at least one. ``progress`` is told (targets scored, targets to score).
    PgolfError where tokenizer or text are not the ledger's, or the costs cannot be.
    """
    weights.check_data(dataset)
    stream, byte_counts = dataset.validation_text(weights.recipe.evaluation_length)
    header, entries = read_ledger(ledger) if ledger is not None else ({}, [])
    announced = int(header.get("targets", len(stream) - 1))
    if announced > len(stream) - 1:
        raise PgolfError(f"{ledger}: is of {announced:,} targets, {dataset.folder} has {len(stream) - 1:,}")
    count = min(limit, announced)
    if entries:
        ends = [entry.first + entry.targets for entry in entries]
        count = max([end for end in ends if end <= count], default=ends[0])
    scorer = build_scorer(place(weights.model(), weights.recipe, device), weights.recipe, mode)
    heard, again = _overheard(scorer, announced), Ledger()
    grade(scorer, stream[: count + 1], byte_counts[:count], again, progress=progress)
    if ledger is not None and entries and not header.get("strict"):
        check, agrees = _compared(ledger, entries, again.entries)
    else:
        strict, none = "its ledger was written target by target", "the run has no ledger of this evaluation"
        reason, agrees = strict if ledger else none, False
        check = f"Scored for this report; not held against a ledger ({reason})."
    kind = "artifact" if weights.kind == "artifact" else "averaged weights"
    sizes, nats = byte_counts[:count].astype(np.int64), torch.cat(heard).numpy()
    return TargetCosts(kind, mode, stream[: count + 1], nats, sizes, announced, check, agrees)


def _overheard(scorer: Scorer, announced: int) -> list[Tensor]:
    """Where what each target costs is kept from now on, block by block.

    The scorer is told of the whole stream, also where only its beginning is scored: schedules depend on it.
    """
    heard: list[Tensor] = []
    begin, losses = scorer.begin, scorer.losses

    def answer(block: Tensor) -> Tensor:
        found = losses(block)
        heard.append(found.detach().double().cpu())
        return found

    scorer.begin = lambda first, targets: begin(first, announced)  # type: ignore[method-assign]
    scorer.losses = answer  # type: ignore[method-assign]
    return heard


def _compared(ledger: Path, entries: Sequence[Entry], again: Sequence[Entry]) -> tuple[str, bool]:
    """Hold a second grading against the ledger's entries: what to say, and whether they agree."""
    largest = worst = 0.0
    for old, new in zip(entries, again, strict=False):
        if (old.first, old.targets, old.bytes, old.text) != (new.first, new.targets, new.bytes, new.text):
            which = f"targets {old.first} to {old.first + old.targets} are not those of the data"
            raise PgolfError(f"{ledger}: {which}; pass the --data of the run, or --no-score")
        difference = abs(old.nats - new.nats)
        largest, worst = max(largest, difference), max(worst, difference / max(abs(old.nats), 1e-9))
    if worst > _SAME_MODEL:
        differs = f"is of another model: an entry costs {100 * worst:.1f} % more or less here"
        raise PgolfError(f"{ledger}: {differs}; evaluate the run again, or pass --no-score")
    found = f"{len(again):,} {'entry' if len(again) == 1 else 'entries'} of {ledger.name}"
    if worst > _ROUNDING:
        size = f"{largest:.2g} nats ({100 * worst:.3f} %)"
        said = f"The sums differ from the {found} by up to {size}, as on another device"
        return f"{said}; what follows is of this pass.", False
    how = f"within {largest:.1g} nats of each" if largest else "to the last digit"
    return f"Scored again for this report: the sums are those of the {found}, {how}.", True
