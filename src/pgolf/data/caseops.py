"""CaseOps: capital letters as operators, so that a word has the same pieces however it is written.

    "The NASA engineer McCoy"  ->  TITLE "the" ALLCAPS " nasa engineer" TITLE " mc" CAPNEXT "coy"

Only A to Z count. Of a run of letters that are all capital, two at least, ALLCAPS makes every letter one;
TITLE makes the first letter a capital, CAPNEXT the letter after it. TITLE and ALLCAPS stand before the space
in front of the word, if there is one: so " the" is one piece in " The" too. (In the field's own CaseOps they
stand behind it; openai/parameter-golf #1729 has the idea.)

Operators are pieces of their own and no characters of a text. What a text has of these very characters is
spelled in byte pieces, and so is U+2581, which inside pieces is a space: byte pieces are taken literally. So
every text becomes tokens from which exactly it comes back, and what a token counts depends on it alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import sentencepiece

from pgolf.data.operators import OPERATORS

TITLE, ALLCAPS, CAPNEXT = OPERATORS
LITERAL = re.compile(f"([{''.join(OPERATORS)}\u2581]+)")
"""Characters that only byte pieces spell."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""Each has to be a piece: a letter in a byte piece would be taken literally."""

# A run of letters with a capital. It is tried where a run begins, and there takes no letter twice.
_WORD = re.compile(r"( ?)(?<![A-Za-z])([a-z]*+[A-Z][A-Za-z]*+)")
_CAPITAL = re.compile("[A-Z]")
_SMALL = LETTERS.encode()
_MARKS = {operator.encode(): operator for operator in OPERATORS}


def lowered(text: str) -> str:
    """A text, which has no ``LITERAL`` characters, without its capitals and with operators instead."""
    return _WORD.sub(_lowered_word, text)


def _lowered_word(match: re.Match[str]) -> str:
    space, word = match.groups()
    small = word.lower()
    if len(word) > 1 and word.isupper():
        return ALLCAPS + space + small
    operator = "" if word[0] == small[0] else TITLE
    return operator + space + small[0] + _CAPITAL.sub(lambda found: CAPNEXT + found[0].lower(), word[1:])


def encode(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Token ids of any text, with ``LITERAL`` characters in byte pieces."""
    tokens: list[int] = []
    for index, part in enumerate(LITERAL.split(text)):
        if index % 2:
            tokens += (processor.piece_to_id(f"<0x{byte:02X}>") for byte in part.encode())
        elif part:
            tokens += processor.encode(lowered(part))
    return tokens


class Reader:
    """Turns tokens into text again, one after the other.

    Any tokens give a text, as many bytes as they count: an operator that no letter follows does nothing.

    Args:
        parts: what each token's piece is spelled like, UTF-8; None of control pieces.
        is_byte: whether each is a byte piece.
    """

    def __init__(self, parts: Sequence[bytes | None], is_byte: Sequence[bool]) -> None:
        self._parts, self._is_byte = parts, is_byte
        self._operator: str | None = None
        self._at_space = False

    def add(self, token: int) -> bytes | None:
        """What a token stands for after those before it; None of a control piece."""
        part = self._parts[token]
        if part in _MARKS:
            self._operator, self._at_space = _MARKS[part], True
            return b""
        if self._operator is None or part is None or self._is_byte[token]:
            self._operator = None
            return part
        first = int(self._at_space and part.startswith(b" "))
        self._at_space = False
        if first == len(part):
            return part
        end = first + 1
        if self._operator == ALLCAPS:
            end = len(part) - len(part[first:].lstrip(_SMALL))
        if self._operator != ALLCAPS or end < len(part):
            self._operator = None
        return part[:first] + part[first:end].upper() + part[end:]
