"""Which part of the text is held out for validation: by the text alone, whatever its order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from pgolf.errors import PgolfError

NO_DOCUMENTS = "the text holds no documents that can be used; give other files, or ask why with --bad-documents error"


def document_number(text: str) -> int:
    """The first 8 bytes of the SHA-256 of a text's UTF-8, as a big-endian number: 0 to 2**64 - 1.

    It depends on nothing but the text, and so does the side that a document falls on, in any corpus and any order.
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
            head, tail = cut_at_line(text, self.tail)
            return [("train", head), ("val", tail)]
        return [("val" if self.below and document_number(text) < self.below else "train", text)]


def choose_held_out(documents: Iterable[str], fraction: float) -> HoldOut:
    """The rule that holds out ``fraction`` of the documents, and leaves neither side empty.

    Usually documents whose number is below ``fraction * 2**64``. Where that is none of them, the one with the
    smallest number; where it is all, all but the one with the largest. A single document (or copies of one) is cut:
    see ``cut_at_line``. Reads on only until both sides have a document.

    Args:
        documents: all of them; empty ones do not count.
        fraction: at least 0, below 1; 0 holds out nothing.

    Raises:
        PgolfError: there is no text, or a single document of a single line.
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
        cut_at_line(text, fraction)
        return HoldOut(tail=fraction)
    return HoldOut(smallest + 1 if below <= smallest else largest)


def cut_at_line(text: str, fraction: float) -> tuple[str, str]:
    """Cut a document where a line begins, so that the second part has ``fraction`` of its bytes or a little more.

    Both parts keep at least one line that is not blank; together they are the text.

    Raises:
        PgolfError: the text has a single line.
    """
    data = text.encode()
    first = len(data) - len(text.lstrip().encode())
    earliest = data.find(b"\n", first) + 1
    latest = data.rfind(b"\n", 0, len(text.rstrip().encode())) + 1
    if not 0 < earliest <= latest:
        raise PgolfError(
            "the text is a single document of one line, of which --val-fraction can hold out nothing; "
            "name validation text with --val-text"
        )
    wanted = len(data) - math.ceil(fraction * len(data))
    start = max(earliest, min(latest, data.rfind(b"\n", 0, wanted) + 1))
    return data[:start].decode(), data[start:].decode()
