"""Evaluation as a protocol between a scorer and a grader.

A *scorer* holds the artifact's weights and whatever it learns as it goes. The *grader* owns the tokens: it
asks for the next targets' probabilities, writes what the targets cost into the ledger, and only then gives
the scorer the targets to learn from. So the conditions of a valid score are matters of who knows what when:

* a distribution is fixed before its target is seen, and the grader picks the target's entry (C1, C2);
* the only way to learn is ``receive``, and it only takes ``Recorded`` text, which the grader makes after the
  ledger has the score (C3);
* the grader walks over the stream once, from left to right, and counts targets and bytes itself (C4).

In *strict* mode one target is asked for at a time, and nothing of it can leak. In *block* mode, the default,
the request comes with the targets of the block, so that a causal model can score them in one pass. That it
does not look at them out of turn is then a promise: ``pgolf audit`` tests it, and decoding (``codec``) proves
it.

Several ranks share the work where a scorer says that it will learn nothing for a while (``steady``): the
grader divides the coming blocks among them, and each rank's scorer scores its own, from a copy that has read
the text before them (``ahead``). Then every rank writes all results into its ledger, in order, and only then
hands out the text as ``Recorded``. So the ledger is that of a single process, entry by entry, and nobody
learns from what is not in it.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteCounts
from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import Ledger
from pgolf.runtime.team import SOLO, Team

# Blocks per rank between two exchanges of results.
_ROUND = 8


@dataclass(frozen=True)
class Recorded:
    """Targets whose scores are in the ledger: text to learn from, which only the grader makes."""

    first: int
    """0-based index of the first of them in the stream."""
    tokens: Tokens
    """(n,) uint16."""


class Scorer(abc.ABC):
    """Predicts a stream of tokens from left to right."""

    vocab_size: int
    """Size V of the alphabet."""
    recomputable: tuple[str, ...] = ()
    """Attributes, or theirs (``base.cache``), that hold what can be computed again; whoever compares states
    passes them by, and looks at the snapshot."""

    @abc.abstractmethod
    def begin(self, first: int, targets: int) -> None:
        """Start a stream: forget everything but the artifact.

        Args:
            first: the stream's first token, which nobody predicts.
            targets: how many targets are announced. A scorer is told no more about the future; schedules may
                use it.
        """

    @abc.abstractmethod
    def wanted(self) -> int:
        """How many of the next targets to score at once, at least 1; fewer may be asked for."""

    def steady(self) -> int:
        """How many of the next targets are scored before anything is learned; at least what is wanted."""
        return self.wanted()

    def ahead(self, text: Tokens) -> Scorer:
        """One that is further on: it has read ``text`` (n,) uint16, the next targets, and learned nothing.

        Only asked for within ``steady`` targets, to score with and to be thrown away; so that a scorer which
        is steady for no more than one block needs none. It may share memory with this one.
        """
        raise NotImplementedError(f"{type(self).__name__} is steady for several blocks and cannot go ahead")

    @abc.abstractmethod
    def distributions(self, given: Tensor) -> Tensor:
        """Distributions of the next n targets. Changes nothing that later results depend on.

        Args:
            given: the first n - 1 of these targets, (n - 1,) int64; row t of the result may depend on the
                first t.

        Returns:
            Natural logarithms of probabilities (n, V) float32; each row adds up to 1.
        """

    def losses(self, block: Tensor) -> Tensor:
        """What the next n targets (n,) int64 cost: nats (n,) float32, entries of ``distributions``."""
        rows = self.distributions(block[:-1])
        return -rows.gather(1, block.to(rows.device)[:, None]).squeeze(1)

    @abc.abstractmethod
    def receive(self, recorded: Recorded) -> None:
        """Take targets that are scored, in order; here and nowhere else may a scorer learn."""

    @abc.abstractmethod
    def state_digest(self) -> str:
        """A fingerprint of what distributions depend on beside the stream's text: weights, caches, counts."""

    def snapshot(self) -> Any:
        """Everything that ``restore`` needs to go back to this moment."""
        return copy.deepcopy(self.__dict__)

    def restore(self, snapshot: Any) -> None:
        """Go back to the moment of a snapshot of this object; a snapshot can be used any number of times."""
        self.__dict__.clear()
        self.__dict__.update(copy.deepcopy(snapshot))


def grade(
    scorer: Scorer,
    tokens: Tokens,
    byte_counts: ByteCounts,
    ledger: Ledger,
    *,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
    team: Team = SOLO,
) -> None:
    """Let a scorer predict a stream, and record what each range of targets cost.

    Args:
        scorer: is begun here.
        tokens: the stream, uint16; all but the first are targets.
        byte_counts: bytes of text that each target stands for (n,).
        ledger: empty; receives one entry per request.
        strict: ask for one target at a time.
        progress: told (targets scored, all targets).
        team: ranks that do this together, each with a scorer and a ledger of its own; strict requests are not
            shared.

    Raises:
        PgolfError: the scorer returned something that is no score.
    """
    targets, done = len(tokens) - 1, 0
    scorer.begin(int(tokens[0]), targets)
    while done < targets:
        requests = [(scorer, done, 1)] if strict else _requests(scorer, tokens, done, team)
        own = requests if strict else [requests[index] for index in team.share(len(requests))]
        measured = [_measure(by, tokens[at + 1 : at + count + 1], at, strict) for by, at, count in own]
        if not strict:
            team.meet()  # Compiling takes minutes, and a rank with no block of that shape does not compile.
            measured = [entry for part in team.gather(measured) for entry in part]
        for (_, at, count), (nats, state) in zip(requests, measured, strict=True):
            block = tokens[at + 1 : at + count + 1].copy()
            ledger.record(at, block, nats, int(byte_counts[at : at + count].sum(dtype=np.int64)), state)
            done += count
            if progress is not None:
                progress(done, targets)
            scorer.receive(Recorded(at, block))


def _requests(scorer: Scorer, tokens: Tokens, done: int, team: Team) -> list[tuple[Scorer, int, int]]:
    """The next blocks: who scores them, their first target, their size. One for a single process.

    They are those that a single process asks for, one after the other.
    """
    rest = len(tokens) - 1 - done
    requests = [(scorer, done, min(max(int(scorer.wanted()), 1), rest))]
    if team.size > 1:
        steady = min(int(scorer.steady()), rest)
        while len(requests) < _ROUND * team.size:
            before, first, count = requests[-1]
            at = first + count
            if at - done >= steady:
                break
            by = before.ahead(tokens[first + 1 : at + 1].copy())
            requests.append((by, at, min(max(int(by.wanted()), 1), steady + done - at)))
    return requests


def _measure(scorer: Scorer, block: Tokens, first: int, strict: bool) -> tuple[float, str]:
    """Have the targets ``block`` scored: what they cost (nats), and the state they were scored by."""
    state = scorer.state_digest()
    if strict:
        losses = _strict_losses(scorer, int(block[0]))
    else:
        # A copy: the scorer must not be able to reach the rest of the stream through it.
        losses = scorer.losses(torch.from_numpy(block.astype(np.int64))).detach()
    return _checked(losses, len(block), first), state


def _strict_losses(scorer: Scorer, target: int) -> Tensor:
    row, wanted = scorer.distributions(torch.zeros(0, dtype=torch.int64)), (1, scorer.vocab_size)
    if row.shape != wanted:
        raise PgolfError(f"the scorer returned distributions of shape {tuple(row.shape)}, not {wanted}")
    return -row[:, target]


def _checked(losses: Tensor, count: int, first: int) -> float:
    # The sum in float64 is the recorded score.
    if losses.shape != (count,):
        what = f"losses of shape {tuple(losses.shape)} for {count} targets at {first}"
        raise PgolfError(f"the scorer returned {what}")
    nats = float(losses.cpu().double().sum())  # Apple's GPUs have no float64.
    if not np.isfinite(nats):
        raise PgolfError(f"the scorer's losses of targets {first} to {first + count} are not finite numbers")
    return nats
