"""The memory's part of an artifact: which training text or n-grams it carries, and how far it is trusted at
first.

All is chosen by training text alone. Its end is held out; n-grams are those of the text before. The documents
before it are read in order, and where they fill a share of the bytes, the held-out text is scored by memory
and model together, the model as it is packed into the bytes that are left. The split that costs least wins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.compress.pack import fit
from pgolf.compress.stored import dequantize_state
from pgolf.data.dataset import Dataset
from pgolf.data.shards import Tokens
from pgolf.errors import PgolfError
from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.protocol import Recorded
from pgolf.memory.memory import Memory, Ngrams, Start, encode_tokens
from pgolf.memory.ngrams import LONGEST
from pgolf.memory.pruning import Candidates
from pgolf.memory.stored import start_of, write_start
from pgolf.model.load import model_from
from pgolf.recipe.recipe import Recipe

if TYPE_CHECKING:
    from pgolf.runtime.progress import Note

SHARES = (0.0, 0.125, 0.25, 0.5, 0.75)
"""Parts of the bytes for weights and text that text may have, beside all text that there is."""
PARTS = {"counts": (1.0,), "both": (0.9, 0.75, 0.5, 0.25, 0.0)}
"""Parts of the memory's bytes that counts may have; tried in turn, until it gets worse."""
TRUSTS = ((0.2, 0.9), (0.35, 0.7), (0.5, 0.5), (0.65, 0.45), (0.8, 0.3), (0.9, 0.15))
"""Weights of memory and model at first, on their log odds."""
_HELD_OUT = 20_000
# Probabilities of the model that are kept at once.
_MOST_CHANCES = 1 << 26
# Longer documents are read in parts, so that what they change can be taken back.
_PART = 8192
# Text that takes fewer bytes a token is not looked for.
_TOKENS_PER_BYTE = 6
# Tokens whose n-grams are counted.
_COUNTED = 1 << 23
# Tokens that tell how frequent each is, also where less text is stored.
_FOR_LEVELS = 1 << 20
# What the coder may take beyond the sum of the costs.
_CODER_BYTES = 16
# A header, and the memory's section without text: left for them where the weights' share is not yet known.
_BESIDE = 4000

Weights = Mapping[str, Tensor]
Given = tuple[Weights, Recipe, str, Path, int, int]
"""State, recipe, digest of the tokenizer, file, limit, bytes of code."""
Packed = Callable[[int], Weights]
"""From bytes that are taken by something else to the weights as they are packed into the rest."""


class Split(NamedTuple):
    """A way to divide the bytes, and what it is worth."""

    bytes: int
    """Of coded training text, as its costs predict them, and of counts."""
    tokens: int
    """Of this text."""
    bpb: float
    """Bits per byte of the held-out training text."""
    trust: tuple[float, float]
    """The best of ``TRUSTS`` for it."""
    ngrams: Ngrams
    ngram_bytes: int


def with_memory(given: Given, dataset: Dataset, how: Mapping[str, Any]) -> dict[str, Any]:
    """What ``pack`` and ``fit`` are told for a recipe with a memory: ``how``, and the memory's section.

    Args:
        given: the first arguments of ``fit``, with the limit and the bytes of code.
        dataset: its training text.
        how: the others, by name: calibration, note and grid.

    Raises:
        PgolfError: see ``memory_part``.
    """
    state, recipe, digest, out, limit, code = given
    # What is tried need not be tuned.
    plain = {**how, "calibration": how["calibration"] and replace(how["calibration"], text=None)}

    def packed(taken: int) -> Weights:
        return dequantize_state(fit(state, recipe, digest, out, limit - taken, code, **plain).stored)

    content, about = memory_part(recipe, dataset, state, packed, limit - code, how["note"])
    return {**how, "memory": content, "about": {"memory": {"cap": limit, **about}}}


def memory_part(
    recipe: Recipe, dataset: Dataset, weights: Weights, packed: Packed, room: int, note: Note
) -> tuple[bytes, dict[str, Any]]:
    """The section "memory" of an artifact, and what the artifact says of it.

    Args:
        recipe: its memory section says whether text is stored, and how much.
        dataset: its training text.
        weights: the model's, unpacked.
        packed: packs them; raises a ``PgolfError`` where that cannot be.
        room: bytes of the artifact: weights and memory.
        note: told what is being done; see ``Note``.

    Raises:
        PgolfError: the bytes that are asked for leave none for the weights, or have no room for any text.
    """
    wanted, room = recipe.memory.stored_bytes, room - _BESIDE
    if recipe.memory.stored == "none":
        room = wanted = 0
    elif max(wanted, 0) >= room:
        raise PgolfError(
            f"memory.stored_bytes {wanted:,}: beside the code the cap has only {max(room, 0):,} bytes for "
            "text and weights; lower it or raise the cap"
        )
    most = max(_TOKENS_PER_BYTE * (wanted or room), _FOR_LEVELS)
    chooser = _Chooser(recipe, dataset, most, weights, packed, note)
    sizes, asked = [wanted], recipe.memory.stored == "none" or wanted > 0
    if not asked:
        sizes = [int(share * room) for share in SHARES]
    if recipe.memory.stored in PARTS:
        splits = chooser.with_counts(sizes, PARTS[recipe.memory.stored], asked)
    else:
        splits = chooser.splits(sizes, asked)
    if not splits:
        packed(0)  # Says what is wrong.
    best = min(splits, key=lambda split: split.bpb)
    if wanted and not best.tokens and not len(best.ngrams):
        raise PgolfError(
            f"memory.stored_bytes {wanted:,}: no document of the training text fits; raise it, or set "
            "memory.stored to none"
        )
    note(f"coding {best.tokens:,} tokens of training text")
    text = chooser.text[: best.tokens]
    start, coded = replace(chooser.start, trust=best.trust, stored=text, ngrams=best.ngrams), None
    if wanted and best.tokens:
        start, coded = _within(wanted - best.ngram_bytes, recipe, start, chooser.ends)
    content = write_start(recipe.memory, start, coded)
    return content, {
        "bytes": len(content),
        "tokens": len(start.stored),
        "ngrams": max(len(start.ngrams) - start.vocab_size, 0),
        "trust": list(start.trust),
        "held_out": chooser.about(),
        "split": [[split.bytes, split.tokens, split.bpb, split.ngram_bytes] for split in splits],
    }


def _within(limit: int, recipe: Recipe, start: Start, ends: list[int]) -> tuple[Start, bytes]:
    """With as many of the text's parts as take at most ``limit`` bytes, and these bytes."""
    for end in reversed([end for end in ends if end <= len(start.stored)]):
        fewer = replace(start, stored=start.stored[:end])
        coded = encode_tokens(recipe.memory, fewer, fewer.stored)
        if len(coded) <= limit:
            return fewer, coded
    raise AssertionError("the coder takes more than the costs say")


class _Chooser:
    """Reads training text, and scores the held-out part of it with what it has read."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        most: int,
        weights: Weights,
        packed: Packed,
        note: Note,
    ) -> None:
        self.recipe, self.weights, self.packed, self.note = recipe, weights, packed, note
        stream, tokenizer = dataset.train_stream(), dataset.tokenizer
        held = min(_HELD_OUT, stream.total // 4, _MOST_CHANCES // tokenizer.vocab_size)
        self.text = stream.take(0, min(stream.total, most))
        whole, part = len(self.text) == stream.total, min(_PART, stream.total // 8 + 1)
        starts = np.flatnonzero(self.text == tokenizer.bos_id)
        every = {*starts.tolist(), *range(part, len(self.text), part), *([len(self.text)] if whole else [])}
        self.ends = sorted(every - {0})
        """Where documents and parts of them end."""
        first = stream.total - held
        self.known = max((end for end in self.ends if end <= first), default=0)
        """Tokens of the text that are not held out."""
        if whole:
            first = self.known
        # The token before it is no target.
        self.held = stream.take(first - 1, stream.total - first + 1)
        self.bytes = int(tokenizer.byte_table.count_stream(self.held).sum(dtype=np.int64))
        counted = self.text
        if recipe.memory.stored in PARTS:
            counted = stream.take(0, min(stream.total, max(most, _COUNTED)))
        self.counted = counted[:first]
        """Tokens whose n-grams are counted."""
        self.start = start_of(tokenizer.pieces, tokenizer.bos_id, counted)
        self.ngrams, self.ngram_bytes = self.start.ngrams, 0

    def about(self) -> dict[str, int]:
        """The size of what is held out."""
        return {"tokens": len(self.held) - 1, "bytes": self.bytes}

    def with_counts(self, sizes: list[int], parts: tuple[float, ...], as_asked: bool) -> list[Split]:
        """One for each number of bytes with the first part for counts; for the best, with others too."""
        self.note("choosing n-grams")
        candidates = Candidates(self.start, self.counted, min(LONGEST, self.recipe.memory.order + 1))

        def judged(size: int, part: float) -> list[tuple[int, Split]]:
            self.ngrams, self.ngram_bytes = candidates.within(int(size * part))
            rest = size - self.ngram_bytes if part < 1 else 0
            return [(size, split) for split in self.splits([rest], as_asked)]

        found = [pair for size in sizes for pair in judged(size, parts[0])]
        for part in parts[1:] if found else ():
            size, best = min(found, key=lambda pair: pair[1].bpb)
            found += (more := judged(size, part))
            if not more or more[0][1].bpb > best.bpb:
                break
        return [split for _, split in found]

    def splits(self, limits: list[int], as_asked: bool = False) -> list[Split]:
        """One for each number of bytes that the text reaches, and one for all of it; see ``with_counts``.

        Where there is no choice, ``as_asked``, nobody packs the weights: they are taken as they are.
        """
        start = replace(self.start, ngrams=self.ngrams)
        self.memory = Memory(self.recipe.memory, start, len(self.text) + len(self.held))
        found: list[Split] = []

        def judge(size: float, tokens: int) -> None:
            split = self._judged(int(size), tokens, as_asked)
            if split is not None and tokens not in [other.tokens for other in found]:
                found.append(split)

        size, end, waiting = 0.0, 0, list(limits)
        # Documents, and parts of long ones, up to the held-out text.
        for first, last in itertools.pairwise([0, *(end for end in self.ends if end <= self.known)]):
            self.note("reading training text", first, self.known)
            part = self.text[first:last]
            cost = self._bytes(part)
            while waiting and size + cost + _CODER_BYTES > waiting[0]:
                judge(size, first)
                del waiting[0]
            if not waiting:
                break
            self.memory.receive(part)
            size, end = size + cost, last
        else:
            # What is held out may be stored as well, once it has been of use.
            rest = self._bytes(self.text[end:])
            every = size + rest + _CODER_BYTES <= waiting[0]
            judge(size + every * rest, len(self.text) if every else end)
        return found

    def _bytes(self, part: Tokens) -> float:
        """What it would take."""
        return float(self.memory.losses(part).sum(dtype=np.float64)) / math.log(256) if len(part) else 0.0

    def _judged(self, size: int, tokens: int, as_asked: bool) -> Split | None:
        self.note(f"scoring held-out training text after {tokens:,} tokens")
        weights = self.weights
        if not as_asked:
            try:
                weights = self.packed(size + self.ngram_bytes + _BESIDE)
            except PgolfError:
                return None
        rows, costs = self._chances(weights), []
        for trust in TRUSTS:
            self.memory.rely_on(trust)
            nats = self.memory.losses(self.held[1:], rows).sum(dtype=np.float64)
            costs.append((float(nats) / math.log(2) / self.bytes, trust))
        return Split(size + self.ngram_bytes, tokens, *min(costs), self.ngrams, self.ngram_bytes)

    def _chances(self, weights: Weights) -> NDArray[np.float32]:
        """The model's probabilities (n, V) of the held-out targets, in sliding windows."""
        scorer = build_scorer(model_from(self.recipe.model, weights).eval(), self.recipe, "sliding")
        targets, rows, done = self.held[1:], [], 0
        scorer.begin(int(self.held[0]), len(targets))
        while done < len(targets):
            self.note("predicting held-out training text", done, len(targets))
            block = targets[done : done + scorer.wanted()]
            logs = scorer.distributions(torch.from_numpy(block[:-1].astype(np.int64)))
            rows.append(logs.detach().float().exp().cpu().numpy())
            scorer.receive(Recorded(done, block))
            done += len(block)
        return np.concatenate(rows)
