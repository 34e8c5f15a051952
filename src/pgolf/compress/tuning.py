"""Rounding in turn: what is not rounded yet learns to make good what is.

``gptq.py`` makes errors good within a matrix, as its inputs see them. Here the matrices are rounded some at a
time, the embeddings first, then layer after layer; each time all that is still exact, and the vectors, take
some steps towards the predictions of the model as it was, on training text (distillation, Hinton et al. 2015,
arXiv:1503.02531). To tune what is left after each part is rounded is the way of QuIP# (Tseng et al. 2024,
arXiv:2402.04396).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pgolf.compress.stored import Stored, dequantize
from pgolf.model.gpt import GPT
from pgolf.model.load import model_from
from pgolf.recipe.recipe import Recipe

# Of a tensor's root mean square: how far an entry moves in the first steps after a part is rounded.
_RATE = 0.01
_LEAST_SPREAD = 1e-3
# About as many targets as a step reads.
_TARGETS = 2048
_AT_ONCE = 8


def turns(names: Iterable[str]) -> list[list[str]]:
    """The matrices that are rounded together, those of a module, in the order of their turns."""
    parts: dict[str, list[str]] = {}
    for name in sorted(names, key=_with_numbers):
        parts.setdefault(name.rpartition(".")[0].rpartition(".")[0], []).append(name)
    return sorted(parts.values(), key=lambda part: part[0].startswith("cores."))


def sequences_per_step(length: int) -> int:
    """Sequences of so many targets that a step reads."""
    return max(_TARGETS // length, 1)


class Tuner:
    """A model some of whose matrices are rounded, and what it should predict.

    Args:
        state: the exact weights, float32.
        recipe: the model's, and how many steps follow each turn (``compress.effort``).
        text: training text as sequences (N, T + 1) int64, read in order, from the start again where it ends.
    """

    def __init__(self, state: Mapping[str, Tensor], recipe: Recipe, text: Tensor) -> None:
        # Takes seconds, which who does not tune need not wait.
        from torch.optim import Adam

        self._teacher = model_from(recipe.model, state).eval().requires_grad_(False)
        self._student = model_from(recipe.model, state).eval()
        self._steps, self._text, self._next = recipe.compress.effort, text, 0
        self._parameters = dict(self._student.named_parameters())
        groups = []
        for value in self._parameters.values():
            spread = float(value.detach().square().mean().sqrt())
            groups.append({"params": [value], "rate": _RATE * max(spread, _LEAST_SPREAD)})
        self._optimizer = Adam(groups, betas=(0.9, 0.95))

    def weights(self) -> dict[str, Tensor]:
        """Every weight as it is now, rounded or tuned."""
        return {name: value.detach() for name, value in self._student.state_dict().items()}

    def fix(self, rounded: Mapping[str, Stored]) -> None:
        """Put rounded matrices in, for good, and tune what is left."""
        with torch.no_grad():
            for name, value in rounded.items():
                self._parameters[name].copy_(dequantize(value))
                self._parameters[name].requires_grad_(False)
                self._parameters[name].grad = None
        size = sequences_per_step(self._text.size(1) - 1)
        for step in range(self._steps):
            at = torch.arange(self._next, self._next + size) % len(self._text)
            self._next += size
            for group in self._optimizer.param_groups:
                group["lr"] = group["rate"] * (1 - step / self._steps)
            self._optimizer.zero_grad(set_to_none=True)
            inputs = self._text[at, :-1]
            loss = _divergence(self._teacher, self._student, inputs) / inputs.numel()
            loss.backward()
            self._optimizer.step()

    @torch.no_grad()
    def divergence(self, stored: Mapping[str, Stored], tokens: Tensor) -> float:
        """Mean Kullback-Leibler divergence of a stored model from the exact one, in nats per target.

        Args:
            tokens: sequences (N, T + 1) int64.
        """
        packed = {name: dequantize(value) for name, value in stored.items()}
        network = model_from(self._student.config, packed).eval()
        parts = tokens[:, :-1].split(_AT_ONCE)
        total = sum(float(_divergence(self._teacher, network, part)) for part in parts)
        return total / tokens[:, 1:].numel()


def _with_numbers(name: str) -> list[str]:
    # Core 10 comes after core 9.
    return [part.zfill(4) if part.isdigit() else part for part in name.split(".")]


def log_chances(network: GPT, inputs: Tensor) -> Tensor:
    """Log probabilities (N, T, V) of what follows each of the inputs (N, T) int64, in nats."""
    return network.project(network.hidden(inputs)).log_softmax(dim=-1)


def _divergence(exact: GPT, changed: GPT, inputs: Tensor) -> Tensor:
    """Sum over all targets, in nats: a scalar; inputs are (N, T) int64."""
    with torch.no_grad():
        wanted = log_chances(exact, inputs)
    return (wanted.exp() * (wanted - log_chances(changed, inputs))).sum()
