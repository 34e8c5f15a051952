"""Evaluation: standard windows, sliding windows, and legal test-time training.

The only loop in which weights change is ``_score_then_adapt``: it scores a chunk, records the score, and
only then lets the adapter see the chunk's text. Scoring and training never meet in one function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteTable
from pgolf.evaluate.score import Score, score_windows
from pgolf.evaluate.ttt import Adapter
from pgolf.evaluate.windows import sliding_windows, standard_windows, windows_by_chunk
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

    was_training = network.training
    chunks: list[float] = []
    if mode == "ttt":
        score = Score()
        # A copy learns; the caller's weights stay.
        for part in _score_then_adapt(network.clone(), recipe, tokens, byte_table, report):
            score += part
            chunks.append(score.bpb)
    else:
        if mode == "standard":
            windows = standard_windows(targets, length)
        else:
            windows = sliding_windows(targets, length, recipe.evaluate.stride)
        score = score_windows(network, tokens, windows, byte_table, recipe.evaluate.batch, report)
    network.train(was_training)
    seconds = time.perf_counter() - started
    return EvalResult(mode, score.loss, score.bpb, score.targets, score.bytes, seconds, chunks)


def _score_then_adapt(
    network: GPT, recipe: Recipe, tokens: Tokens, byte_table: ByteTable, report: Callable[[int], None]
) -> Iterator[Score]:
    """Yield the score of each chunk; its text is trained on only after the score has been taken."""
    targets, length, size = len(tokens) - 1, recipe.evaluation_length, recipe.ttt.chunk_tokens
    windows = sliding_windows(targets, length, recipe.evaluate.stride)
    by_chunk = windows_by_chunk(windows, targets, size)
    adapter = Adapter(network, recipe.ttt, length, len(by_chunk))
    for chunk, own in enumerate(by_chunk):
        # A chunk that an earlier window has scored whole (chunks shorter than windows) has nothing to do.
        if not own:
            continue
        yield score_windows(network, tokens, own, byte_table, recipe.evaluate.batch, report)
        if chunk + 1 < len(by_chunk):
            adapter.adapt(tokens[chunk * size : min((chunk + 1) * size, targets) + 1], chunk)
