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

    So the side that a document falls on depends on nothing but its text, in any corpus and any order.
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
            return list(zip(("train", "val"), cut_end(text, self.tail), strict=True))
        return [("val" if self.below and document_number(text) < self.below else "train", text)]


def choose_held_out(documents: Iterable[str], fraction: float, name: str = "the text") -> HoldOut:
    """The rule that holds out ``fraction`` of the documents, and leaves neither side empty.

    Usually documents whose number is below ``fraction * 2**64``. Where that is none of them, the one with the
    smallest number; where it is all, all but the one with the largest. A single document (or copies of one)
    is cut: see ``cut_end``. Empty documents do not count. Reads on only until both sides have a document. No
    text, or a document that cannot be cut, is a ``PgolfError``.
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
    """Cut a document so that its second part has ``fraction`` (0 to 1) of its bytes, or a little more.

    The cut is where a line begins. Where that is not near the wanted place, as lines are long, it is after
    white space. Near means that the second part has at least half of what is wanted and at most twice that or
    ``_NEAR`` bytes more, and the first part at least half of the rest. Both keep at least one line or word
    that is not blank. A text (called ``name``) without such a place is a ``PgolfError``.
    """
    data = text.encode()
    first, last = len(data) - len(text.lstrip().encode()), len(text.rstrip().encode())
    size, wanted = len(data), math.ceil(fraction * len(data))
    start = _last_start(data, b"\n", first, last, size - wanted)
    if not start:
        raise PgolfError(
            f"{name}: is a single document of one line, of which --val-fraction can hold out nothing; "
            "name validation text with --val-text"
        )
    if not _near(start, wanted, size):
        start = _last_start(data, b"\n\r\t ", first, last, size - wanted)
    if not _near(start, wanted, size):
        raise PgolfError(
            f"{name}: is a single document with no line end or white space near the last {wanted:,} of its "
            f"{size:,} bytes, which --val-fraction {fraction:g} holds out; name validation text with "
            "--val-text"
        )
    return data[:start].decode(), data[start:].decode()


def _last_start(data: bytes, ends: bytes, first: int, last: int, wanted: int) -> int:
    """The last place up to ``wanted`` that follows one of the bytes ``ends``, with text before and after it.

    If there is none, the first place after it, or 0. The text of ``data`` is ``data[first:last]``, with white
    space around it.
    """
    before = max(data.rfind(end, first, max(first, min(wanted, last))) for end in ends)
    after = min((place for end in ends if (place := data.find(end, first, last)) >= 0), default=-1)
    return (before if before >= 0 else after) + 1


def _near(start: int, wanted: int, size: int) -> bool:
    tail = size - start
    return wanted <= 2 * tail and tail - wanted <= max(wanted, _NEAR) and 2 * start >= size - wanted
