"""What each target costs: the text graded once more, held against the ledger of the run.

A ledger has the sum of every block only. Here the same grader asks the same scorer for the same blocks, and
somebody listens. So the costs belong to the ledger's score, and where they do not add up to its entries that
is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from pgolf.evaluate.protocol import Recorded, Scorer, grade
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
    """standard, sliding or ttt."""
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

    @property
    def bpb(self) -> float:
        """Bits per byte of these targets."""
        return float(self.nats.sum() / np.log(2) / max(int(self.bytes.sum()), 1))


class _Listener(Scorer):
    """Passes everything on to a scorer, and keeps what each target cost."""

    def __init__(self, inner: Scorer, announced: int) -> None:
        self.inner, self.announced, self.vocab_size = inner, announced, inner.vocab_size
        self.nats: list[Tensor] = []

    def begin(self, first: int, targets: int) -> None:
        # The whole stream is announced, also where only its beginning is scored: schedules depend on it.
        self.inner.begin(first, self.announced)

    def wanted(self) -> int:
        return self.inner.wanted()

    def distributions(self, given: Tensor) -> Tensor:
        return self.inner.distributions(given)

    def losses(self, block: Tensor) -> Tensor:
        found = self.inner.losses(block)
        self.nats.append(found.detach().double().cpu())
        return found

    def receive(self, recorded: Recorded) -> None:
        self.inner.receive(recorded)

    def state_digest(self) -> str:
        return self.inner.state_digest()


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

    Args:
        weights: what the ledger is of.
        dataset: where the text is.
        mode: standard, sliding or ttt.
        limit: score at most so many targets; with a ledger only whole entries of it, but at least one.
        ledger: the record of the run's evaluation in this mode, if there is one.
        device: where to compute.
        progress: told (targets scored, targets to score).

    Raises:
        PgolfError: another tokenizer or text than the ledger's, or costs that cannot be the ledger's.
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
    network = place(weights.model(), weights.recipe, device)
    listener = _Listener(build_scorer(network, weights.recipe, mode), announced)
    again, strict = Ledger(), bool(header.get("strict", False))
    grade(listener, stream[: count + 1], byte_counts[:count], again, progress=progress)
    check, agrees = _compared(ledger, [] if strict else entries, again.entries)
    return TargetCosts(
        weights="artifact" if weights.kind == "artifact" else "averaged weights",
        mode=mode,
        tokens=stream[: count + 1],
        nats=torch.cat(listener.nats).numpy(),
        bytes=byte_counts[:count].astype(np.int64),
        announced=announced,
        check=check,
        agrees=agrees,
    )


def _compared(ledger: Path | None, entries: list[Entry], again: Any) -> tuple[str, bool]:
    """Hold a second grading against the ledger's entries: what to say, and whether they agree."""
    if ledger is None or not entries:
        reason = (
            "the run has no ledger of this evaluation"
            if ledger is None
            else "its ledger was written target by target"
        )
        return f"Scored for this report; not held against a ledger ({reason}).", False
    largest = worst = 0.0
    for old, new in zip(entries, again, strict=False):
        if (old.first, old.targets, old.bytes, old.text) != (new.first, new.targets, new.bytes, new.text):
            raise PgolfError(
                f"{ledger}: targets {old.first} to {old.first + old.targets} are not those of the data; pass the "
                "--data of the run, or --no-score"
            )
        difference = abs(old.nats - new.nats)
        largest, worst = max(largest, difference), max(worst, difference / max(abs(old.nats), 1e-9))
    if worst > _SAME_MODEL:
        raise PgolfError(
            f"{ledger}: is of another model: an entry costs {100 * worst:.1f} % more or less here; evaluate the run "
            "again, or pass --no-score"
        )
    found = f"{len(again):,} {'entry' if len(again) == 1 else 'entries'} of {ledger.name}"
    if worst > _ROUNDING:
        return (
            f"The sums differ from the {found} by up to {largest:.2g} nats ({100 * worst:.3f} %), as on another "
            "device; what follows is of this pass.",
            False,
        )
    how = f"within {largest:.1g} nats of each" if largest else "to the last digit"
    return f"Scored again for this report: the sums are those of the {found}, {how}.", True
