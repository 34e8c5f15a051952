"""A scorer around any model with ``forward_logits``: the field's usual shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.audit.state import tensor_digest
from pgolf.data.shards import Tokens
from pgolf.evaluate.protocol import Recorded, Scorer
from pgolf.evaluate.windows import window_at, window_index, windows_between


class ForwardLogitsScorer(Scorer):
    """Scores with a frozen model in sliding windows; subclasses may learn in ``receive``.

    Args:
        model: has ``forward_logits(input_ids)``: (B, T) int64 to (B, T, V), where position t is the
            prediction of the token after input t. Put into evaluation mode here.
        length: inputs per window.
        stride: targets scored per window after the first; None takes ``length`` (windows side by side).
        batch: windows per forward pass.
        vocab_size: V; None finds it out by a forward pass over one token.
    """

    def __init__(
        self,
        model: nn.Module,
        length: int,
        stride: int | None = None,
        batch: int = 32,
        vocab_size: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.length, self.stride, self.batch = length, stride or length, batch
        assert 1 <= self.stride <= length, f"stride {stride} must be between 1 and the window's {length}"
        parameter = next(model.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.vocab_size = vocab_size or self._logits(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
        self._digest: str | None = None

    def begin(self, first: int, targets: int) -> None:
        self.position, self.targets = 0, targets
        self.context: Tokens = np.array([first], dtype=np.uint16)

    def wanted(self) -> int:
        """The rest of this window and those that share its forward pass."""
        index = window_index(self.position, self.length, self.stride)
        return window_at(index + self.batch - 1, self.length, self.stride).end - self.position

    def distributions(self, given: Tensor) -> Tensor:
        inputs = torch.cat([torch.from_numpy(self.context.astype(np.int64)), given.cpu()])
        begin = self.position + 1 - len(self.context)
        windows = windows_between(self.position, self.position + len(given) + 1, self.length, self.stride)
        rows: list[Tensor] = []
        # Windows of one length share a forward pass.
        for _, alike in itertools.groupby(windows, key=lambda window: window.end - window.start):
            while group := list(itertools.islice(alike, self.batch)):
                logits = self._logits(torch.stack([inputs[w.start - begin : w.end - begin] for w in group]))
                rows += [logits[n, w.first - w.start :] for n, w in enumerate(group)]
        return F.log_softmax(torch.cat(rows).float(), dim=-1)

    def receive(self, recorded: Recorded) -> None:
        """Keep as much of the text as later windows can reach."""
        self.position += len(recorded.tokens)
        self.context = np.concatenate([self.context, recorded.tokens])[-self.length - 1 :]

    def state_digest(self) -> str:
        """A fingerprint of the model's weights; call ``weights_changed`` after learning."""
        if self._digest is None:
            self._digest = ",".join(tensor_digest(tensor) for tensor in self.model.state_dict().values())
        return self._digest

    def weights_changed(self) -> None:
        """The next ``state_digest`` looks at the weights again."""
        self._digest = None

    @torch.inference_mode()
    def _logits(self, inputs: Tensor) -> Tensor:
        forward: Callable[[Tensor], Any] = self.model.forward_logits  # type: ignore[assignment]
        return forward(inputs.to(self.device))
