"""What a recipe whose keys are all well-typed can still get wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pgolf.model.section import ModelSection
from pgolf.recipe.sections import Sections, TrainSection, TttSection

# Far beyond what pgolf is for, and near enough that whatever these keys build or count ends soon.
_LARGEST = {
    "model.layers": 1 << 8,
    **dict.fromkeys(("model.width", "model.mlp_hidden"), 1 << 20),
    **dict.fromkeys(("model.bigram.width", "model.value_embedding.width"), 1 << 20),
    **dict.fromkeys(("model.refiner_latent", "model.refiner_hidden"), 1 << 20),
    "model.bigram.buckets": 1 << 28,
    "model.dense.window": 1 << 8,
    "model.loop.passes": 1 << 6,
    "train.steps": 1 << 40,
    "train.warmup_steps": 1 << 16,
    "train.batch_tokens": 1 << 30,
    **dict.fromkeys(("train.sequence_length", "evaluate.sequence_length"), 1 << 20),
    "optim.newton_schulz_steps": 1 << 8,
    "compress.calibration_tokens": 1 << 28,
    "compress.effort": 1 << 16,
    "evaluate.batch": 1 << 20,
    **dict.fromkeys(("ttt.epochs", "ttt.lora.epochs", "ttt.phased.phases"), 1 << 20),
}
_LARGEST_CHUNK = 1 << 20
# Of every other whole number: what a float holds exactly, and a file's index too.
_LARGEST_OTHER = 1 << 53


def contradictions(recipe: Sections) -> list[str]:
    """Everything in a well-typed recipe that is too large or cannot work together, one phrase each."""
    if too_large := _too_large(recipe.model_dump(), ""):
        return too_large
    of_the_rest = (_run_contradictions, _schedule_contradictions, _adapter_contradictions)
    return _model_contradictions(recipe.model) + [line for look in of_the_rest for line in look(recipe)]


def _too_large(tree: dict[str, Any], prefix: str) -> list[str]:
    problems = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            problems += _too_large(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            if any(isinstance(item, int) and abs(item) > _LARGEST_OTHER for item in value):
                problems.append(f"{name} must be at most {_LARGEST_OTHER:,}")
        elif isinstance(value, int) and value > (largest := _LARGEST.get(name, _LARGEST_OTHER)):
            # Not the number itself: it may have a million digits.
            problems.append(f"{name} must be at most {largest:,}")
    return problems


def _model_contradictions(model: ModelSection) -> list[str]:
    problems = []
    if model.bos >= model.vocab_size:
        problems.append(f"model.bos {model.bos} is no token of model.vocab_size {model.vocab_size}")
    if model.width % model.heads:
        problems.append(f"model.width {model.width} is not a multiple of model.heads {model.heads}")
    elif model.head_width % 2:
        problems.append(f"model.width / model.heads = {model.head_width} must be even for rotary embeddings")
    elif model.rope_dims > model.head_width or model.rope_dims % 2:
        problems.append(
            f"model.rope_dims {model.rope_dims} must be even and at most {model.head_width}, the head"
        )
    if model.heads % model.kv_heads:
        problems.append(f"model.heads {model.heads} is not a multiple of model.kv_heads {model.kv_heads}")
    if model.rope_train_length and (model.rope_dims or model.head_width) <= 2:
        problems.append("model.rope_dims must exceed 2 where model.rope_train_length rescales the base")
    if model.unique_layers > model.layers:
        problems.append(f"model.unique_layers {model.unique_layers} exceeds model.layers {model.layers}")
    return problems + model.problems()


def _run_contradictions(recipe: Sections) -> list[str]:
    problems = []
    train, compress = recipe.train, recipe.compress
    unit = train.micro_batches * train.sequence_length
    if train.batch_tokens % unit:
        problems.append(
            f"train.batch_tokens {train.batch_tokens} is not a multiple of "
            f"train.micro_batches * train.sequence_length = {unit}"
        )
    if recipe.evaluate.stride > recipe.evaluation_length:
        problems.append(
            f"evaluate.stride {recipe.evaluate.stride} exceeds the window of {recipe.evaluation_length} "
            "targets"
        )
    if recipe.ttt.method == "full" and recipe.ttt.chunk_tokens < recipe.evaluation_length:
        problems.append(
            f"ttt.chunk_tokens {recipe.ttt.chunk_tokens} is shorter than a window of "
            f"{recipe.evaluation_length} targets, so nothing would be trained on"
        )
    for group, bits in compress.bits.model_dump().items():
        if bits != 16 and not 2 <= bits <= 8:
            problems.append(f"compress.bits.{group} is {bits}; it must be 2 to 8, or 16 for fp16")
    if recipe.qat.enabled and recipe.qat.grid == "export":
        if recipe.qat.soft_round:
            problems.append(
                "qat.soft_round belongs to qat.grid int6; export rounds to exactly what is stored"
            )
        if compress.scheme == "budget" and compress.low_rank:
            problems.append("compress.low_rank is not part of what qat.grid export rounds to; set it to 0")
        if compress.effort:
            problems.append("compress.effort rounds anew what qat.grid export has rounded; set it to 0")
    if compress.effort and (compress.scheme, compress.calibration) != ("budget", "train"):
        problems.append(
            "compress.effort tunes on training text by the steps of the budget scheme; it needs "
            "compress.scheme=budget and compress.calibration=train"
        )
    if not compress.level:
        problems.append("compress.level is empty; name at least one level")
    highest = {"range": 22, "zstd": 22, "lzma": 9, "none": 22}[compress.codec]
    if any(not 1 <= level <= highest for level in compress.level):
        problems.append(f"compress.level {list(compress.level)}: {compress.codec} has levels 1 to {highest}")
    if recipe.ttt.frozen_blocks > recipe.model.layers:
        problems.append(
            f"ttt.frozen_blocks {recipe.ttt.frozen_blocks} exceeds model.layers {recipe.model.layers}"
        )
    return problems


def _schedule_contradictions(recipe: Sections) -> list[str]:
    problems = []
    train, average, default = recipe.train, recipe.average, type(recipe)()
    if train.warmdown_fraction and train.warmdown_steps not in (0, default.train.warmdown_steps):
        problems.append(
            f"train.warmdown_steps {train.warmdown_steps} and train.warmdown_fraction "
            f"{train.warmdown_fraction} both say how long the warmdown is; set one of them to 0"
        )
    if recipe.qat.enabled and recipe.qat.threshold <= train.lr_floor > 0:
        problems.append(
            f"qat.threshold {recipe.qat.threshold} is not above train.lr_floor {train.lr_floor}, so fake "
            "quantization would never begin"
        )
    if average.kind in ("swa", "swa_of_ema") and average.start_scale <= train.lr_floor > 0:
        problems.append(
            f"average.start_scale {average.start_scale} is not above train.lr_floor {train.lr_floor}, so no "
            "snapshot would be taken"
        )
    if average.window and average.decay not in (0, default.average.decay):
        problems.append(
            f"average.decay {average.decay} and average.window {average.window} both say how the EMA "
            "forgets; set one of them to 0"
        )
    if average.window and train.wallclock_seconds:
        problems.append(
            "average.window is a part of train.steps, and train.wallclock_seconds ends training earlier; "
            "set average.decay instead"
        )
    return problems + (_length_contradictions(train) if train.length_schedule else [])


def _length_contradictions(train: TrainSection) -> list[str]:
    key, problems = "train.length_schedule", []
    lengths, shares = zip(*train.length_schedule, strict=True)
    largest = _LARGEST["train.sequence_length"]
    if not all(1 <= length <= largest for length in lengths):
        return [f"{key}: a length must be 1 to {largest:,}"]
    if max(lengths) != train.sequence_length:
        problems.append(
            f"{key}: its longest, {max(lengths)}, must be train.sequence_length, {train.sequence_length}"
        )
    for length in dict.fromkeys(lengths):
        if train.batch_tokens % (unit := train.micro_batches * length) and length != train.sequence_length:
            problems.append(
                f"{key}: train.batch_tokens {train.batch_tokens} is not a multiple of train.micro_batches "
                f"* {length} = {unit}"
            )
    if any(later <= share for share, later in pairwise((0.0, *shares))):
        problems.append(f"{key}: the parts of training {list(shares)} must rise, from above 0")
    if shares[-1] != 1:
        problems.append(f"{key}: it ends at {shares[-1]} of training; its last part must be 1")
    return problems


def _adapter_contradictions(recipe: Sections) -> list[str]:
    ttt, model = recipe.ttt, recipe.model
    problems, all_frozen = [], ttt.frozen_blocks >= model.cores
    if ttt.only == "vectors" and ttt.method in ("full", "phased") and all_frozen:
        problems.append(
            f"ttt.frozen_blocks {ttt.frozen_blocks} freezes all {model.cores} blocks, so ttt.only vectors "
            "has nothing to train"
        )
    if ttt.method == "full":
        return problems
    if not ttt.lora.targets:
        problems.append("ttt.lora.targets is empty; name at least one matrix")
    if len(set(ttt.lora.targets)) != len(ttt.lora.targets):
        problems.append("ttt.lora.targets names a matrix twice")
    kv_width = model.kv_heads * model.head_width
    other_sides = {
        **dict.fromkeys(("query", "output", "beside_attention", "beside_mlp"), model.width),
        **{"key": kv_width, "value": kv_width, "head": model.vocab_size},
    }
    for target in dict.fromkeys(each for each in ttt.lora.targets if each != "vectors"):
        smallest = min(model.width, other_sides.get(target, model.mlp_hidden))
        if ttt.lora.rank > smallest:
            problems.append(
                f"ttt.lora.rank {ttt.lora.rank} exceeds {smallest}, the smaller side of the {target} matrices"
            )
    if ttt.lora.per_pass and model.loop.passes == 1 and model.cores == model.layers:
        problems.append(
            "ttt.lora.per_pass needs matrices that are used several times; set model.loop.passes or "
            "model.unique_layers, or leave it false"
        )
    if ttt.lora.chunk_schedule:
        problems += _chunk_contradictions(ttt)
    if all_frozen and "head" not in ttt.lora.targets:
        problems.append(
            f"ttt.frozen_blocks {ttt.frozen_blocks} freezes all {model.cores} blocks, so ttt.method "
            f"{ttt.method} has no matrix to adapt"
        )
    return problems


def _chunk_contradictions(ttt: TttSection) -> list[str]:
    key, problems = "ttt.lora.chunk_schedule", []
    sizes, ends = zip(*ttt.lora.chunk_schedule, strict=True)
    if ttt.method == "lora":
        problems.append(f"{key} goes by the position in a document, which ttt.method lora does not know")
    if not all(1 <= size <= _LARGEST_CHUNK for size in sizes):
        problems.append(f"{key}: a chunk must have 1 to {_LARGEST_CHUNK:,} targets")
    if any(later <= end for end, later in pairwise((0, *ends[:-1]))):
        problems.append(f"{key}: the positions {list(ends)} must rise, from above 0")
    if ends[-1]:
        problems.append(f"{key}: it ends at position {ends[-1]}; its last part must have 0, for no end")
    return problems
