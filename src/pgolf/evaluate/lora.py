"""Low-rank adapters that learn from recorded text, at test time (LoRA, Hu et al. 2021, arXiv:2106.09685).

    W = W_base + alpha / rank * up @ down        up (out, rank), zero at first; down (rank, in), random

The sum is written into the matrices of a *student*, a copy of the model whose other weights are those of the
base. So scoring costs what it costs without adapters, and the student's weights are all that scores depend
on. Where the base has no matrix of its own, the student gets one that begins as the base's (the head's, apart
from the token embedding), as zeros (from a normed input straight to the result of attention or MLP), or as
one copy per pass through a core that is visited several times. Vectors need no factors: what is learned is
added to them. The gradient of a loss L with respect to the factors follows from that with respect to the
matrix, by the chain rule:

    dL/d up = alpha / rank * (dL/dW) @ down^T        dL/d down = alpha / rank * up^T @ (dL/dW)

``Adapters.adapt`` takes a ``Lesson``, which a ``Transcript`` cuts out of ``Recorded`` text and out of nothing
else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.evaluate.optimizers import AdamW
from pgolf.evaluate.ttt import Lesson, SharedUpdates, frozen_parameters, vectors
from pgolf.model.gpt import GPT
from pgolf.model.layer import Core
from pgolf.model.linear import Matrix
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
    "beside_attention": "attention.beside",
    "beside_mlp": "mlp.beside",
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
        # What the student is before it has learned anything. Both see what base is, also once someone trains
        # it, and take no memory for it.
        self.plain, self.student = extended(base, ttt), extended(base, ttt)
        names, numbers = adapted_matrices(self.student, ttt), adapted_vectors(self.student, ttt)
        self.matrices: dict[str, tuple[Tensor, nn.Parameter]] = {}
        self.vectors: dict[str, tuple[Tensor, nn.Parameter]] = {}
        for name, parameter in self.student.named_parameters():
            original = parameter.data
            parameter.requires_grad_(name in names | numbers)
            if parameter.requires_grad:
                (self.matrices if name in names else self.vectors)[name] = original, parameter
                # A table in bfloat16 would round away what is added to it.
                parameter.data = torch.empty(original.shape, device=original.device)
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
        self.shift = {
            name: nn.Parameter(torch.zeros_like(vector)) for name, (vector, _) in self.vectors.items()
        }
        self.reset()

    def reset(self) -> None:
        """Forget everything that was learned: the student's weights are those of the base again."""
        with torch.no_grad():
            for name, start in self._start.items():
                self.up[name].zero_()
                self.down[name].copy_(start)
            for shift in self.shift.values():
                shift.zero_()
        self.factors = [*self.up.values(), *self.down.values(), *self.shift.values()]
        lora = self.ttt.lora
        self.optimizer = AdamW(self.factors, lora.weight_decay, (lora.beta1, lora.beta2), lora.eps)
        self.learned = False
        self.merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Write base and adapters into the student; at first the base, to the bit."""
        for name, (original, parameter) in {**self.matrices, **self.vectors}.items():
            if not self.learned:
                parameter.copy_(original)
            elif name in self.shift:
                torch.add(original, self.shift[name], out=parameter.data)
            else:
                torch.add(original, self.up[name] @ self.down[name], alpha=self.scale, out=parameter.data)

    def adapt(self, lesson: Lesson, factor: float = 1.0) -> None:
        """Train the factors on recorded text, with ``factor`` on the learning rate, and merge them.

        Sequences of at most ``length`` inputs; the loss is that of the lesson's targets, once per epoch.
        """
        batches = list(training_batches(lesson, self.length, self.ttt.batch_sequences))
        for _ in range(self.ttt.lora.epochs):
            for inputs, targets, learned in batches:
                self._update(inputs, targets, learned, factor)

    def follow(self, losses: Callable[[slice], Tensor], size: int, factor: float = 1.0) -> None:
        """Train the factors on the windows that scored a chunk, once per epoch, and merge them.

        Args:
            losses: of some of the windows: what each of their targets costs, divided by the number of targets
                of all; with the graph that leads to the student's weights of now.
            size: how many windows there are.
            factor: on the learning rate.
        """
        for _ in range(self.ttt.lora.epochs):
            self._step(size, lambda part: self._backward(losses(part).sum()), factor)

    def _update(self, inputs: Tensor, targets: Tensor, learned: Tensor, factor: float) -> None:
        def gradients(part: slice) -> None:
            share = int(learned[part].sum()) / int(learned.sum())  # of the batch's mean loss
            self._gradients(inputs[part], targets[part], learned[part], share)

        self._step(len(inputs), gradients, factor)

    def _step(self, size: int, gradients: Callable[[slice], None], factor: float) -> None:
        lr = self.ttt.lora.lr * factor
        self._shared.update(self.optimizer, lr, self.ttt.grad_clip, size, gradients)
        self.student.zero_grad(set_to_none=True)
        self.learned = True
        self.merge()

    def _gradients(self, inputs: Tensor, targets: Tensor, learned: Tensor, weight: float) -> None:
        """Set the factors' gradients to those of the mean loss of the learned targets times ``weight``."""
        device = next(self.student.parameters()).device
        # Only where something is learned: at the last positions of every sequence, at all of them in most.
        last = int(learned.sum(dim=1).max())
        learned = learned[:, -last:]
        wanted = targets[:, -last:][learned].to(device)
        with autocast(device, learning=True):
            hidden = self.student.hidden(inputs.to(device), self.length, last)[learned.to(device)]
            loss = F.cross_entropy(self.student.project(hidden), wanted) * weight
        self._backward(loss)

    def _backward(self, loss: Tensor) -> None:
        """Set the factors' gradients to those of a loss."""
        self.student.zero_grad(set_to_none=True)
        loss.backward()
        for name, (_, parameter) in self.matrices.items():
            assert parameter.grad is not None
            gradient = parameter.grad.float()
            self.up[name].grad = self.scale * (gradient @ self.down[name].detach().T)
            self.down[name].grad = self.scale * (self.up[name].detach().T @ gradient)
        for name, (_, parameter) in self.vectors.items():
            self.shift[name].grad = parameter.grad  # None where it stands in no layer's way.

    def snapshot(self) -> Any:
        """The factors and the optimizer's state, for ``restore``."""
        factors = [factor.detach().clone() for factor in self.factors]
        return factors, copy.deepcopy(self.optimizer.state), self.learned

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot; the student is base and adapters of then."""
        factors, optimizer, self.learned = snapshot
        with torch.no_grad():
            for factor, value in zip(self.factors, factors, strict=True):
                factor.copy_(value)
        self.optimizer.state = copy.deepcopy(optimizer)
        self.merge()


def adapted_matrices(network: GPT, ttt: TttSection) -> set[str]:
    """Names of the matrices that get an adapter: the recipe's targets in every core that is not frozen.

    Args:
        network: an ``extended`` one, or one that needs no matrices of its own.
        ttt: targets and frozen blocks.
    """
    frozen = frozen_parameters(network, ttt.frozen_blocks)
    modules, cores = [_MODULES[t] for t in ttt.lora.targets if t in _MODULES], range(len(network.cores))
    names = {f"cores.{index}.{module}.weight" for index in cores for module in modules} - frozen
    return names | {"head"} if "head" in ttt.lora.targets else names


def adapted_vectors(network: GPT, ttt: TttSection) -> set[str]:
    """Names of the vectors to which something is added, if they are among the recipe's targets."""
    if "vectors" not in ttt.lora.targets:
        return set()
    return vectors(network) - frozen_parameters(network, ttt.frozen_blocks) - {"head"}


def extended(base: GPT, ttt: TttSection) -> GPT:
    """A copy that shares the weights of ``base`` and has a matrix for every adapter; it predicts the same.

    The head's is the token embedding, those beside attention and MLP are zeros without memory; with
    ``ttt.lora.per_pass`` every visit of a core has a core of its own.
    """
    copied, targets = base.clone().eval(), ttt.lora.targets
    if ttt.lora.per_pass:
        cores, order = copied.cores, copied.schedule
        copied.cores = nn.ModuleList(copy.deepcopy(cores[visit.core]) for visit in order)
        copied.schedule = tuple(visit._replace(core=place, round=0) for place, visit in enumerate(order))
        names = [f"cores.{visit.core}." for visit in order]
    else:
        names = [f"cores.{index}." for index in range(len(copied.cores))]
    width, weight = base.config.width, base.token_embedding.weight.detach()
    for index, core in enumerate(cast("list[Core]", list(copied.cores))):
        for name, parameter in core.named_parameters():
            parameter.data = base.get_parameter(names[index] + name).detach()
        for target, part in (("beside_attention", core.attention), ("beside_mlp", core.mlp)):
            if target in targets:
                part.beside = Matrix(width, width, copied.fake_quant).eval()
                part.beside.weight.data = torch.zeros((), device=weight.device).expand(width, width)
    for name, parameter in copied.named_parameters():
        if not name.startswith("cores."):
            parameter.data = base.get_parameter(name).detach()
    if "head" in targets:
        copied.head = nn.Parameter(weight)
    return copied


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
