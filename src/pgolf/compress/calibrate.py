"""How much the loss minds an error in each weight: second-order statistics from calibration text.

For a linear map y = W x the mean loss rises, to second order, by about

    1/2 * sum over rows r of  rows[r] * e_r^T columns e_r        e = error of W

with columns = E[x x^T] over the tokens and rows = E[(dloss/dy)^2], the diagonal of the Fisher information of
the outputs (Kronecker factors, Martens and Grosse 2015, arXiv:1503.05671). For a table that is looked up the
roles turn: rows = how often each row is used, columns = E[(dloss/dy)(dloss/dy)^T]. Labels are drawn from the
model itself, as the Fisher information asks.

The text is training text or the model's own; never validation text, which would make the score invalid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.compress.tuning import sequences_per_step, turns
from pgolf.data.dataset import Dataset
from pgolf.model.gpt import GPT
from pgolf.model.loss import cap_of
from pgolf.recipe.recipe import Recipe

# A row that the text never looks up may still be needed: it counts as seen this often.
_UNSEEN = 0.5
_SEQUENCES_AT_ONCE = 4


@dataclass
class Sensitivity:
    """A sum of Kronecker terms; see the module's text for their meaning."""

    rows: list[Tensor] = field(default_factory=list)
    """(R,) float32 each."""
    columns: list[Tensor] = field(default_factory=list)
    """(C, C) float32 each."""

    def loss(self, error: Tensor) -> float:
        """Predicted rise of the mean loss in nats per token for an error (R, C) of the weights."""
        return sum(
            0.5 * float((rows @ ((error @ columns) * error).sum(dim=1)).double())
            for rows, columns in self._terms()
        )

    def row_weights(self) -> Tensor:
        """One weight per row (R,), the columns' mean taken in."""
        weights = [rows * columns.diagonal().mean() for rows, columns in self._terms()]
        return torch.stack(weights).sum(dim=0)

    def column_moments(self) -> Tensor:
        """One matrix (C, C) for all rows, of mean diagonal 1."""
        total = torch.stack([rows.mean() * columns for rows, columns in self._terms()]).sum(dim=0)
        mean = total.diagonal().mean()
        return total / mean if mean > 0 else torch.eye(len(total))

    def _terms(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.rows, self.columns, strict=True)


@dataclass(frozen=True)
class Calibration:
    """Statistics and the text they come from."""

    sensitivities: Mapping[str, Sensitivity]
    tokens: Tensor
    """Sequences (N, T + 1) int64."""
    source: dict[str, Any]
    """Where the text comes from: goes into the artifact."""
    text: Tensor | None = None
    """More of it, as such sequences, where the recipe asks for tuning."""


def calibration_for(network: GPT, recipe: Recipe, dataset: Dataset | None) -> Calibration | None:
    """Statistics of the loss around a model's weights, from the text that the recipe names, if any.

    Never touches validation text.

    Args:
        network: on the CPU.
        recipe: its compress section names the text and its size.
        dataset: where training text comes from, if that is named.
    """
    compress, length = recipe.compress, recipe.evaluation_length
    sequences = max(compress.calibration_tokens // length, 1)
    if compress.calibration == "none":
        return None
    if compress.calibration == "self":
        return calibrate(network, sample_text(network, sequences, length + 1), "self")
    assert dataset is not None
    calibration = calibrate(network, _windows(dataset, sequences, length), "train")
    if not compress.effort:
        return calibration
    wanted = len(turns(calibration.sensitivities)) * compress.effort * sequences_per_step(length)
    # Evenly from the whole text, as the steps of every turn should be.
    mixed = torch.randperm(wanted, generator=torch.Generator().manual_seed(0))
    return replace(calibration, text=_windows(dataset, wanted, length)[mixed])


def _windows(dataset: Dataset, count: int, length: int) -> Tensor:
    """Sequences (count, length + 1) int64 of training text, evenly from all of it."""
    stream = dataset.train_stream()
    starts = [index * stream.total // count for index in range(count)]
    return torch.stack([torch.from_numpy(stream.take(at, length + 1).astype(np.int64)) for at in starts])


def calibrate(network: GPT, tokens: Tensor, source: str, seed: int = 0) -> Calibration:
    """Measure the sensitivity of every matrix of a model.

    Args:
        network: in float32; its weights and mode are left as they were.
        tokens: calibration text as sequences (N, T + 1) int64.
        source: "train" or "self", recorded with the text's size and digest.
        seed: of the labels drawn from the model.
    """
    collector, training = _Collector(network), network.training
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    # Only gradients of activations are wanted; those of the weights would be half of the work.
    network.requires_grad_(False)
    try:
        for batch in tokens.split(_SEQUENCES_AT_ONCE):
            collector.run(batch[:, :-1], generator)
    finally:
        network.train(training)
        for parameter in trained:
            parameter.requires_grad_()
        collector.remove()
    digest = hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
    described = {"source": source, "tokens": tokens[:, 1:].numel(), "sha256": digest[:32]}
    return Calibration(collector.sensitivities(), tokens, described)


@torch.no_grad()
def sample_text(network: GPT, sequences: int, length: int, seed: int = 0) -> Tensor:
    """Text the model writes itself: (sequences, length) int64, each beginning with a random token.

    Every token takes a forward pass over what is written so far.
    """
    generator = torch.Generator().manual_seed(seed)
    written = torch.randint(network.config.vocab_size, (sequences, 1), generator=generator)
    while written.size(1) < length:
        logits = network.project(network.hidden(written)[:, -1])
        following = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        written = torch.cat([written, following], dim=1)
    return written


class _Collector:
    """Hooks that add up moments while text passes through a model, forward and backward."""

    def __init__(self, network: GPT) -> None:
        self.network = network
        self.tokens = 0
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._used: dict[str, Tensor] = {}
        self._wanted: dict[str, Tensor] = {}
        self._hidden = self._logits = torch.zeros(())
        self._input, self._moments = torch.zeros(()), torch.zeros(())
        self._handles = []
        for name, module in network.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                hook = self._linear_hook if isinstance(module, nn.Linear) else self._table_hook
                self._handles.append(module.register_forward_hook(hook(f"{name}.weight")))

    def run(self, tokens: Tensor, generator: torch.Generator) -> None:
        """Add the statistics of tokens (B, T) int64."""
        hidden = self.network.hidden(tokens)
        logits = self.network.project(hidden)
        chances = logits.detach().flatten(0, 1).softmax(dim=-1)
        labels = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum").backward()
        # The output layer is no module: its outputs' gradient through the softcap is known in closed form.
        capped = logits.detach().flatten(0, 1)
        slope = 1 - (capped / cap_of(capped, self.network.softcap())).square()
        chances[torch.arange(len(labels)), labels] -= 1
        flat = hidden.detach().flatten(0, 1)
        self._hidden = self._hidden + flat.T @ flat
        self._logits = self._logits + (chances * slope).square().sum(dim=0)
        self.tokens += tokens.numel()

    def sensitivities(self) -> dict[str, Sensitivity]:
        """Everything collected, as means over the tokens."""
        count = max(self.tokens, 1)
        found: dict[str, Sensitivity] = {}
        for name, moments in self._inputs.items():
            found[name] = Sensitivity([self._outputs[name] / count], [moments / count])
        for name, used in self._used.items():
            found[name] = Sensitivity([(used + _UNSEEN) / count], [self._wanted[name] / count])
        output = found["token_embedding.weight"]
        output.rows.append(self._logits / count)
        output.columns.append(self._hidden / count)
        return found

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _linear_hook(self, name: str) -> Callable[..., None]:
        def see(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if inputs[0] is not self._input:
                # Query, key and value read the same input one after the other.
                x = inputs[0].detach().flatten(0, -2)
                self._input, self._moments = inputs[0], x.T @ x
            _add(self._inputs, name, self._moments)
            output.register_hook(
                lambda grad: _add(self._outputs, name, grad.flatten(0, -2).square().sum(dim=0))
            )

        return see

    def _table_hook(self, name: str) -> Callable[..., None]:
        def see(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            rows = module.get_parameter("weight").size(0)
            _add(self._used, name, torch.bincount(inputs[0].flatten(), minlength=rows).float())

            def learn(grad: Tensor) -> None:
                flat = grad.flatten(0, -2)
                # A row's gradient is that of each of its uses: per use, not per token of the text.
                _add(self._wanted, name, flat.T @ flat)

            output.requires_grad_().register_hook(learn)

        return see


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
