"""Low-rank adapters that learn from recorded text, at test time (LoRA, Hu et al. 2021, arXiv:2106.09685).

    W = W_base + alpha / rank * up @ down        up (out, rank), zero at first; down (rank, in), random

The sum is written into the matrices of a *student*, a copy of the model whose other weights are those of the
base. So scoring costs what it costs without adapters, and the student's weights are all that scores depend
on. The gradient of a loss L with respect to the factors follows from that with respect to the matrix, by the
chain rule:

    dL/d up = alpha / rank * (dL/dW) @ down^T        dL/d down = alpha / rank * up^T @ (dL/dW)

``Adapters.adapt`` takes a ``Lesson``, which a ``Transcript`` cuts out of ``Recorded`` text and out of nothing
else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from pgolf.evaluate.ttt import Lesson, SharedUpdates, frozen_parameters
from pgolf.model.gpt import GPT
from pgolf.recipe.sections import TttSection
from pgolf.runtime.device import autocast
from pgolf.runtime.team import SOLO, Team

_MODULES = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "output": "attention.output",
    "up": "mlp.up",
    "down": "mlp.down",
}
# Every evaluation starts from the same random factors, on every device.
_SEED = 0


class Adapters:
    """The low-rank factors of a model, the student that they make, and how they learn.

    Args:
        base: the weights to add to, on their device. They are only read; where someone else trains them,
            ``merge`` must follow.
        ttt: rank, targets and how to train.
        length: inputs per training sequence, at most; positions rotate as in windows of so many.
        team: ranks with equal models, which share the sequences of each training batch.
    """

    def __init__(self, base: GPT, ttt: TttSection, length: int, team: Team = SOLO) -> None:
        self.ttt, self.length, self.team = ttt, length, team
        self._shared = SharedUpdates(team)
        self.scale = ttt.lora.alpha / ttt.lora.rank
        self.student = base.clone().eval()
        names = adapted_matrices(base, ttt)
        self.matrices: dict[str, tuple[Tensor, nn.Parameter]] = {}
        for name, parameter in self.student.named_parameters():
            original = base.get_parameter(name).detach()
            parameter.requires_grad_(name in names)
            if name in names:
                self.matrices[name] = original, parameter
            else:
                # The student sees what base is, also once someone trains it, and takes no memory for it.
                parameter.data = original
        generator = torch.Generator().manual_seed(_SEED)
        self.up: dict[str, nn.Parameter] = {}
        self.down: dict[str, nn.Parameter] = {}
        self._start: dict[str, Tensor] = {}
        for name, (original, _) in self.matrices.items():
            outputs, inputs = original.shape
            start = torch.randn(ttt.lora.rank, inputs, generator=generator) / inputs**0.5
            self._start[name] = start.to(original.device)
            self.up[name] = nn.Parameter(torch.zeros(outputs, ttt.lora.rank, device=original.device))
            self.down[name] = nn.Parameter(self._start[name].clone())
        self.reset()

    def reset(self) -> None:
        """Forget everything that was learned: the student's weights are those of the base again."""
        with torch.no_grad():
            for name, start in self._start.items():
                self.up[name].zero_()
                self.down[name].copy_(start)
        self.factors = [*self.up.values(), *self.down.values()]
        lora = self.ttt.lora
        self.optimizer = AdamW(self.factors, lr=lora.lr, weight_decay=lora.weight_decay, fused=True)
        self.learned = False
        self.merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Write base and adapters into the student's matrices; at first the base, to the bit."""
        for name, (original, parameter) in self.matrices.items():
            if self.learned:
                torch.add(original, self.up[name] @ self.down[name], alpha=self.scale, out=parameter.data)
            else:
                parameter.copy_(original)

    def adapt(self, lesson: Lesson, factor: float = 1.0) -> None:
        """Train the factors on recorded text, with ``factor`` on the learning rate, and merge them.

        Sequences of at most ``length`` inputs; the loss is that of the lesson's targets, once per epoch.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.ttt.lora.lr * factor
        batches = list(training_batches(lesson, self.length, self.ttt.batch_sequences))
        for _ in range(self.ttt.lora.epochs):
            for inputs, targets, learned in batches:
                self._update(inputs, targets, learned)
                self.learned = True
                self.merge()
        for _, parameter in self.matrices.values():
            parameter.grad = None

    def _update(self, inputs: Tensor, targets: Tensor, learned: Tensor) -> None:
        def gradients(part: slice) -> None:
            share = int(learned[part].sum()) / int(learned.sum())  # of the batch's mean loss
            self._gradients(inputs[part], targets[part], learned[part], share)

        self._shared.update(self.optimizer, self.factors, self.ttt.grad_clip, len(inputs), gradients)

    def _gradients(self, inputs: Tensor, targets: Tensor, learned: Tensor, weight: float) -> None:
        """Set the factors' gradients to those of the mean loss of the learned targets times ``weight``."""
        device = next(self.student.parameters()).device
        for _, parameter in self.matrices.values():
            parameter.grad = None
        # Only where something is learned: at the last positions of every sequence, at all of them in most.
        last = int(learned.sum(dim=1).max())
        learned = learned[:, -last:]
        wanted = targets[:, -last:][learned].to(device)
        with autocast(device):
            hidden = self.student.hidden(inputs.to(device), self.length, last)[learned.to(device)]
            loss = F.cross_entropy(self.student.project(hidden), wanted) * weight
        loss.backward()
        for name, (_, parameter) in self.matrices.items():
            gradient = parameter.grad
            assert gradient is not None
            self.up[name].grad = self.scale * (gradient @ self.down[name].detach().T)
            self.down[name].grad = self.scale * (self.up[name].detach().T @ gradient)

    def snapshot(self) -> Any:
        """The factors and the optimizer's state, for ``restore``."""
        factors = [factor.detach().clone() for factor in self.factors]
        return factors, copy.deepcopy(self.optimizer.state_dict()), self.learned

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot; the student is base and adapters of then."""
        factors, optimizer, self.learned = snapshot
        with torch.no_grad():
            for factor, value in zip(self.factors, factors, strict=True):
                factor.copy_(value)
        self.optimizer.load_state_dict(copy.deepcopy(optimizer))
        self.merge()


def adapted_matrices(network: GPT, ttt: TttSection) -> set[str]:
    """Names of the parameters that get an adapter: the recipe's targets in every core that is not frozen."""
    frozen = frozen_parameters(network, ttt.frozen_blocks)
    modules, cores = [_MODULES[target] for target in ttt.lora.targets], range(len(network.cores))
    return {f"cores.{index}.{module}.weight" for index in cores for module in modules} - frozen


def training_batches(lesson: Lesson, length: int, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Cut a lesson into sequences of equal size, at most ``batch`` of them together.

    From the first target to learn on, ``length`` targets make a sequence. The last one, if it has fewer,
    reaches back for as much context as makes it ``length`` inputs long, as far as there is text.

    Yields:
        inputs (n, l) int64, targets (n, l) int64, and which targets count (n, l) bool.
    """
    text = torch.from_numpy(lesson.text.astype(np.int64))
    end, size = len(text) - 1, min(length, len(text) - 1)
    starts, learned = [], []
    for first in range(end - lesson.targets, end, length):
        start = min(first, end - size)
        starts.append(start)
        learned.append(torch.arange(start, start + size) >= first)
    for at in range(0, len(starts), batch):
        spans = torch.stack([text[start : start + size + 1] for start in starts[at : at + batch]])
        yield spans[:, :-1], spans[:, 1:], torch.stack(learned[at : at + batch])
