"""Losses and distributions of a frozen model, window by window.

How a number comes about: the grader (``protocol.py``) asks for a range of targets; ``windows.py`` says which window
scores which of them, with how much context; ``window_losses`` computes what they cost; the grader adds it up, in
float64, in the ledger.

Nothing here can change a weight; nothing that changes weights (``ttt.py``) can score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.data.shards import Tokens
from pgolf.device import autocast
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT


@torch.inference_mode()
def window_losses(network: GPT, tokens: Tokens, windows: Sequence[Window], length: int | None = None) -> Tensor:
    """Loss of every scored target (nats, float32), in the order of the windows, which share one length.

    Hidden states are computed for the whole window, logits only where something is scored.

    Args:
        network: in evaluation mode, on its device.
        tokens: the stream, uint16; target t is token t + 1.
        windows: what to score.
        length: of a whole window, where these may be cut short; their own by default.
    """
    spans = np.stack([tokens[window.start : window.end + 1] for window in windows]).astype(np.int64)
    logits, scored = _logits(network, spans[:, :-1], windows, length)
    targets = torch.from_numpy(spans[:, 1:]).to(logits.device)
    return F.cross_entropy(logits, targets[scored], reduction="none")


@torch.inference_mode()
def window_distributions(network: GPT, tokens: Tokens, windows: Sequence[Window], length: int | None = None) -> Tensor:
    """Log-probabilities (n, V) float32 of every scored target; as ``window_losses``, but the targets are not read."""
    inputs = np.stack([tokens[window.start : window.end] for window in windows]).astype(np.int64)
    return F.log_softmax(_logits(network, inputs, windows, length)[0], dim=-1)


def _logits(network: GPT, inputs: np.ndarray, windows: Sequence[Window], length: int | None) -> tuple[Tensor, Tensor]:
    device = next(network.parameters()).device
    positions = torch.arange(inputs.shape[1], device=device)
    first = torch.tensor([window.first - window.start for window in windows], device=device)
    scored = positions[None, :] >= first[:, None]
    with autocast(device):
        return network.project(network.hidden(torch.from_numpy(inputs).to(device), length)[scored]), scored


def batches(windows: Sequence[Window], batch: int) -> Iterator[list[Window]]:
    """Groups of at most ``batch`` windows of one length, in order."""
    group: list[Window] = []
    for window in windows:
        other_length = group and window.end - window.start != group[0].end - group[0].start
        if len(group) == batch or other_length:
            yield group
            group = []
        group.append(window)
    if group:
        yield group
