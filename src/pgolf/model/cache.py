"""What a model keeps of the tokens it has read, so that the next ones need not read them again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pgolf.model.attend import document_ids
from pgolf.model.rope import rotary_tables
from pgolf.model.shape import Shape, schedule


class LayerCache:
    """Keys and values of one layer, in memory that is allocated once.

    Args:
        shape: batch B, length T, key/value heads K, head width W.
        dtype: of what is kept.
        device: where it is kept.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        batch, length, heads, width = shape
        # Head before position: what one head attends to lies together.
        self.keys = torch.zeros((batch, heads, length, width), dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self._rows = self.keys.view(-1, length, width), self.values.view(-1, length, width)

    def write(self, keys: Tensor, values: Tensor, used: int) -> tuple[Tensor, Tensor]:
        """Write the positions after the first ``used``.

        Args:
            keys: rotated keys (B, n, K, W).
            values: values (B, n, K, W), mixed and with what is added to them.
            used: positions written before.

        Returns:
            Keys and values of all used + n positions, (B, K, used + n, W); views, not copies.
        """
        end = used + keys.size(1)
        self.keys[:, :, used:end] = keys.transpose(1, 2)
        self.values[:, :, used:end] = values.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def append(self, keys: Tensor, values: Tensor, used: int) -> tuple[Tensor, Tensor]:
        """``write`` for one position (B, K, W); returns (B * K, used + 1, W)."""
        self.keys.select(2, used).copy_(keys)
        self.values.select(2, used).copy_(values)
        return self._rows[0].narrow(1, 0, used + 1), self._rows[1].narrow(1, 0, used + 1)


class KvCache:
    """The state of B sequences that are read piece by piece, for windows of a fixed length.

    One entry per visit of the schedule, also where layers share a core. Positions rotate as in a window of
    ``length`` tokens, so a full window read piece by piece gives the hidden states of the whole window.
    Weights must not change between the pieces of a window.

    Args:
        model: the model's architecture.
        batch: sequences B.
        length: largest number of tokens per sequence.
        device: where the model is.
    """

    def __init__(self, model: Shape, batch: int, length: int, device: torch.device) -> None:
        automatic = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if automatic else torch.float32
        shape = (batch, length, model.kv_heads, model.head_width)
        self.length, self._bos = length, model.bos
        self.used = 0
        """Tokens read so far, per sequence."""
        self.layers = [LayerCache(shape, dtype, device) for _ in schedule(model)]
        self.remembered: dict[str, Tensor] = {}
        """What some parts of the model were given at the newest position (B, 1, ...), by their names."""
        self.step: Any = None
        """The pass for single tokens, made by ``step.py`` when the first one comes."""
        self._documents = torch.zeros((batch, length), dtype=torch.int64, device=device)
        self._cosines, self._sines = rotary_tables(model, length, device)

    def reset(self) -> None:
        """Forget all tokens, and the weights; the memory is kept for the next window."""
        self.used, self.step, self.remembered = 0, None, {}

    def rotary(self, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (n, rotated / 2) of the next ``count`` positions."""
        end = self.used + count
        assert end <= self.length, f"{end} tokens in a cache made for {self.length}"
        return self._cosines[self.used : end], self._sines[self.used : end]

    def document_ids(self, tokens: Tensor) -> Tensor:
        """The documents (B, used + n) of the positions read so far and of the next ``tokens`` (B, n)."""
        end = self.used + tokens.size(1)
        before = self._documents[:, self.used - 1 : self.used] if self.used else 0
        self._documents[:, self.used : end] = before + document_ids(tokens, self._bos)
        return self._documents[:, :end]

    def advance(self, count: int) -> None:
        """Note that all layers have read so many positions more."""
        self.used += count
