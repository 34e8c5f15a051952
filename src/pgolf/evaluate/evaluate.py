"""Evaluation: standard windows, sliding windows, and legal test-time training.

Weights change in one place, ``Adapter.adapt``, which accepts a ``ScoredChunk`` and nothing else. The only source of
those is ``_scored_chunks``: text leaves it together with its score, never before. So "score, then adapt" is the only
order, and no function both scores and updates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteTable
from pgolf.errors import PgolfError
from pgolf.evaluate.score import Score, ScoredChunk, score_windows
from pgolf.evaluate.ttt import Adapter
from pgolf.evaluate.windows import Window, sliding_windows, standard_windows, windows_by_chunk
from pgolf.model.gpt import GPT
from pgolf.recipe import Recipe

MODES = ("standard", "sliding", "ttt")


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
    chunks: list[float] = field(default_factory=list)
    """For ttt: bits per byte of everything up to and including each chunk."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; ``chunks`` only for ttt."""
        values = asdict(self)
        if self.mode != "ttt":
            del values["chunks"]
        return values


def evaluate(
    network: GPT,
    recipe: Recipe,
    tokens: Tokens,
    byte_table: ByteTable,
    mode: str,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Score a stream of tokens; the model is left as it was.

    Args:
        network: the model on its device.
        recipe: windows and test-time training.
        tokens: the stream, uint16; all but the first are targets.
        byte_table: bytes per target.
        mode: "standard", "sliding" or "ttt".
        progress: told (targets scored, all targets).

    Returns:
        The score; every target counts exactly once.

    Raises:
        PgolfError: the stream's targets stand for no bytes at all.
    """
    assert mode in MODES, f"unknown mode {mode}"
    started = time.perf_counter()
    targets, length = len(tokens) - 1, recipe.evaluation_length
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, targets)

    running: list[float] = []
    if mode == "ttt":
        score, running = _score_with_ttt(network, recipe, tokens, byte_table, report)
    else:
        if mode == "standard":
            windows = standard_windows(targets, length)
        else:
            windows = sliding_windows(targets, length, recipe.evaluate.stride)
        score = score_windows(network, tokens, windows, byte_table, recipe.evaluate.batch, report)
    assert score.targets == targets, f"{score.targets} of {targets} targets scored"
    if not score.bytes:
        raise PgolfError(f"the {targets} validation targets stand for no bytes of text; score more of them")
    seconds = time.perf_counter() - started
    return EvalResult(mode, score.loss, score.bpb, score.targets, score.bytes, seconds, running)


def _score_with_ttt(
    network: GPT, recipe: Recipe, tokens: Tokens, byte_table: ByteTable, report: Callable[[int], None]
) -> tuple[Score, list[float]]:
    """The score of the whole stream, and the bits per byte of everything up to and including each chunk."""
    targets, length = len(tokens) - 1, recipe.evaluation_length
    windows = sliding_windows(targets, length, recipe.evaluate.stride)
    chunks = windows_by_chunk(windows, targets, recipe.ttt.chunk_tokens)
    # A copy learns; the caller's weights stay, whatever interrupts this.
    student = network.clone()
    adapter = Adapter(student, recipe.ttt, length, len(chunks))
    total, running = Score(), []
    for chunk in _scored_chunks(student, recipe, tokens, byte_table, chunks, report):
        total += chunk.score
        running.append(total.bpb)
        adapter.adapt(chunk)
    return total, running


def _scored_chunks(
    network: GPT,
    recipe: Recipe,
    tokens: Tokens,
    byte_table: ByteTable,
    chunks: Sequence[Sequence[Window]],
    report: Callable[[int], None],
) -> Iterator[ScoredChunk]:
    """Hand out the chunks one by one, each after it has been scored with the weights of that moment."""
    size = recipe.ttt.chunk_tokens
    for index, windows in enumerate(chunks):
        # The end of the stream may lie in a window that began in the chunk before.
        if windows:
            score = score_windows(network, tokens, windows, byte_table, recipe.evaluate.batch, report)
            yield ScoredChunk(index, score, tokens[index * size : (index + 1) * size + 1])
