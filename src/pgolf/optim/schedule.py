"""Learning rate, momentum and weight decay over the steps."""

from __future__ import annotations

import math
from itertools import pairwise

from pgolf.model.shape import LoopSection
from pgolf.recipe.sections import OptimSection, TrainSection

_REWARMING_STEPS = 32


def lr_scale(train: TrainSection, step: int, elapsed_seconds: float) -> float:
    """Factor on all learning rates before ``step`` (0-based): 1, then down to the floor over the warmdown.

    With ``train.wallclock_seconds`` the warmdown is placed by time: it takes its fraction of it, or starts
    when the remaining time equals ``warmdown_steps`` of the mean step so far.
    """
    if not train.warmdown:
        return 1.0
    if train.warmdown_fraction:
        remaining = (1 - progress(train, step, elapsed_seconds)) / train.warmdown_fraction
    elif train.wallclock_seconds:
        if not step:
            return 1.0
        warmdown_seconds = train.warmdown_steps * elapsed_seconds / step
        remaining = max(train.wallclock_seconds - elapsed_seconds, 0.0) / max(warmdown_seconds, 1e-12)
    else:
        # The warmdown may be longer than the whole run: then it is under way from the first step.
        remaining = (train.steps - step) / train.warmdown_steps
    remaining = min(max(remaining, 0.0), 1.0)
    linear = train.warmdown_shape == "linear"
    return max(remaining if linear else 0.5 * (1 - math.cos(math.pi * remaining)), train.lr_floor)


def remark(train: TrainSection) -> str:
    """A line about a warmdown that is longer than the training; empty for others."""
    if train.wallclock_seconds or not train.warmdown > train.steps > 0:
        return ""
    return (
        f"train.warmdown_steps {train.warmdown_steps:,} is more than train.steps {train.steps:,}: the "
        f"learning rate begins at {lr_scale(train, 0, 0.0):.2f} of its height and falls from the first step"
    )


def progress(train: TrainSection, step: int, elapsed_seconds: float) -> float:
    """Part of training (0 to 1) that is done before ``step`` (0-based): of the steps, or of the time.

    What is further along counts, for training ends by either.
    """
    done = step / max(train.steps, 1)
    return max(done, elapsed_seconds / train.wallclock_seconds) if train.wallclock_seconds else done


def stages(train: TrainSection, loop: LoopSection) -> tuple[tuple[float, float, int, int], ...]:
    """The parts of training in which nothing about the forward pass changes, in order.

    Each has its begin and its end (0 to 1), passes through looped layers, and targets per sequence.
    """
    changes = (*(begin for begin, _ in loop.stages()), *(end for _, end in train.lengths))
    found = []
    for begin, end in pairwise(sorted({0.0, *changes, 1.0})):
        middle = (begin + end) / 2
        found.append((begin, end, loop.passes_at(middle), train.length_at(middle)))
    return tuple(found)


def rewarming(steps: int) -> float:
    """Factor on all learning rates so many steps after the sequence length changed: k / 32 in the k-th."""
    return min((steps + 1) / _REWARMING_STEPS, 1.0)


def muon_weight_decay(optim: OptimSection, progress: float) -> float:
    """Muon's weight decay once this part of training (0 to 1) is done; linear in its taper."""
    start = optim.muon_weight_decay_taper_start
    tapered = min(max((progress - start) / (1 - start), 0.0), 1.0)
    return optim.muon_weight_decay * (1 + (optim.muon_weight_decay_taper - 1) * tapered)


def muon_momentum(optim: OptimSection, step: int) -> float:
    """Muon's momentum at ``step`` (0-based), rising linearly over its warm-up."""
    if not optim.muon_momentum_warmup_steps:
        return optim.muon_momentum
    done = min(step / optim.muon_momentum_warmup_steps, 1.0)
    return (1 - done) * optim.muon_momentum_start + done * optim.muon_momentum
