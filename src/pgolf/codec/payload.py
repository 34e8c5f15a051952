"""The payload of a compressed file: tokens under the model, and what no token spells, in one range code.

At every target it is the distribution first, then the token, then learning, as in strict scoring. Writing and
reading take the same steps, so that the scorer on the other side knows what this one knows and nothing more.
After every ``MARK`` targets both sides exchange 16 bits of a checksum over all tables and tokens so far: a
reader whose arithmetic differs in the last bit anywhere stops at the next mark.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.codec.arithmetic import PRECISION, Coder, Decoder, Encoder, frequencies
from pgolf.codec.container import Header, plausible
from pgolf.codec.pieces import Pieces, Spelling
from pgolf.codec.raw import ByteModel, GapModel
from pgolf.errors import PgolfError
from pgolf.evaluate.protocol import Recorded, Scorer

Progress = Callable[[int, int], None]
MARK = 1024
"""Targets between two checks."""
_MARK_BITS = 16
_NO_TOKENS = torch.zeros(0, dtype=torch.int64)
# Targets between two reports of progress.
_REPORT = 16
_T = TypeVar("_T")


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


class Payload(NamedTuple):
    """Encoded content, and what it is made of."""

    content: bytes = b""
    tokens: int = 0
    folded: bool = False
    """Whether gaps between the tokens' words are coded beside them."""
    spaced: bool = False
    """Whether the tokens spell one space more, in front."""
    run_bytes: int = 0
    """Original bytes in runs."""
    ledger_bits: float = 0.0
    """What the tokens cost by the scorer's probabilities: the score of strict evaluation."""
    token_bits: float = 0.0
    """What they cost by the integer tables; the rest of the payload is runs, gaps and marks."""


def encode(scorer: Scorer, pieces: Pieces, content: bytes, progress: Progress | None = None) -> Payload:
    """Encode any bytes with a scorer, which is begun here and has the pieces' alphabet.

    ``progress`` is told (tokens coded, all tokens). The payload is empty for no bytes.
    """
    if not content:
        return Payload()
    payload = _encode(scorer, pieces, pieces.spell(content), len(content), progress)
    if not plausible(len(content), len(payload.content)):
        # So certain a model that readers would take the file for hostile.
        payload = _encode(scorer, pieces, pieces.as_run(content), len(content), progress)
    return payload


def _encode(
    scorer: Scorer, pieces: Pieces, spelling: Spelling, size: int, progress: Progress | None
) -> Payload:
    coder, count, spaced = Encoder(), len(spelling.tokens), spelling.spaced
    stream, folded = TokenStream(scorer, coder, pieces.first, count), spelling.gaps is not None
    _, runs = _code(stream, pieces, folded, size + spaced, spelling, progress)
    return Payload(coder.finish(), count, folded, spaced, runs, stream.ledger_bits, stream.coded_bits)


def decode(
    scorer: Scorer,
    pieces: Pieces,
    header: Header,
    content: bytes,
    where: str | Path,
    progress: Progress | None = None,
) -> tuple[Payload, bytes]:
    """What a payload is made of, and the original bytes, not yet compared with their digest.

    It is a ``PgolfError`` if it does not decode to what the header says, with this scorer on this machine.
    """
    if not header.tokens:
        return Payload(content), b""
    count, folded, spaced, coder = header.tokens, header.folded, header.spaced, Decoder(content)
    stream = TokenStream(scorer, coder, pieces.first, count)
    try:
        text, runs = _code(stream, pieces, folded, header.size + spaced, None, progress)
        coder.finish()
    except ValueError as error:
        raise PgolfError(
            f"{where}: cannot be decoded: it leaves the encoder's way between tokens {stream.marked:,} and "
            f"{stream.position:,} of {count:,} ({error}); {elsewhere(header)}"
        ) from error
    payload = Payload(content, count, folded, spaced, runs, stream.ledger_bits, stream.coded_bits)
    return payload, text[int(spaced) :]


def _code(
    stream: TokenStream,
    pieces: Pieces,
    folded: bool,
    limit: int,
    spelling: Spelling | None,
    progress: Progress | None,
) -> tuple[bytes, int]:
    """Code all tokens of a stream with their runs and, if it is folded, gaps; no ``spelling`` reads them.

    Returns what they stand for, and how many bytes of it are in runs. A ``ValueError`` says that what is read
    is no text of at most ``limit`` bytes.
    """
    tokens = runs = gaps = None
    if spelling is not None:
        tokens, runs, gaps = iter(spelling.tokens.tolist()), iter(spelling.runs), iter(spelling.gaps or [])
    coder, raw = stream.coder, ByteModel()
    gap_model = GapModel(raw)
    text, run_bytes, read = bytearray(), 0, pieces.reader()
    for done in range(1, stream.targets + 1):
        token = stream.next(_next(tokens))
        part = read(token)
        if token == pieces.unknown:
            run = raw.run(coder, _next(runs), limit - len(text))
            run_bytes += len(run)
            text += run
        elif part is None:
            raise ValueError("a control piece stands in the text")
        elif folded and not pieces.is_byte(token):
            for value, after in zip(part, [*part[1:], -1], strict=True):
                if value == ord(" "):
                    before = text[-1] if text else -1
                    text += gap_model.code(coder, _next(gaps), before, after, limit - len(text))
                else:
                    text.append(value)
        else:
            text += part
        if len(text) > limit:
            raise ValueError("its text is longer than the file")
        if progress is not None and (done % _REPORT == 0 or done == stream.targets):
            progress(done, stream.targets)
    stream.mark()
    return bytes(text), run_bytes


def _next(values: Iterator[_T] | None) -> _T | None:
    return None if values is None else next(values)


def elsewhere(header: Header) -> str:
    """What to do about a file that does not decode on this machine."""
    here = machine()
    if here == header.machine:
        return f"it was compressed on another kind of processor, or by another pgolf (both have {here})"
    return f"decompress it where it was compressed ({header.machine}; here: {here})"
