"""What a recipe will cost, before anything is trained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pgolf.compress.code_size import code_bytes
from pgolf.compress.pack import predicted_bytes
from pgolf.model.gpt import GPT
from pgolf.optim.routing import groups_of, quantizer_group
from pgolf.recipe import Recipe


@dataclass(frozen=True)
class Estimate:
    """Costs of a recipe; see ``estimate`` for what is counted."""

    parameters: int
    parameters_by_group: dict[str, int]
    artifact_bytes: int
    code_bytes: int
    cap: int
    forward_flops_per_token: int
    training_flops_per_token: int
    training_memory_cpu: int
    training_memory_cuda: int

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """The fields as labelled lines."""
        groups = ", ".join(f"{name} {count:,}" for name, count in self.parameters_by_group.items())
        total = self.artifact_bytes + self.code_bytes
        return [
            ("parameters", f"{self.parameters:,} ({groups})"),
            ("artifact", f"about {self.artifact_bytes:,} bytes"),
            ("with code", f"about {total:,} of {self.cap:,} bytes"),
            (
                "FLOPs per token",
                f"{self.forward_flops_per_token:,} forward, {self.training_flops_per_token:,} training",
            ),
            (
                "training memory",
                f"about {_gib(self.training_memory_cpu)} on the CPU, {_gib(self.training_memory_cuda)} on CUDA",
            ),
        ]


def estimate(recipe: Recipe) -> Estimate:
    """Count parameters and predict bytes, floating-point operations and memory.

    FLOPs: a multiplication and an addition are two. Counted are all matrix products, the output layer and
    attention (causal, so half of the square); looking up embeddings is free. Training takes three times
    the forward pass. Memory (bytes): weights, gradients, optimizer state, averages, and the activations of
    one micro-batch that the backward pass needs.
    """
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in GPT(recipe.model).named_parameters()}
    by_group: dict[str, int] = {}
    for name, shape in shapes.items():
        group = quantizer_group(name)
        by_group[group] = by_group.get(group, 0) + shape.numel()
    forward = _forward_flops(recipe, shapes)
    return Estimate(
        parameters=sum(by_group.values()),
        parameters_by_group=by_group,
        artifact_bytes=predicted_bytes(recipe),
        code_bytes=code_bytes(),
        cap=recipe.compress.cap,
        forward_flops_per_token=forward,
        training_flops_per_token=3 * forward,
        training_memory_cpu=_memory(recipe, shapes, cuda=False),
        training_memory_cuda=_memory(recipe, shapes, cuda=True),
    )


def _forward_flops(recipe: Recipe, shapes: dict[str, torch.Size]) -> int:
    model = recipe.model
    flops = 0
    for name, shape in shapes.items():
        if len(shape) != 2 or name.startswith(("skips.", "layers.")) or ".table." in name:
            continue
        uses = model.layers / model.cores if name.startswith("cores.") else 1
        flops += int(2 * shape.numel() * uses)
    # Scores and weighted values: two products of width D over half of the length, on average.
    return flops + 2 * 2 * model.width * model.layers * recipe.train.sequence_length // 2


def _memory(recipe: Recipe, shapes: dict[str, torch.Size], cuda: bool) -> int:
    """Rough: the activations are the tensors that autograd keeps, counted from the layer's formulas."""
    model, train, average = recipe.model, recipe.train, recipe.average.kind
    state = 0
    for name, shape in shapes.items():
        copies = 2 + (1 if groups_of(name)[0] == "matrix" else 2)  # weight, gradient, momentum or two moments
        copies += {"none": 0, "ema": 1, "swa": 1, "swa_of_ema": 2}[average]
        state += 4 * copies * shape.numel()
    kv_width = model.kv_heads * model.head_width
    # Per token and layer: the stream at eight points, q, k and v raw, normed and rotated, the MLP at three.
    per_layer = 8 * model.width + 4 * model.width + 6 * kv_width + 3 * model.mlp_hidden
    # Logits: product, tanh, capped, log-softmax and its gradient.
    per_token = model.layers * per_layer + 5 * model.vocab_size + 6 * model.width
    tokens = train.batch_tokens // train.micro_batches
    # Autocast halves the activations but keeps the losses in float32.
    size = 2 * model.layers * per_layer + 4 * (5 * model.vocab_size + 6 * model.width) if cuda else 4 * per_token
    return state + tokens * size


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{math.ceil(size / 2**20)} MiB"
