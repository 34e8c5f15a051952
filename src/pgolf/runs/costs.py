"""What a recipe will cost, by its model and by torch; and whether that is there."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from pgolf.compress.code_size import code_bytes
from pgolf.compress.container import MAX_ENTRIES
from pgolf.compress.pack import predicted_bytes
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.model.load import parameter_shapes
from pgolf.model.loss import chunked_losses, loss_form, target_losses
from pgolf.model.shape import schedule
from pgolf.optim.place import set_formats
from pgolf.optim.routing import quantizer_group, row_of
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.processes import gib, machine_memory
from pgolf.train.flops import forward_flops, training_flops


def costs(recipe: Recipe) -> dict[str, Any]:
    """Count parameters and predict bytes, floating-point operations and memory, as JSON values: the fields of
    ``Estimate`` that follow from the recipe alone.

    Bytes: without a cap. FLOPs: see ``forward_flops`` and ``training_flops``.

    Memory (bytes): weights, gradients, optimizer state, averages, what autograd keeps of one micro-batch, and
    the temporary tensors of the backward pass; not what Python and torch take themselves (about 0.3 GB).
    Measured peaks on the CPU were 0.86 to 1.15 times it. For CUDA: eager bf16 autocast on one device. On an
    H200 with torch 2.11 ``seed_1232`` took 1.04 times it, and 0.73 times it compiled.
    """
    shapes = parameter_shapes(recipe.model)
    by_group: dict[str, int] = {}
    for name, shape in shapes.items():
        group = quantizer_group(name)
        by_group[group] = by_group.get(group, 0) + shape.numel()
    return {
        "parameters_by_group": by_group,
        "artifact_bytes": predicted_bytes(recipe),
        "code_bytes": code_bytes(recipe.memory.enabled),
        "forward_flops_per_token": forward_flops(recipe),
        "training_flops_per_token": training_flops(recipe),
        "training_memory_cpu": _memory(recipe, shapes, cuda=False),
        "training_memory_cuda": _memory(recipe, shapes, cuda=True),
        "counts_memory": _counts(recipe),
    }


def _counts(recipe: Recipe) -> int:
    if not recipe.memory.enabled:
        return 0
    from pgolf.memory.memory import memory_bytes  # Compiles functions.

    return memory_bytes(recipe.memory, recipe.model.vocab_size, 1 << 26)


def check_size(recipe: Recipe) -> None:
    """PgolfError where a recipe has more parameters than an artifact can hold: before any work with it."""
    count = sum(shape.numel() for shape in parameter_shapes(recipe.model).values())
    if count > MAX_ENTRIES:
        raise PgolfError(
            f"recipe {recipe.name}: its model has {count:,} parameters, and an artifact holds at most "
            f"{MAX_ENTRIES:,}; lower model.width, model.mlp_hidden, model.layers or model.bigram.buckets"
        )


def check_memory(recipe: Recipe, device: torch.device) -> None:
    """PgolfError where training needs more memory than the device has.

    Counted is what is needed in any case: weights, gradients and momentum, a micro-batch, and of it what
    enters each layer. On the CPU twice the machine's memory is allowed, for there may be some on a disk.
    """
    on_cuda = device.type == "cuda"
    count = sum(shape.numel() for shape in parameter_shapes(recipe.model).values())
    tokens = recipe.train.batch_tokens // recipe.train.micro_batches
    depth = len(schedule(recipe.model))
    needed = 12 * count + tokens * (16 + (2 if on_cuda else 4) * recipe.model.width * depth)
    there = torch.cuda.get_device_properties(device).total_memory if on_cuda else machine_memory()
    if needed > (there if on_cuda else 2 * there):
        raise PgolfError(
            f"recipe {recipe.name}: training takes more than {gib(needed)}, and {device} has {gib(there)}; "
            "raise train.micro_batches, lower train.batch_tokens, or make the model smaller"
        )


def _memory(recipe: Recipe, shapes: dict[str, torch.Size], cuda: bool) -> int:
    average = recipe.average.kind
    state = 0
    for name, shape in shapes.items():
        # Weight, gradient, momentum or two moments.
        copies = 3 if row_of(name).optimizer == "matrix" else 4
        copies += {"none": 0, "ema": 1, "swa": 1, "swa_of_ema": 2}[average]
        # The exact weights beside the rounded ones.
        copies += recipe.qat.enabled and recipe.qat.grid == "export"
        state += 4 * copies * shape.numel()
    tokens, vocabulary = recipe.train.batch_tokens // recipe.train.micro_batches, recipe.model.vocab_size
    # In the backward pass: gradients of the MLP's hidden states, and of the logits' three forms; on CUDA the
    # output layer's products and their gradient instead, and next to nothing where logits come in chunks.
    plain = loss_form(tokens, vocabulary, torch.device("cpu")) == "plain"
    logits = 2 * 2 * vocabulary if cuda else 4 * 3 * vocabulary * plain
    temporary = logits + (2 if cuda else 4) * 4 * recipe.model.mlp_hidden
    return state + tokens * temporary + activation_bytes(recipe, mixed=cuda)


def activation_bytes(recipe: Recipe, mixed: bool) -> int:
    """Bytes that autograd keeps of one micro-batch for the backward pass, without weights; ``mixed``: as on
    CUDA, in bf16.

    The forward pass runs on fake tensors, which have shapes and no contents, so nothing is allocated and
    every option of the model is counted as it is. Fake quantization inside it (the int6 grid), if enabled, is
    active.
    """
    # Takes a second to import, and few commands need it.
    from torch._subclasses.fake_tensor import FakeTensorMode

    length = recipe.train.sequence_length  # The longest: what attention keeps does not shrink with it.
    sequences = recipe.train.batch_tokens // recipe.train.micro_batches // length
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    precision = torch.autocast("cpu", dtype=torch.bfloat16) if mixed else contextlib.nullcontext()
    # FlexAttention keeps of a document mask next to nothing; as a tensor it would be kept by every layer.
    model = recipe.model.model_copy(update={"document_mask": False}) if mixed else recipe.model
    with FakeTensorMode(), precision:
        network = GPT(model).train()
        if mixed:
            set_formats(network, recipe)
        network.fake_quant.active = recipe.qat.enabled and recipe.qat.grid == "int6"
        network.fake_quant.soft_round = recipe.qat.soft_round
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        tokens = torch.zeros(sequences, length, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # In one chunk: what is kept is the same, and there is no end to the chunks of a huge batch.
            # A GPU's kernel keeps no more than the chunks, whatever the size.
            losses, rows = chunked_losses if mixed else target_losses, tokens.numel()
            hidden, embedding = network.hidden(tokens).flatten(0, 1), network.token_embedding.weight
            losses(hidden, embedding, tokens.flatten(), network.softcap(), rows=rows).mean()
    return sum(kept[storage].untyped_storage().nbytes() for storage in kept.keys() - weights)
