"""The payload of a compressed file: tokens under the language model, and what no token spells, in one range
code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pgolf.codec.arithmetic import Coder, Decoder, Encoder
from pgolf.codec.container import Header, plausible
from pgolf.codec.gaps import GapModel
from pgolf.codec.pieces import Pieces, Spelling
from pgolf.codec.raw import ByteModel
from pgolf.codec.stream import TokenStream, machine
from pgolf.errors import PgolfError
from pgolf.evaluate.protocol import Scorer

Progress = Callable[[int, int], None]
# Targets between two reports of progress.
_REPORT = 16
_SPACE = ord(" ")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Payload:
    """Encoded content, and what it is made of."""

    content: bytes
    tokens: int
    folded: bool
    """Whether gaps between the tokens' words are coded beside them."""
    spaced: bool
    """Whether the tokens spell one space more, in front."""
    run_bytes: int
    """Original bytes in runs."""
    ledger_bits: float
    """What the tokens cost by the scorer's probabilities: the score of strict evaluation."""
    token_bits: float
    """What they cost by the integer tables; the rest of the payload is runs, gaps and marks."""


def encode(scorer: Scorer, pieces: Pieces, content: bytes, progress: Progress | None = None) -> Payload:
    """Encode any bytes with a scorer.

    Args:
        scorer: its alphabet is that of the pieces; is begun here.
        pieces: of the tokenizer.
        content: what to encode.
        progress: told (tokens coded, all tokens).

    Returns:
        The payload; empty for no bytes.
    """
    if not content:
        return Payload(b"", 0, False, False, 0, 0.0, 0.0)
    payload = _encode(scorer, pieces, pieces.spell(content), len(content), progress)
    if not plausible(len(content), len(payload.content)):
        # So certain a model that readers would take the file for hostile.
        payload = _encode(scorer, pieces, pieces.as_run(content), len(content), progress)
    return payload


def _encode(
    scorer: Scorer, pieces: Pieces, spelling: Spelling, size: int, progress: Progress | None
) -> Payload:
    coder, count = Encoder(), len(spelling.tokens)
    folded, spaced = spelling.gaps is not None, spelling.spaced
    line = _Line(scorer, coder, pieces, count, folded, size + spaced, spelling)
    for _ in range(count):
        line.next()
        line.report(progress)
    line.stream.mark()
    return line.payload(coder.finish(), spaced)


def decode(
    scorer: Scorer,
    pieces: Pieces,
    header: Header,
    content: bytes,
    where: str | Path,
    progress: Progress | None = None,
) -> tuple[Payload, bytes]:
    """Decode a payload; returns what it is made of and the original bytes, not yet compared with their
    digest.

    Raises:
        PgolfError: it does not decode to what the header announces, or not with this scorer on this machine.
    """
    if not header.tokens:
        return Payload(content, 0, False, False, 0, 0.0, 0.0), b""
    line = None
    try:
        coder = Decoder(content)
        line = _Line(scorer, coder, pieces, header.tokens, header.folded, header.size + header.spaced, None)
        for _ in range(header.tokens):
            line.next()
            line.report(progress)
        line.stream.mark()
        coder.finish()
    except ValueError as error:
        start, end = (line.stream.marked, line.stream.position) if line is not None else (0, 0)
        raise PgolfError(
            f"{where}: cannot be decoded: it leaves the encoder's way between tokens {start:,} and {end:,} "
            f"of {header.tokens:,} ({error}); {elsewhere(header)}"
        ) from error
    return line.payload(content, header.spaced), bytes(line.text[int(header.spaced) :])


class _Line:
    """One direction of coding tokens with the runs and gaps that belong to them.

    Args:
        scorer, pieces: of the model.
        coder: writes or reads.
        count: tokens.
        folded: whether there are gaps.
        limit: bytes that they stand for at most.
        spelling: what to write; None reads.
    """

    def __init__(
        self,
        scorer: Scorer,
        coder: Coder,
        pieces: Pieces,
        count: int,
        folded: bool,
        limit: int,
        spelling: Spelling | None,
    ) -> None:
        self._coder, self._pieces, self._count, self._folded, self._limit = (
            coder,
            pieces,
            count,
            folded,
            limit,
        )
        self._tokens = None if spelling is None else iter(spelling.tokens.tolist())
        self._runs = None if spelling is None else iter(spelling.runs)
        self._gaps = None if spelling is None else iter(spelling.gaps or [])
        self._raw = ByteModel()
        self._gap_model = GapModel(self._raw)
        self._run_bytes = 0
        self.stream = TokenStream(scorer, coder, pieces.first, count)
        self.text = bytearray()
        """What the tokens so far stand for."""

    def next(self) -> None:
        """Code a token and what belongs to it.

        Raises:
            ValueError: what is read is no text of the announced size.
        """
        token = self.stream.next(_next(self._tokens))
        if token == self._pieces.unknown:
            run = self._raw.run(self._coder, _next(self._runs), self._limit - len(self.text))
            self._run_bytes += len(run)
            self.text += run
            return
        part = self._pieces.bytes_of(token)
        if part is None:
            raise ValueError("a control piece stands in the text")
        if self._folded and not self._pieces.is_byte(token):
            self._add_with_gaps(part)
        else:
            self.text += part
        if len(self.text) > self._limit:
            raise ValueError("its text is longer than the file")

    def report(self, progress: Progress | None) -> None:
        """Tell how far it is, now and then."""
        done = self.stream.position
        if progress is not None and (done % _REPORT == 0 or done == self._count):
            progress(done, self._count)

    def payload(self, content: bytes, spaced: bool) -> Payload:
        """What was coded."""
        stream = self.stream
        return Payload(
            content, self._count, self._folded, spaced, self._run_bytes, stream.ledger_bits, stream.coded_bits
        )

    def _add_with_gaps(self, part: bytes) -> None:
        for place, value in enumerate(part):
            if value != _SPACE:
                self.text.append(value)
                continue
            before = self.text[-1] if self.text else -1
            after = part[place + 1] if place + 1 < len(part) else -1
            limit = self._limit - len(self.text)
            self.text += self._gap_model.code(self._coder, _next(self._gaps), before, after, limit)


def _next(values: Iterator[_T] | None) -> _T | None:
    return None if values is None else next(values)


def elsewhere(header: Header) -> str:
    """What to do about a file that does not decode on this machine."""
    here = machine()
    if here == header.machine:
        return f"it was compressed on another kind of processor, or by another pgolf (both have {here})"
    return f"decompress it where it was compressed ({header.machine}; here: {here})"
