"""Running what is audited over a stream, in a way that says what every single target cost."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.audit.streams import Stream
from pgolf.audit.subject import Claim, Context, Evaluator, blamed
from pgolf.audit.watch import Learning
from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteCounts, ByteTable
from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import Ledger
from pgolf.evaluate.protocol import Recorded, Scorer, grade


@dataclass(frozen=True)
class Settings:
    """Numbers of an audit; the defaults are what `pgolf audit` uses."""

    seed: int = 0
    """Chooses edges, targets and replacements."""
    edges: int = 2
    """Edges of each kind (chunk, window, document, random) at which the future is changed."""
    probes: int = 6
    """Requests of a scorer that are examined closely."""
    swaps: int = 4
    """Other targets that are tried at a place."""
    places: int = 8
    """Targets of an evaluator whose own token is replaced."""
    substitutions: int = 1024
    """At most so many other tokens are tried at a place where an evaluator offers no distributions."""
    substituted_targets: int = 1 << 18
    """And so many targets are scored for that, all runs together; at least one place is examined."""
    tolerance: float = 1e-4
    """Largest difference, in nats, that counts as none."""
    rounding: float = 1e-4
    """The same for runs whose blocks have other sizes, where numbers are rounded in another order."""
    limit_seconds: float | None = None
    """Time that the whole evaluation may take."""

    sum_tolerance: float = 1e-3
    """How far the probabilities of all targets, each from a run of its own, may be from adding up to 1."""


Nats = NDArray[np.float64]
# Stands for an infinite cost where the grader wants a number; what is compared is the infinity.
_VERY_MUCH = 1e30

Before = Callable[[int], None]
After = Callable[[int, Tensor, Tensor], None]


class Hooks(NamedTuple):
    """What the audit does beside the grader's requests."""

    ask: Callable[[int, int], int] | None = None
    """Given how many targets are scored and how many the scorer wants to score next: how many to ask for."""
    before: Before | None = None
    """Called before a request is scored, with its place."""
    after: After | None = None
    """Called after a request is scored, with its place, its targets and what they cost."""


class Runner(abc.ABC):
    """Scores streams with what is audited."""

    def __init__(self, subject: Any) -> None:
        self.documents_independent = bool(getattr(subject, "documents_independent", False))
        self.periods = tuple(getattr(subject, "periods", ()))
        # Of what runs in another process, it is known there.
        theirs = getattr(subject, "learning", None)
        self.learning = theirs if isinstance(theirs, Learning) else Learning()

    @abc.abstractmethod
    def nats(self, tokens: Tokens, *, announced: int, until: int | None = None) -> Nats:
        """What each target of a stream (n + 1,) costs: (n,), not a number where nothing was scored.

        The scorer is told that there are ``announced`` targets; those from ``until`` on may be left out.
        """


@dataclass
class Case:
    """What all tests of an audit share."""

    runner: Runner
    stream: Stream
    """The audited stretch."""
    base: Nats
    """What its targets cost in the plain run (N,)."""
    settings: Settings
    context: Context
    """What the subject's factory was told; it knows the bytes of tokens."""
    noise: float = 0.0
    """By how much the same run differs from itself, in nats."""

    @property
    def allowed(self) -> float:
        """Largest difference that is none; machines that do not repeat exactly have their noise."""
        return max(self.settings.tolerance, 4 * self.noise)

    @property
    def allowed_rounding(self) -> float:
        """The same where blocks have other sizes."""
        return max(self.settings.rounding, self.allowed)

    def choices(self, number: int) -> np.random.Generator:
        """What makes the choices of the tests of a number."""
        return np.random.default_rng([self.settings.seed, number])


class ScorerRunner(Runner):
    """Runs a scorer through the grader; its name is a user's plug-in's, empty for pgolf's own scorers."""

    def __init__(self, scorer: Scorer, name: str) -> None:
        super().__init__(scorer)
        self.scorer, self.name, self.called = scorer, name, name or "the scorer"

    def nats(self, tokens: Tokens, *, announced: int, until: int | None = None) -> Nats:
        return self.grade(tokens, announced, until=until)[0]

    def grade(
        self,
        tokens: Tokens,
        announced: int,
        *,
        until: int | None = None,
        hooks: Hooks | None = None,
        byte_counts: ByteCounts | None = None,
    ) -> tuple[Nats, Ledger]:
        """What each target costs (see ``Runner.nats``), and the grader's ledger.

        Without ``byte_counts`` every target counts 0 bytes there.
        """
        counts = np.zeros(len(tokens) - 1, dtype=np.uint16) if byte_counts is None else byte_counts
        recorder = _Recorder(self, announced, len(tokens) - 1, until, hooks or Hooks())
        ledger = Ledger()
        with contextlib.suppress(_EnoughError):
            grade(recorder, tokens, counts, ledger)
        return recorder.nats, ledger

    def losses(self, block: Tensor) -> Tensor:
        """The scorer's losses of a block (n,), float64 on the CPU; learning is watched."""
        with blamed(self.name, "losses()"), self.learning.watched():
            losses = self.scorer.losses(block.clone()).detach().cpu().double()
        if losses.shape != block.shape:
            shape = tuple(losses.shape)
            raise PgolfError(f"{self.called}: losses() returned shape {shape} for {len(block)} targets")
        return losses

    def distributions(self, given: Tensor) -> Tensor:
        """The scorer's distributions (n, V), float64 on the CPU; learning is watched."""
        with blamed(self.name, "distributions()"), self.learning.watched():
            rows = self.scorer.distributions(given.clone()).detach().cpu().double()
        expected = (len(given) + 1, self.scorer.vocab_size)
        if rows.shape != expected:
            shape = tuple(rows.shape)
            raise PgolfError(f"{self.called}: distributions() returned shape {shape}, not {expected}")
        return rows


class _EnoughError(Exception):
    """No more targets are needed."""


class _Recorder(Scorer):
    """Between the grader and the audited scorer: passes everything on, and keeps what each target cost."""

    def __init__(
        self, runner: ScorerRunner, announced: int, targets: int, until: int | None, hooks: Hooks
    ) -> None:
        self.runner, self.scorer, self.announced, self.until = runner, runner.scorer, announced, until
        self.hooks, self.vocab_size, self.position = hooks, runner.scorer.vocab_size, 0
        self.nats: Nats = np.full(targets, np.nan)

    def begin(self, first: int, targets: int) -> None:
        with blamed(self.runner.name, "begin()"):
            self.scorer.begin(first, self.announced)

    def wanted(self) -> int:
        if self.until is not None and self.position >= self.until:
            raise _EnoughError
        with blamed(self.runner.name, "wanted()"):
            wanted = max(int(self.scorer.wanted()), 1)
        return wanted if self.hooks.ask is None else self.hooks.ask(self.position, wanted)

    def distributions(self, given: Tensor) -> Tensor:
        return self.runner.distributions(given)

    def losses(self, block: Tensor) -> Tensor:
        if self.hooks.before is not None:
            self.hooks.before(self.position)
        losses = self.runner.losses(block)
        if bool(losses.isnan().any()):
            where = f"a loss of the targets from {self.position} on"
            raise PgolfError(f"{self.runner.called}: {where} is not a number")
        self.nats[self.position : self.position + len(block)] = losses.numpy()
        if self.hooks.after is not None:
            self.hooks.after(self.position, block, losses)
        return losses.clamp(-_VERY_MUCH, _VERY_MUCH)

    def receive(self, recorded: Recorded) -> None:
        self.position += len(recorded.tokens)
        with blamed(self.runner.name, "receive()"):
            self.scorer.receive(recorded)

    def state_digest(self) -> str:
        with blamed(self.runner.name, "state_digest()"):
            return str(self.scorer.state_digest())


class EvaluatorRunner(Runner):
    """Runs a whole-stream evaluator."""

    def __init__(self, evaluator: Evaluator, byte_table: ByteTable) -> None:
        super().__init__(evaluator.function)
        self.evaluator, self.byte_table = evaluator, byte_table

    def nats(self, tokens: Tokens, *, announced: int, until: int | None = None) -> Nats:
        """See ``Runner``; of a target that is scored more than once the last cost counts."""
        return spread(self.claim(tokens, announced), len(tokens) - 1)

    def claim(self, tokens: Tokens, announced: int, wanted: Sequence[int] = ()) -> Claim:
        """What the evaluator claims of a stream; learning is watched."""
        with self.learning.watched():
            return self.evaluator(tokens, self.byte_table, announced, wanted)


def spread(claim: Claim, targets: int) -> Nats:
    """The nats of a claim by target (n,); not a number where nothing was scored."""
    nats: Nats = np.full(targets, np.nan)
    nats[claim.positions] = claim.nats
    return nats


def as_log_rows(rows: Any, width: int, what: str) -> NDArray[np.float64]:
    """Rows of logarithms (n, width) from whatever array a claim carries; another shape is a mistake."""
    array = np.asarray(rows.detach().cpu() if isinstance(rows, torch.Tensor) else rows, dtype=np.float64)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != width:
        raise PgolfError(f"{what}: has shape {array.shape}, not (..., {width})")
    return array


def log_sums(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the sum of exponentials of each row (n, V) -> (n,)."""
    found: NDArray[np.float64] = torch.from_numpy(rows).logsumexp(dim=1).numpy()
    return found
