"""Scoring: losses of a frozen model, summed exactly.

How a number comes about: ``windows.py`` says which targets each window scores; ``window_losses`` computes
their losses; ``score_windows`` adds them up, in float64, and counts the bytes the same targets stand for.

Nothing here can change a weight; nothing that changes weights (``ttt.py``) can score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteTable
from pgolf.device import autocast
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT


@dataclass(frozen=True)
class Score:
    """Sums over scored targets; adding two scores adds their sums."""

    nats: float = 0.0
    targets: int = 0
    bytes: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.targets + other.targets, self.bytes + other.bytes)

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nats / self.targets if self.targets else math.nan

    @property
    def bpb(self) -> float:
        """Bits per byte of text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class ScoredChunk:
    """A stretch of text together with its recorded score. Only in this form can text be learned from."""

    index: int
    """0-based place among the chunks of the stream."""
    score: Score
    """Of the windows that belong to the chunk."""
    text: Tokens
    """The chunk's targets with the one token before them; all of them are scored, here or earlier."""


def score_windows(
    network: GPT,
    tokens: Tokens,
    windows: Sequence[Window],
    byte_table: ByteTable,
    batch: int,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Score the targets of all windows with frozen weights.

    Args:
        network: the model, on its device.
        tokens: the stream, uint16; target t is token t + 1.
        windows: what to score.
        byte_table: bytes per target.
        batch: windows per forward pass; windows of one length share a pass.
        progress: told the number of targets after each pass.

    Returns:
        Losses in nats summed in float64, targets and bytes counted in int64.
    """
    total = Score()
    was_training = network.training
    network.eval()
    try:
        for group in _batches(windows, batch):
            losses = window_losses(network, tokens, group)
            scored = np.concatenate([np.arange(window.first, window.end) for window in group])
            counted = byte_table.count(tokens[scored].astype(np.int64), tokens[scored + 1].astype(np.int64))
            total += Score(float(losses.double().sum()), len(scored), int(counted.sum()))
            if progress is not None:
                progress(len(scored))
    finally:
        network.train(was_training)
    return total


@torch.inference_mode()
def window_losses(network: GPT, tokens: Tokens, windows: Sequence[Window]) -> Tensor:
    """Loss of every scored target (nats, float32), in the order of the windows, which share one length.

    Hidden states are computed for the whole window, logits only where something is scored.
    """
    device = next(network.parameters()).device
    spans = np.stack([tokens[window.start : window.end + 1] for window in windows]).astype(np.int64)
    inputs, targets = torch.from_numpy(spans[:, :-1]).to(device), torch.from_numpy(spans[:, 1:]).to(device)
    positions = torch.arange(inputs.size(1), device=device)
    first = torch.tensor([window.first - window.start for window in windows], device=device)
    scored = positions[None, :] >= first[:, None]
    with autocast(device):
        logits = network.project(network.hidden(inputs)[scored])
    return F.cross_entropy(logits, targets[scored], reduction="none")


def _batches(windows: Sequence[Window], batch: int) -> Iterator[list[Window]]:
    group: list[Window] = []
    for window in windows:
        other_length = group and window.end - window.start != group[0].end - group[0].start
        if len(group) == batch or other_length:
            yield group
            group = []
        group.append(window)
    if group:
        yield group
