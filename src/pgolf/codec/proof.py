"""Decoding as proof of a score: bits that a decoder can turn back into the text are bits that a scorer may
claim.

One scorer encodes the beginning of a stream. A second one, fresh from the same factory, decodes it, without
any access to the tokens: it only receives what came out of the decoder. If the text comes back, then every
distribution was fixed before its target was known, and the code's length is an honest price. A scorer that
looked at its targets either claims fewer bits than the code took, or predicts differently when they are not
there to look at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pgolf.codec.arithmetic import Decoder, Encoder
from pgolf.codec.payload import Progress, TokenStream
from pgolf.data.shards import Tokens
from pgolf.evaluate.protocol import Recorded, Scorer

# Rounding: of float32 sums over windows of another shape, and of the integer tables.
_TOLERANCE, _SPARE_BITS = 0.002, 4.0


@dataclass(frozen=True)
class Proof:
    """What became of encoding and decoding."""

    targets: int
    """Targets encoded."""
    equal: bool
    """Whether the decoder gave them all back."""
    first_difference: int | None
    """The first target that the decoder got wrong or could not go beyond; None if it got all right."""
    coded_bits: int
    """Length of the code."""
    token_bits: float
    """What the targets took of it; the rest are marks and the end."""
    ledger_bits: float
    """Sum of -log2 p over the distributions that the code was made with: strict mode's score."""
    block_bits: float
    """The same targets scored in blocks, by ``losses``."""
    seconds: float
    """Of everything."""

    @property
    def problem(self) -> str | None:
        """What is wrong with the scorer, in words; None if nothing is."""
        if (target := self.first_difference) is not None:
            return f"decoding goes wrong at target {target}: it needs what only the encoder knew"
        for bits, mode in ((self.ledger_bits, "one by one"), (self.block_bits, "in blocks")):
            if not self.token_bits <= bits * (1 + _TOLERANCE) + _SPARE_BITS:
                claimed = f"scored {mode} the targets claim {bits:,.1f} bits"
                return f"{claimed}, but their code takes {self.token_bits:,.1f}"
        return None

    def to_json(self) -> dict[str, Any]:
        """The fields and the problem as JSON values."""
        return asdict(self) | {"problem": self.problem}


def decode_check(
    scorer_factory: Callable[[], Scorer], tokens: Tokens, targets: int, *, progress: Progress | None = None
) -> Proof:
    """Encode the first targets of a stream (uint16) with one scorer and decode them with another.

    Every scorer is fresh from the factory and used once: to encode, to decode, to score in blocks of the
    size that it wants, in this order, so that none has met the targets before the code is written (unless
    they share a memory). All tokens but the first are announced as targets. ``progress`` is told (targets
    done, all), counting each of the three passes. What is no distribution is a ``PgolfError``.
    """
    announced, first = len(tokens) - 1, int(tokens[0])
    count = min(targets, announced)
    assert count > 0, "nothing to encode"
    text, started, passes = tokens[1 : count + 1], time.perf_counter(), 0

    def report(done: int) -> None:
        if progress is not None and (done % 16 == 0 or done == count):
            progress(passes * count + done, 3 * count)

    encoder = Encoder()
    stream = TokenStream(scorer_factory(), encoder, first, announced)
    for done, token in enumerate(text.tolist(), 1):
        stream.next(token)
        report(done)
    stream.mark()
    content = encoder.finish()
    passes = 1
    found, stopped = _decode(scorer_factory(), content, first, count, announced, report)
    passes = 2
    block_bits = _block_bits(scorer_factory(), first, text, announced, report)
    wrong = np.flatnonzero(found != text[: len(found)])
    return Proof(
        targets=count,
        equal=stopped is None and not len(wrong),
        first_difference=int(wrong[0]) if len(wrong) else stopped,
        coded_bits=8 * len(content),
        token_bits=stream.coded_bits,
        ledger_bits=stream.ledger_bits,
        block_bits=block_bits,
        seconds=time.perf_counter() - started,
    )


def _decode(
    scorer: Scorer, content: bytes, first: int, count: int, announced: int, report: Callable[[int], None]
) -> tuple[Tokens, int | None]:
    """The decoded targets and, if decoding failed, the target from which on they are not to be trusted."""
    decoded: list[int] = []
    stopped, coder = None, Decoder(content)
    stream = TokenStream(scorer, coder, first, announced)
    try:
        while len(decoded) < count:
            decoded.append(stream.next(None))
            report(len(decoded))
        stream.mark()
        coder.finish()
    except ValueError:
        stopped = stream.marked
    return np.array(decoded, dtype=np.uint16), stopped


def _block_bits(
    scorer: Scorer, first: int, text: Tokens, announced: int, report: Callable[[int], None]
) -> float:
    scorer.begin(first, announced)
    nats, done = 0.0, 0
    while done < len(text):
        size = min(max(int(scorer.wanted()), 1), len(text) - done)
        block = text[done : done + size]
        losses = scorer.losses(torch.from_numpy(block.astype(np.int64)))
        nats += float(losses.detach().cpu().double().sum())
        scorer.receive(Recorded(done, block.copy()))
        done += size
        report(done)
    return nats / float(np.log(2.0))
