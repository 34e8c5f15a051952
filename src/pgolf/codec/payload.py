"""The payload of a compressed file: tokens under the model, and what no token spells, in one range code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from pgolf.codec.arithmetic import Decoder, Encoder
from pgolf.codec.container import Header, plausible
from pgolf.codec.pieces import Pieces, Spelling
from pgolf.codec.raw import ByteModel, GapModel
from pgolf.codec.stream import TokenStream, machine
from pgolf.errors import PgolfError
from pgolf.evaluate.protocol import Scorer

Progress = Callable[[int, int], None]
# Targets between two reports of progress.
_REPORT = 16
_T = TypeVar("_T")


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
    text, run_bytes = bytearray(), 0
    for done in range(1, stream.targets + 1):
        token = stream.next(_next(tokens))
        part = pieces.bytes_of(token)
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
