"""Evaluation: standard windows, sliding windows, and legal test-time training, all through the grader.

Weights change in one place, ``Adapter.adapt``, which accepts a ``ScoredChunk`` and nothing else; that is made
of ``Recorded`` text, which the grader hands out once its score is in the ledger. So "score, then adapt" is
the only order, and no function both scores and updates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteCounts
from pgolf.errors import PgolfError
from pgolf.evaluate.build import MODES, build_scorer, uses_memory
from pgolf.evaluate.ledger import Ledger, text_digest
from pgolf.evaluate.passes import with_batch
from pgolf.evaluate.protocol import grade
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.device import keep_freed_memory
from pgolf.runtime.team import SOLO, Team

if TYPE_CHECKING:
    from pgolf.memory.memory import Start

__all__ = ["MODES", "EvalResult", "evaluate"]


@dataclass(frozen=True)
class EvalResult:
    """A score and what it covers."""

    mode: str
    """standard, sliding or ttt."""
    val_loss: float
    """Nats per target."""
    val_bpb: float
    """Bits per byte of text."""
    targets: int
    """Scored targets."""
    bytes: int
    """Bytes of text they stand for."""
    seconds: float
    """Time it took."""
    warning: str = ""
    """What makes it doubtful; empty if nothing does."""
    chunks: list[float] = field(default_factory=list, repr=False)
    """For ttt: bits per byte of everything up to and including each chunk."""
    ledger: Ledger = field(default_factory=Ledger, compare=False, repr=False)
    """What every range of targets cost; the scores above are computed from it."""
    kept: str = field(default="", compare=False)
    """Where the folder of a run keeps it, or why it does not; empty for what belongs to no run."""

    @classmethod
    def of(cls, ledger: Ledger, mode: str, seconds: float, **more: Any) -> EvalResult:
        """The score of a ledger; a ``PgolfError`` where its targets stand for no bytes at all."""
        score = ledger.score()
        if not score.bytes:
            raise PgolfError(
                f"the {score.targets} validation targets stand for no bytes of text; score more of them"
            )
        numbers = score.loss, score.bpb, score.targets, score.bytes, seconds
        return cls(mode, *numbers, ledger=ledger, **more)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, without the ledger; ``chunks`` for ttt, others only if they say more."""
        shown = {"ledger": False, "chunks": self.mode == "ttt", "warning": bool(self.warning)}
        shown["kept"] = bool(self.kept)
        return {key: value for key, value in vars(self).items() if shown.get(key, True)}


def evaluate(
    network: GPT,
    recipe: Recipe,
    tokens: Tokens,
    byte_counts: ByteCounts,
    mode: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    strict: bool = False,
    known: Mapping[str, str] | None = None,
    team: Team = SOLO,
    memory: Start | None = None,
) -> EvalResult:
    """Score a stream of tokens; the model is left as it was.

    Args:
        network: the model on its device.
        recipe: windows and test-time training.
        tokens: the stream, uint16; all but the first are targets.
        byte_counts: bytes of text that each target stands for (n,).
        mode: "standard", "sliding" or "ttt".
        progress: told (targets scored, all targets).
        strict: reveal one target at a time, which is slow.
        known: what the ledger's header says of artifact and tokenizer.
        team: ranks that share the work, all of them with equal arguments and results.
        memory: what the recipe's memory begins with; without it there is none.

    Returns:
        The score; every target counts exactly once.

    Raises:
        PgolfError: the stream's targets stand for no bytes at all.
    """
    started = time.perf_counter()
    device = next(network.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    settled = with_batch(recipe, device, team)
    targets = len(tokens) - 1
    was_training = network.training
    settings = {"evaluate": settled.evaluate.model_dump(), "ttt": settled.ttt.model_dump()}
    if uses_memory(recipe, mode) and memory is not None:
        settings["memory"] = recipe.memory.model_dump()
    ledger = Ledger(
        {
            **(known or {}),
            "data": text_digest(tokens),
            "targets": targets,
            "mode": mode,
            "strict": strict,
            "settings": settings,
        }
    )
    try:
        scorer = build_scorer(network, settled, mode, team=team, memory=memory)
        grade(scorer, tokens, byte_counts, ledger, strict=strict, progress=progress, team=team)
    finally:
        network.train(was_training)
    result = EvalResult.of(ledger, mode, time.perf_counter() - started)
    assert result.targets == targets, f"{result.targets} of {targets} targets scored"
    return replace(result, chunks=ledger.running_bpb(recipe.ttt.chunk_tokens)) if mode == "ttt" else result
