"""What a model predicts, window by window.

How a number comes about: the grader (``protocol.py``) asks for a range of targets; ``windows.py`` says which
window scores which of them, with how much context; ``window_logits`` computes what the model says there;
``scorer.py`` makes it what they cost; the grader adds it up, in float64, in the ledger.

Nothing here can change a weight; nothing that changes weights (``ttt.py``) can score.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pgolf.data.shards import Tokens
from pgolf.evaluate.passes import Reading
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT
from pgolf.runtime.device import autocast


def window_logits(
    network: GPT,
    tokens: Tokens,
    windows: Sequence[Window],
    length: int | None = None,
    read: Reading | None = None,
) -> Tensor:
    """Logits (n, V) float32 of every scored target, in the order of the windows, which share one length.

    Hidden states are computed for the whole window, what follows the last layer's keys and values only where
    something is scored. No target is read.

    Args:
        network: in evaluation mode, on its device.
        tokens: the stream, uint16; target t is token t + 1.
        windows: what to score.
        length: of a whole window, where these may be cut short; their own by default.
        read: in place of the model's own ``hidden``.
    """
    device = next(network.parameters()).device
    inputs = np.stack([tokens[window.start : window.end] for window in windows]).astype(np.int64)
    scored = [window.end - window.first for window in windows]
    last = max(scored)
    given = torch.from_numpy(inputs).to(device)
    with autocast(device, learning=torch.is_grad_enabled()):
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
