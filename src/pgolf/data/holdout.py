"""Which part of the text is held out for validation: by the text alone, whatever its order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from pgolf.errors import PgolfError

NO_DOCUMENTS = (
    "the text holds no documents that can be used; give other files, or ask why with --bad-documents error"
)
_NEAR = 64


def document_number(text: str) -> int:
    """The first 8 bytes of the SHA-256 of a text's UTF-8, as a big-endian number: 0 to 2**64 - 1.

    It depends on nothing but the text, and so does the side that a document falls on, in any corpus and any
    order.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class HoldOut:
    """How documents are shared between training and validation; by default all of them are training text."""

    below: float = 0
    """A document whose number is below this one is validation text."""
    tail: float = 0.0
    """Instead, of every document this part of its bytes, from its end."""

    def pieces(self, text: str) -> list[tuple[str, str]]:
        """Split ("train" or "val") and text of what a document becomes; together they are the document."""
        if self.tail:
            head, tail = cut_end(text, self.tail)
            return [("train", head), ("val", tail)]
        return [("val" if self.below and document_number(text) < self.below else "train", text)]


def choose_held_out(documents: Iterable[str], fraction: float, name: str = "the text") -> HoldOut:
    """The rule that holds out ``fraction`` of the documents, and leaves neither side empty.

    Usually documents whose number is below ``fraction * 2**64``. Where that is none of them, the one with the
    smallest number; where it is all, all but the one with the largest. A single document (or copies of one)
    is cut: see ``cut_end``. Reads on only until both sides have a document.

    Args:
        documents: all of them; empty ones do not count.
        fraction: at least 0, below 1; 0 holds out nothing.
        name: what to call the text in messages.

    Raises:
        PgolfError: there is no text, or a single document that cannot be cut.
    """
    if not fraction:
        return HoldOut()
    below = fraction * 2**64
    smallest, largest, text = 2**64, -1, ""
    for text in filter(None, documents):
        number = document_number(text)
        smallest, largest = min(smallest, number), max(largest, number)
        if smallest < below <= largest:
            return HoldOut(below)
    if largest < 0:
        raise PgolfError(NO_DOCUMENTS)
    if smallest == largest:
        cut_end(text, fraction, name)
        return HoldOut(tail=fraction)
    return HoldOut(smallest + 1 if below <= smallest else largest)


def cut_end(text: str, fraction: float, name: str = "the text") -> tuple[str, str]:
    """Cut a document so that the second part has ``fraction`` of its bytes, or a little more; together they
    are it.

    The cut is where a line begins. Where that is not near the wanted place, as lines are long, it is after
    white space. Near means that the second part has at least half of what is wanted and at most twice that or
    ``_NEAR`` bytes more, and the first part at least half of the rest. Both keep at least one line or word
    that is not blank.

    Args:
        text: the document.
        fraction: above 0, below 1.
        name: what to call it in messages.

    Raises:
        PgolfError: the text has a single line, or no place near the wanted one where it can be cut.
    """
    data = text.encode()
    first, last = len(data) - len(text.lstrip().encode()), len(text.rstrip().encode())
    wanted = math.ceil(fraction * len(data))
    start = _last_start(data, b"\n", first, last, len(data) - wanted)
    if start is None:
        raise PgolfError(
            f"{name}: is a single document of one line, of which --val-fraction can hold out nothing; "
            "name validation text with --val-text"
        )
    if not _near(start, wanted, len(data)):
        start = _last_start(data, b"\n\r\t ", first, last, len(data) - wanted)
    if start is None or not _near(start, wanted, len(data)):
        raise PgolfError(
            f"{name}: is a single document with no line end or white space near the last {wanted:,} of its "
            f"{len(data):,} bytes, which --val-fraction {fraction:g} holds out; name validation text with --val-text"
        )
    return data[:start].decode(), data[start:].decode()


def _last_start(data: bytes, ends: bytes, first: int, last: int, wanted: int) -> int | None:
    """The last place up to ``wanted`` that follows one of the bytes ``ends``, with text before and after it.

    Args:
        data: the document; its text without white space around it is ``data[first:last]``.
        wanted: if there is none up to here, the first after it.
    """
    before = [data.rfind(end, first, max(first, min(wanted, last))) + 1 for end in ends]
    if any(before):
        return max(before)
    after = [place + 1 for end in ends if (place := data.find(end, first, last)) >= 0]
    return min(after, default=None)


def _near(start: int, wanted: int, size: int) -> bool:
    tail = size - start
    return wanted <= 2 * tail and tail - wanted <= max(wanted, _NEAR) and 2 * start >= size - wanted
