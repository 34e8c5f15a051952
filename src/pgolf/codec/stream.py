"""Coding a stream of tokens with a scorer: the distribution first, then the token, then learning, as in
strict scoring.

Writing and reading take the same steps, so that the scorer on the other side knows what this one knows at
every target and nothing more. After every ``MARK`` targets both sides exchange 16 bits of a checksum over all
tables and tokens so far: a reader whose arithmetic differs in the last bit anywhere stops at the next mark.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.codec.arithmetic import PRECISION, Coder, frequencies
from pgolf.errors import PgolfError
from pgolf.evaluate.protocol import Recorded, Scorer

MARK = 1024
"""Targets between two checks."""
_MARK_BITS = 16
_NO_TOKENS = torch.zeros(0, dtype=torch.int64)


class TokenStream:
    """One direction of coding a stream's targets with a scorer, which is begun here.

    ``first`` is the token before the first target, and ``targets`` how many are announced to the scorer.
    """

    def __init__(self, scorer: Scorer, coder: Coder, first: int, targets: int) -> None:
        self._scorer, self.coder, self.targets = scorer, coder, targets
        self.position = 0
        """Targets coded so far."""
        self.marked = 0
        """Targets before the last mark: up to there both sides are known to agree."""
        self.ledger_bits = 0.0
        """What they cost by the scorer's own probabilities."""
        self.coded_bits = 0.0
        """What they cost by the integer tables."""
        self._checksum = 0
        scorer.begin(first, targets)

    def next(self, token: int | None) -> int:
        """Code the next target; ``None`` reads it.

        A ``ValueError`` says that a mark does not fit or the content is no code, a ``PgolfError`` that the
        scorer returned no distribution.
        """
        if self.position == self.marked + MARK:
            self.mark()
        row = self._distribution()
        try:
            table = frequencies(row)
        except ValueError as error:
            raise PgolfError(f"the scorer failed at target {self.position}: {error}") from error
        token = self.coder.symbol(token, table)
        self.ledger_bits -= float(row[token]) / math.log(2)
        self.coded_bits += PRECISION - math.log2(int(table[token + 1] - table[token]))
        seen = table[1:-1].astype("<u4").tobytes() + token.to_bytes(2, "little")
        self._checksum = zlib.crc32(seen, self._checksum)
        self._scorer.receive(Recorded(self.position, np.array([token], dtype=np.uint16)))
        self.position += 1
        return token

    def mark(self) -> None:
        """Exchange a mark, if anything was coded since the last; a ``ValueError`` if it does not fit."""
        if self.position == self.marked:
            return
        own = self._checksum >> (32 - _MARK_BITS)
        if self.coder.number(own, _MARK_BITS) != own:
            raise ValueError("a mark does not fit")
        self.marked = self.position

    def _distribution(self) -> NDArray[np.float32]:
        rows = self._scorer.distributions(_NO_TOKENS.clone())
        shape, wanted = tuple(rows.shape), (1, self._scorer.vocab_size)
        if shape != wanted:
            raise PgolfError(f"the scorer returned distributions of shape {shape}, not {wanted}")
        found: NDArray[np.float32] = rows[0].detach().float().cpu().numpy()
        return found


@contextlib.contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads: sums come out differently with another number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> str:
    """What the last bits of a distribution depend on besides weights and threads, in words."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
