"""Row-normalised Muon and clipping by standard deviations give the figures of the best public runs.

``data/frontier_steps.json`` holds what the optimizer and the quantizer of pull requests #1855 and #2135
(equal there) computed from these very weights, gradients and inputs on a CPU, their bfloat16 replaced by
float32 and their Newton-Schulz polynomials by the one of "quintic" (docs/parity.md). Tolerances: weights
1e-4, steps 1e-3 relative, codes equal. Of a run of 200 steps it holds the sequence length and the rate's
factor as #2014's own functions give them, and the factor on Muon's weight decay of #1729's.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pgolf.compress.calibrate import Sensitivity
from pgolf.compress.scheme import quantize_state
from pgolf.compress.stored import Quantized
from pgolf.optim.muon import Muon
from pgolf.optim.schedule import lr_scale, muon_weight_decay, progress, rewarming
from pgolf.recipe.recipe import load_recipe

PATH = Path(__file__).parent / "data" / "frontier_steps.json"
SHAPES = ((8, 16), (16, 8), (12, 12))
# Bits and standard deviations: three groups of #1855 and #2135, both of their embeddings.
CLIPS = {
    "attention": (6, 13.0),
    "mlp": (6, 11.5),
    "other": (6, 12.85),
    "embedding": (7, 14.0),
    "embedding in 8 bits": (8, 20.0),
}
NAMES = {
    "attention": "cores.0.attention.query.weight",
    "mlp": "cores.0.mlp.up.weight",
    "other": "value_embedding.project.weight",
    "embedding": "token_embedding.weight",
}


def figures() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))
    return found


def wave(code: int, shape: tuple[int, ...], scale: float) -> Tensor:
    entries = np.arange(math.prod(shape), dtype=np.float64)
    values = scale * np.sin(entries * (0.71 + 0.0003 * code) + code)
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def gradient(code: int, shape: tuple[int, int]) -> Tensor:
    """Rows of very different size."""
    flat = wave(17 * code + shape[0], shape, 1.0)
    return torch.linspace(0.05, 2.0, shape[0])[:, None] * (flat + flat.roll(1, -1) ** 3)


def heavy_tailed(code: int) -> Tensor:
    flat = wave(3 + code, (8, 96), 1.0)
    return (0.01 * flat + 0.2 * flat**9) * torch.linspace(0.1, 1.5, 8)[:, None]


def inputs() -> Tensor:
    """Correlated columns, some used more than others."""
    x = wave(41, (256, 96), 1.0)
    x = x + 0.3 * x.roll(1, -1) + 0.2 * wave(7, (256, 1), 1.0)
    return x * torch.linspace(0.3, 2.0, 96)


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_with_rows_normalised_before(shape: tuple[int, int]) -> None:
    weights = [nn.Parameter(wave(5 + index, shape, 0.2)) for index in range(2)]
    group = {"params": weights, "lr": 0.026, "weight_decay": 0.095}
    muon = Muon([group], 0.97, 5, torch.float32, row_norm="before")
    for step in range(3):
        for index, weight in enumerate(weights):
            weight.grad = gradient(3 * index + step, shape)
        muon.step()
    expected = figures()["muon"]["x".join(map(str, shape))]
    assert weights[1].detach()[:, 3].tolist() == pytest.approx(expected["column"], abs=1e-4)
    for weight, sums in zip(weights, expected["row_sums"], strict=True):
        assert weight.detach().double().abs().sum(1).tolist() == pytest.approx(sums, rel=1e-4)


@pytest.mark.parametrize("case", CLIPS)
def test_steps_from_standard_deviations_and_compensated_codes(case: str) -> None:
    (bits, deviations), group, columns = CLIPS[case], case.split()[0], inputs()
    settings = ["compress.scheme=rowwise", "compress.keep_below=0", "compress.clip=std"]
    by_group = [f"compress.clip_std={{{group}={deviations}}}", f"compress.bits.{group}={bits}"]
    compress = load_recipe("tiny", [*settings, *by_group]).compress
    name, weight = NAMES[group], heavy_tailed(bits)
    moments = Sensitivity([torch.ones(len(weight))], [columns.T @ columns])
    found = quantize_state({name: weight}, compress, sensitivities={name: moments})[name]
    assert isinstance(found, Quantized)
    expected = figures()["std_clip"][case]
    assert found.scale.tolist() == pytest.approx(expected["steps"], rel=1e-3)
    assert found.codes.tolist() == expected["codes"]


def test_lengths_rates_and_weight_decay_over_a_run() -> None:
    schedule = "train.length_schedule=[[1024, 0.1], [2048, 0.7], [3072, 1.0]]"
    settings = [
        "train.steps=200",
        "train.warmdown_steps=0",
        "train.warmdown_fraction=0.85",
        "train.lr_floor=0.1",
    ]
    lengths = ["train.sequence_length=3072", "train.batch_tokens=98304", "train.micro_batches=1", schedule]
    recipe = load_recipe("seed_1232", [*settings, *lengths, "optim.muon_weight_decay_taper=0.5"])
    changed, last, found = 0, 1024, {}
    for step in range(200):
        done = progress(recipe.train, step, 0.0)
        length = recipe.train.length_at(done)
        if length != last:
            changed, last = step, length
        factor = rewarming(step - changed) if changed else 1.0
        decay = muon_weight_decay(recipe.optim, done) / recipe.optim.muon_weight_decay
        found[str(step)] = length, factor * lr_scale(recipe.train, step, 0.0), decay
    for at, (length, rate, decay) in figures()["schedule"].items():
        assert found[at][0] == length
        assert found[at][1:] == pytest.approx((rate, decay), abs=1e-6)
