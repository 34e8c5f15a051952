"""Losses and distributions of a frozen model, window by window.

How a number comes about: the grader (``protocol.py``) asks for a range of targets; ``windows.py`` says which
window scores which of them, with how much context; ``window_losses`` computes what they cost; the grader adds
it up, in float64, in the ledger.

Nothing here can change a weight; nothing that changes weights (``ttt.py``) can score.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.data.shards import Tokens
from pgolf.evaluate.passes import Reading
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT
from pgolf.runtime.device import autocast


@torch.inference_mode()
def window_losses(
    network: GPT,
    tokens: Tokens,
    windows: Sequence[Window],
    length: int | None = None,
    read: Reading | None = None,
) -> Tensor:
    """Loss of every scored target (nats, float32), in the order of the windows, which share one length.

    Hidden states are computed for the whole window, what follows the last layer's keys and values only where
    something is scored.

    Args:
        network: in evaluation mode, on its device.
        tokens: the stream, uint16; target t is token t + 1.
        windows: what to score.
        length: of a whole window, where these may be cut short; their own by default.
        read: in place of the model's own ``hidden``.
    """
    logits = window_logits(network, tokens, windows, length, read)
    targets = np.concatenate([tokens[window.first + 1 : window.end + 1] for window in windows])
    wanted = torch.from_numpy(targets.astype(np.int64)).to(logits.device)
    return F.cross_entropy(logits, wanted, reduction="none")


@torch.inference_mode()
def window_distributions(
    network: GPT,
    tokens: Tokens,
    windows: Sequence[Window],
    length: int | None = None,
    read: Reading | None = None,
) -> Tensor:
    """Log-probabilities (n, V) float32 of every scored target, as ``window_losses``; reads no target."""
    return F.log_softmax(window_logits(network, tokens, windows, length, read), dim=-1)


def window_logits(
    network: GPT,
    tokens: Tokens,
    windows: Sequence[Window],
    length: int | None = None,
    read: Reading | None = None,
) -> Tensor:
    """Logits (n, V) float32 of every scored target, as ``window_losses``; with a graph where one is kept."""
    device = next(network.parameters()).device
    inputs = np.stack([tokens[window.start : window.end] for window in windows]).astype(np.int64)
    scored = [window.end - window.first for window in windows]
    last = max(scored)
    given = torch.from_numpy(inputs).to(device)
    with autocast(device):
        hidden = network.hidden(given, length, last) if read is None else read(network, given, length, last)
        # A mask only where it is needed: on CUDA to apply one means to wait for it.
        if min(scored) < last:
            hidden = hidden[(torch.arange(last) >= last - torch.tensor(scored)[:, None]).to(device)]
        return network.project(hidden.flatten(0, -2))


def batches(windows: Sequence[Window], batch: int) -> Iterator[list[Window]]:
    """Groups of at most ``batch`` windows of one length, in order."""
    for _, same in itertools.groupby(windows, lambda window: window.end - window.start):
        alike = list(same)
        for start in range(0, len(alike), batch):
            yield alike[start : start + batch]
