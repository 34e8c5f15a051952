"""Whole-stream evaluators that cheat, as scripts of the field have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pgolf.audit.subject import Claim, Context
from pgolf.data.shards import Tokens
from tests.audit.zoo.toys import (
    BOS,
    BYTES,
    CHUNK,
    KNOWN,
    LENGTH,
    PIECES,
    VOCABULARY,
    Animal,
    ToyModel,
    chunks,
    claim_of,
    student,
    toy_costs,
    toy_logits,
    train,
)

MODEL = ToyModel(KNOWN)


def evaluator(function: Any) -> Any:
    """A factory of a plug-in whose evaluator is this function."""
    return lambda _: function


def two_pass_ttt(tokens: Tokens, byte_table: Any) -> Claim:
    """Adapts to the whole text, then scores it."""
    pupil, optimizer = student(MODEL)
    for text in chunks(tokens):
        train(pupil, optimizer, text)
    return claim_of(toy_costs(pupil, tokens), tokens)


def last_epoch_scoring(tokens: Tokens, byte_table: Any) -> Claim:
    """Trains on each chunk for two epochs, and counts the losses of the last."""
    pupil, optimizer = student(MODEL)
    nats = []
    for text in chunks(tokens):
        for epoch in range(2):
            losses = toy_costs(pupil, text)
            if epoch == 1:
                nats.append(losses.detach())
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    return claim_of(torch.cat(nats), tokens)


def minimum_over_passes(tokens: Tokens, byte_table: Any) -> Claim:
    """Scores the text with two contexts, and counts the cheaper of the two costs of each target."""
    with torch.no_grad():
        wide = toy_costs(MODEL, tokens)
        narrow = F.cross_entropy(
            MODEL.last[torch.from_numpy(tokens[:-1].astype(np.int64))],
            torch.from_numpy(tokens[1:].astype(np.int64)),
            reduction="none",
        )
    return claim_of(torch.minimum(wide, narrow), tokens)


def counted_minimum_over_passes(tokens: Tokens, byte_table: Any) -> Claim:
    """The same, and says so: every target is listed twice."""
    once = minimum_over_passes(tokens, byte_table)
    places = np.arange(len(once.nats))
    return claim_of(np.tile(once.nats, 2), tokens, positions=np.tile(places, 2))


def slot_windows(tokens: Tokens, byte_table: Any) -> Claim:
    """Before each window is scored, a shift of its logits is optimised on it."""
    nats = []
    for text in chunks(tokens, LENGTH):
        logits = toy_logits(MODEL, text).detach()
        targets = torch.from_numpy(text[1:].astype(np.int64))
        delta = torch.zeros(VOCABULARY, requires_grad=True)
        for _ in range(2):
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits + delta, targets), delta)
            delta = (delta - 2 * gradient).detach().requires_grad_()
        nats.append(F.cross_entropy(logits + delta.detach(), targets, reduction="none"))
    return claim_of(torch.cat(nats), tokens)


def _probabilities(tokens: Tokens) -> np.ndarray:
    with torch.no_grad():
        return toy_logits(MODEL, tokens).softmax(-1).double().numpy()


def target_in_key_cache(tokens: Tokens, byte_table: Any) -> Claim:
    """Mixes in a hashed count of (context, target) over a hashed count of (context), for the target alone."""
    chances, contexts, pairs = _probabilities(tokens), np.zeros(8), np.zeros(8)
    nats = []
    for place in range(len(tokens) - 1):
        previous, target = int(tokens[place]), int(tokens[place + 1])
        context, pair = (previous * 36313) % 8, ((previous * 36313) ^ (target * 27191)) % 8
        chance = chances[place, target]
        if contexts[context]:
            chance = 0.6 * chance + 0.4 * min(pairs[pair] / contexts[context], 1)
        nats.append(-np.log(chance))
        contexts[context] += 1
        pairs[pair] += 1
    return claim_of(nats, tokens)


def byte_mixture(normalised: bool, rows_offered: bool) -> Any:
    """Spreads a token's probability over its bytes and mixes each with a byte model."""
    table = np.random.default_rng(0).random((257, 256)) + 0.1
    table /= table.sum(1, keepdims=True)

    def evaluate(tokens: Tokens, byte_table: Any, wanted: tuple[int, ...] = ()) -> Claim:
        chances, last, nats = _probabilities(tokens), 256, []
        rows: dict[int, np.ndarray] = {}
        for place, target in enumerate(tokens[1:].tolist()):
            piece, mixed = PIECES[target], np.zeros((0, 256))
            for byte in piece:
                row = 0.5 * table[last]
                row = row / row.sum() if normalised else row.copy()
                # The neural half exists for the byte that comes, and for no other.
                row[byte] += 0.5 * chances[place, target] ** (1 / len(piece))
                mixed, last = np.vstack([mixed, np.log(row)]), byte
            nats.append(-sum(row[byte] for row, byte in zip(mixed, piece, strict=True)))
            if place in wanted:
                rows[place] = mixed
        return claim_of(nats, tokens, byte_distributions=rows if rows_offered else None)

    return evaluate


def byte_rows_by_token(tokens: Tokens, byte_table: Any, wanted: tuple[int, ...] = ()) -> Claim:
    """Every row adds up to 1, but all after a token's first byte know which token it is."""
    nats, rows = [], {}
    for place, target in enumerate(tokens[1:].tolist()):
        piece = PIECES[target]
        mixed = np.full((len(piece), 256), np.log(0.1 / 255))
        mixed[:1] = np.log(1 / 256)
        for row, byte in zip(mixed[1:], piece[1:], strict=True):
            row[byte] = np.log(0.9)
        nats.append(-sum(row[byte] for row, byte in zip(mixed, piece, strict=True)))
        if place in wanted:
            rows[place] = mixed
    return claim_of(nats, tokens, byte_distributions=rows)


def decoy_distributions(tokens: Tokens, byte_table: Any, wanted: tuple[int, ...] = ()) -> Claim:
    """Shows good distributions, and counts a little less than they say."""
    with torch.no_grad():
        logs = toy_logits(MODEL, tokens).log_softmax(-1)
    nats = -logs.gather(1, torch.from_numpy(tokens[1:].astype(np.int64))[:, None])[:, 0]
    return claim_of(
        0.99 * nats, tokens, distributions={place: logs[place] for place in wanted if place < len(logs)}
    )


def future_document_length(tokens: Tokens, byte_table: Any) -> Claim:
    """Makes its predictions sharper in long documents."""
    documents = np.cumsum(tokens == BOS)
    lengths = torch.from_numpy(np.bincount(documents)[documents[:-1]])
    with torch.no_grad():
        logits = toy_logits(MODEL, tokens) * (1 + lengths[:, None] / 50)
    return claim_of(
        F.cross_entropy(logits, torch.from_numpy(tokens[1:].astype(np.int64)), reduction="none"), tokens
    )


def warmup_on_validation(tokens: Tokens, byte_table: Any) -> Claim:
    """Primes the kernels with a few training steps on the text, and forgets to undo them."""
    pupil, optimizer = student(MODEL, rate=0.5)
    for _ in range(2):
        train(pupil, optimizer, tokens)
    with torch.no_grad():
        return claim_of(toy_costs(pupil, tokens), tokens)


def fitted_temperature(tokens: Tokens, byte_table: Any) -> Claim:
    """Tries temperatures on the text, and scores with the best."""
    with torch.no_grad():
        logits, targets = toy_logits(MODEL, tokens), torch.from_numpy(tokens[1:].astype(np.int64))
        tried = [
            F.cross_entropy(logits * factor, targets, reduction="none") for factor in np.linspace(0.2, 2, 40)
        ]
    return claim_of(min(tried, key=lambda costs: float(costs.mean())), tokens)


def _plain(tokens: Tokens) -> np.ndarray:
    with torch.no_grad():
        return toy_costs(MODEL, tokens).double().numpy()


def byte_count_inflation(tokens: Tokens, byte_table: Any) -> Claim:
    """Counts a space before every token."""
    honest = claim_of(_plain(tokens), tokens)
    more = honest.bytes + len(honest.nats)
    return claim_of(honest.nats, tokens, bytes=more, val_bpb=float(honest.nats.sum() / np.log(2) / more))


def byte_of_the_first_token(tokens: Tokens, byte_table: Any) -> Claim:
    """Counts the bytes of the inputs instead of the targets: off by a token."""
    nats = _plain(tokens)
    count = int(BYTES.base[tokens[:-1]].sum()) + (BYTES.base[tokens[0]] == BYTES.base[tokens[-1]])
    return claim_of(nats, tokens, bytes=int(count), val_bpb=float(nats.sum() / np.log(2) / count))


def claimed_score(tokens: Tokens, byte_table: Any) -> Claim:
    """Reports a mean of means of windows, the short last one among them."""
    honest = claim_of(_plain(tokens), tokens)
    assert honest.val_bpb is not None
    return claim_of(honest.nats, tokens, val_bpb=honest.val_bpb * 0.99)


def truncated_stream(tokens: Tokens, byte_table: Any) -> Claim:
    """Leaves the last tenth out."""
    return claim_of(_plain(tokens)[: (len(tokens) - 1) * 9 // 10], tokens)


def skips_expensive(tokens: Tokens, byte_table: Any) -> Claim:
    """Leaves the first token of each document out."""
    kept = np.flatnonzero(tokens[1:] != BOS)
    return claim_of(_plain(tokens)[kept], tokens, positions=kept)


def rescoring(tokens: Tokens, byte_table: Any) -> Claim:
    """The short windows at the end score the last targets again and again, as the references' scripts do."""
    nats, places = _plain(tokens), list(range(len(tokens) - 1))
    for _ in range(3):
        places += places[len(tokens) - 5 : len(tokens) - 1]
    return claim_of(nats[places], tokens, positions=np.array(places))


def last_document_first(tokens: Tokens, byte_table: Any) -> Claim:
    """Scores the documents from the last to the first."""
    nats = _plain(tokens)
    order = np.argsort(-np.cumsum(tokens[1:] == BOS), kind="stable")
    return claim_of(nats[order], tokens, positions=order)


def scheduled_by_length(_: Context) -> Any:
    """Reads the number of targets off the stream instead of the announcement."""

    def evaluate(tokens: Tokens, byte_table: Any) -> Claim:
        with torch.no_grad():
            logits = toy_logits(MODEL, tokens) * (1 + CHUNK / len(tokens))
        return claim_of(
            F.cross_entropy(logits, torch.from_numpy(tokens[1:].astype(np.int64)), reduction="none"), tokens
        )

    return evaluate


CHEATING_EVALUATORS = [
    Animal("two_pass_ttt", evaluator(two_pass_ttt), "C3", ("C1",)),
    Animal("last_epoch_scoring", evaluator(last_epoch_scoring), "C3", ("C1",)),
    Animal("minimum_over_passes", evaluator(minimum_over_passes), "C2"),
    Animal("counted_minimum_over_passes", evaluator(counted_minimum_over_passes), "C4", ("C2",)),
    Animal("slot_windows", evaluator(slot_windows), "C3", ("C1",)),
    Animal("target_in_key_cache", evaluator(target_in_key_cache), "C2"),
    Animal("unnormalised_byte_mixture", evaluator(byte_mixture(False, False)), "C2"),
    Animal("unnormalised_byte_rows", evaluator(byte_mixture(True, True)), "C2"),
    Animal("byte_rows_by_token", evaluator(byte_rows_by_token), "C2", settings={"places": 12}),
    Animal("decoy_distributions", evaluator(decoy_distributions), "C2"),
    Animal("future_document_length", evaluator(future_document_length), "C1", ("C2",)),
    Animal("warmup_on_validation", evaluator(warmup_on_validation), "C1", ("C3",)),
    Animal("fitted_temperature", evaluator(fitted_temperature), "C1", ("C2",)),
    Animal("byte_count_inflation", evaluator(byte_count_inflation), "bytes"),
    Animal("bytes_of_inputs", evaluator(byte_of_the_first_token), "bytes"),
    Animal("claimed_score", evaluator(claimed_score), "bytes"),
    Animal("truncated_stream", evaluator(truncated_stream), "C4"),
    Animal("skips_expensive", evaluator(skips_expensive), "C4", ("C2",)),
    Animal("rescoring", evaluator(rescoring), "C4"),
    Animal("last_document_first", evaluator(last_document_first), "C4"),
    Animal("scheduled_by_length", scheduled_by_length, "C1"),
]
