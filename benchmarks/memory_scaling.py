"""How the gain of a memory falls as the model gets better, with a fit and an extrapolation.

    python benchmarks/memory_scaling.py runs/short runs/longer runs/longest --data data/web --at 1.1

Each argument is anything with weights of one model family: runs, artifacts, weights files, checkpoints. For
each the same validation targets are scored by the model alone in sliding windows, with a memory of the text
so far, and with one that has read training text first. The gain is fitted against the model's score in three
ways that all have a physical limit or none: a straight line, an exponential and a power law; the spread over
them, and over samples of documents drawn with replacement, is the uncertainty.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.compress.weights import load_weights
from pgolf.data.dataset import Text, open_dataset
from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.protocol import Recorded
from pgolf.memory.memory import Memory, Start
from pgolf.memory.stored import start_of
from pgolf.recipe.sections import MemorySection

Floats = NDArray[np.float64]
_BLOCK = 1024
_SAMPLES = 1000
_LEAST_GAIN = 1e-5
FORMS = ("line", "exponential", "power law")


def model_rows(weights: Path, tokens: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Log probabilities (n, V) of the n targets, in sliding windows."""
    loaded = load_weights(weights)
    scorer = build_scorer(loaded.model().eval(), loaded.recipe, "sliding")
    targets, rows, done = tokens[1:], [], 0
    scorer.begin(int(tokens[0]), len(targets))
    while done < len(targets):
        block = targets[done : done + scorer.wanted()]
        logs = scorer.distributions(torch.from_numpy(block[:-1].astype(np.int64)))
        rows.append(logs.detach().cpu().float().numpy())
        scorer.receive(Recorded(done, block))
        done += len(block)
    return np.concatenate(rows)


def with_memory(start: Start, tokens: NDArray[np.uint16], logs: NDArray[np.float32]) -> Floats:
    """Nats (n,) of each target by model and memory."""
    memory = Memory(MemorySection(), start, len(tokens))
    memory.receive(tokens[:1])
    nats = []
    for first in range(0, len(logs), _BLOCK):
        block = tokens[1 + first : 1 + first + _BLOCK]
        model = np.exp(logs[first : first + _BLOCK])
        model /= model.sum(axis=1, keepdims=True)
        nats.append(memory.losses(block, model))
        memory.receive(block, model)
    return np.concatenate(nats).astype(np.float64)


def by_document(nats: Floats, text: Text, bos: int) -> NDArray[np.float64]:
    """(documents, 2): bits and bytes of each document."""
    documents = np.cumsum(text.tokens[1:] == bos)
    bits = np.bincount(documents, nats / math.log(2))
    return np.stack([bits, np.bincount(documents, text.byte_counts.astype(np.float64))], axis=1)


def fitted(form: str, scores: Floats, gains: Floats, at: float) -> float:
    """The gain at a score, by least squares in the form's own coordinates."""
    positive = np.maximum(gains, _LEAST_GAIN)
    if form == "line":
        slope, first = np.polyfit(scores, gains, 1)
        return float(first + slope * at)
    if form == "exponential":
        slope, first = np.polyfit(scores, np.log(positive), 1)
        return float(np.exp(first + slope * at))
    slope, first = np.polyfit(np.log(scores), np.log(positive), 1)
    return float(np.exp(first + slope * np.log(at)))


def extrapolated(alone: Floats, mixed: Floats, at: float) -> dict[str, dict[str, float]]:
    """Gain at a score by each form, with the range of 95 % of resampled texts.

    ``alone`` and ``mixed`` (models, documents, 2) are bits and bytes.
    """

    def points(chosen: NDArray[np.intp]) -> tuple[Floats, Floats]:
        one, two = (part[:, chosen].sum(axis=1) for part in (alone, mixed))
        scores = one[:, 0] / one[:, 1]
        return scores, scores - two[:, 0] / two[:, 1]

    count = alone.shape[1]
    generator, found = np.random.default_rng(0), {}
    samples = [points(generator.integers(count, size=count)) for _ in range(_SAMPLES)]
    for form in FORMS:
        drawn = [fitted(form, *sample, at) for sample in samples]
        low, high = np.quantile(drawn, [0.025, 0.975])
        gain = fitted(form, *points(np.arange(count)), at)
        found[form] = {"gain": gain, "low": float(low), "high": float(high)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="How the gain of a memory falls as the model gets better.")
    parser.add_argument("weights", nargs="+", type=Path, help="at least three, one family of models")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--targets", type=int, default=100_000, help="validation targets to score")
    parser.add_argument("--stored", type=int, default=1_000_000, help="tokens of training text to read first")
    parser.add_argument("--at", type=float, default=1.1, help="score to extrapolate to, in bits per byte")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    asked = parser.parse_args()
    if len(asked.weights) < 3:
        parser.error("give at least three models")
    dataset = open_dataset(asked.data)
    tokenizer = dataset.tokenizer
    text = dataset.validation_text(1, asked.targets)
    stored = dataset.train_stream().take(0, asked.stored)
    empty = start_of(tokenizer.pieces, tokenizer.bos_id, stored)
    starts = {"online": empty, "stored": replace(empty, stored=stored)}
    alone, mixed = [], {name: [] for name in starts}
    for weights in asked.weights:
        print(f"scoring {weights}", file=sys.stderr)
        logs = model_rows(weights, text.tokens)
        nats = -logs[np.arange(len(logs)), text.tokens[1:]].astype(np.float64)
        alone.append(by_document(nats, text, tokenizer.bos_id))
        for name, start in starts.items():
            mixed[name].append(by_document(with_memory(start, text.tokens, logs), text, tokenizer.bos_id))
    totals = np.array(alone).sum(axis=1)
    scores = totals[:, 0] / totals[:, 1]
    result = {
        "targets": len(text.byte_counts),
        "documents": len(alone[0]),
        "stored": asked.stored,
        "at": asked.at,
        "models": [str(path) for path in asked.weights],
        "alone": scores.tolist(),
    }
    print(f"{'model':40} {'alone':>8} {'online':>8} {'stored':>8}")
    both = {}
    for name in starts:
        sums = np.array(mixed[name]).sum(axis=1)
        both[name] = sums[:, 0] / sums[:, 1]
        fits = extrapolated(np.array(alone), np.array(mixed[name]), asked.at)
        result[name] = {"bpb": both[name].tolist(), "fits": fits}
    for index, path in enumerate(asked.weights):
        print(f"{path!s:40} {scores[index]:8.4f} {both['online'][index]:8.4f} {both['stored'][index]:8.4f}")
    for name in starts:
        for form, fit in result[name]["fits"].items():
            span = f"{fit['low']:+.4f} to {fit['high']:+.4f}"
            print(f"gain of the {name} memory at {asked.at}, {form}: {fit['gain']:+.4f} ({span})")
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
