"""Between bytes and tokens, without loss: any file as tokens of any tokenizer plus runs of raw bytes.

What a token stands for is fixed by the token alone: the characters of its piece, or the byte of a byte piece.
(With CaseOps also by the operators before it; see ``data/caseops.py``.) So tokens become bytes again by
putting these side by side, and the tokenizer's normalisation (which may drop spaces, replace characters, or
put a space in front) is left out on the way there. What no piece spells becomes byte pieces where it is short
and the model has them; everything else becomes a *run*: the unknown piece, or if there is none the token that
begins a document, with the bytes beside it. Only white space that the tokenizer makes spaces of stays that
way, and is kept beside the tokens too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pgolf.codec.raw import without_gaps
from pgolf.data.caseops import lowered
from pgolf.data.operators import OPERATORS
from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError

# No text: bytes that are no UTF-8 (as Python escapes them), control characters but tab and newlines, and the
# sign that stands for a space inside pieces, and what pieces write capitals by.
_FOREIGN = re.compile(f"([\udc80-\udcff\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u2581{''.join(OPERATORS)}]+)")
# Text of fewer bytes than this is not worth being text between foreign characters, or between many of them.
_SHORT_TEXT, _LONG_TEXT = 8, 64
# So many bytes in a row are spelled by byte pieces; more are cheaper, and faster, as a run.
_SHORT_RUN = 16
# Characters that are tokenized at once.
_PART = 1 << 16


@dataclass(frozen=True)
class Spelling:
    """A file as tokens and runs."""

    tokens: Tokens
    """(n,) uint16."""
    runs: list[bytes]
    """What each unknown piece among the tokens stands for, in order; none is empty."""
    gaps: list[bytes] | None
    """What stands for each space of the tokens, in order; None if they are spaces (see ``raw.py``)."""
    spaced: bool
    """Whether the tokens spell one space more, in front, as tokenizers that put it there know words best."""


class Pieces:
    """The pieces of a tokenizer as bytes; a ``PgolfError`` if more than 65,536, or none for a run."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._bytes, self._is_byte = tokenizer, tokenizer.parts, tokenizer.is_byte
        size = tokenizer.vocab_size
        self.unknown = tokenizer.unknown_id if tokenizer.unknown_id >= 0 else tokenizer.bos_id
        """What stands for a run: the unknown piece, or else the one that begins a document."""
        if size > 1 << 16 or not 0 <= self.unknown < size:
            raise PgolfError(f"{tokenizer.path}: needs at most 65,536 pieces, one of them for the unknown")
        self.first = tokenizer.bos_id if tokenizer.bos_id >= 0 else self.unknown
        """What stands before the first token."""
        self.reader = tokenizer.reader
        """A function that is called with token after token of a text: what each stands for there."""
        self._lowered = tokenizer.transform != "none"
        # Byte pieces count, where there are any, and not the letter of the same byte.
        by_kind = sorted(range(size), key=self._is_byte.__getitem__)
        spelled = {part: token for token in by_kind if (part := self._bytes[token]) and len(part) == 1}
        whole = len(spelled) == 256
        self._byte_tokens = [spelled[bytes((value,))] for value in range(256)] if whole else None
        self.spaced = tokenizer.adds_space
        """Whether the tokenizer puts a space in front of a text."""
        newline, space, nothing = map(tokenizer.normalize, ("a\nb", "a b", "ab"))
        self._folds = newline == space != nothing

    def spell(self, content: bytes) -> Spelling:
        """Any bytes as tokens and runs, such that ``join`` gives them back."""
        parts = _divided(content.decode("utf-8", "surrogateescape"))
        front = self.spaced and bool(parts) and parts[0][0]
        units: list[int | bytes] = []
        gaps: list[bytes] = []
        for index, (is_text, part) in enumerate(parts):
            if is_text:
                part = lowered(part) if self._lowered else part
                for place, text in enumerate(_cut(part)):
                    units += self._units(text, gaps, front and index == 0 and place == 0)
            else:
                units.append(part.encode("utf-8", "surrogateescape"))
        tokens: list[int] = []
        runs: list[bytes] = []
        # Bytes in a row are put together before it is decided what they become.
        for _, group in itertools.groupby(units, key=type):
            alike = list(group)
            foreign = b"".join(unit for unit in alike if isinstance(unit, bytes))
            if not foreign:
                tokens += [unit for unit in alike if isinstance(unit, int)]
            elif self._byte_tokens is not None and len(foreign) <= _SHORT_RUN:
                tokens += [self._byte_tokens[value] for value in foreign]
            else:
                tokens.append(self.unknown)
                runs.append(foreign)
        folded = gaps if self._folds else None
        spelling = Spelling(np.array(tokens, dtype=np.uint16), runs, folded, front and not self._folds)
        # No tokenizer is known to need the run.
        return spelling if self.join(spelling) == content else self.as_run(content)

    def as_run(self, content: bytes) -> Spelling:
        """Any bytes, at least one, as a single run."""
        return Spelling(np.array([self.unknown], dtype=np.uint16), [content], None, spaced=False)

    def is_byte(self, token: int) -> bool:
        """Whether a token is a byte piece: its space, if it is one, is no gap."""
        return self._is_byte[token]

    def join(self, spelling: Spelling) -> bytes:
        """The bytes that a spelling stands for."""
        runs = iter(spelling.runs)
        gaps = None if spelling.gaps is None else iter(spelling.gaps)
        joined, read = bytearray(), self.reader()
        for token in spelling.tokens.tolist():
            part = read(token) or b""
            if token == self.unknown:
                joined += next(runs)
                continue
            if gaps is not None and not self._is_byte[token]:
                part = b"".join(next(gaps) if value == ord(" ") else bytes((value,)) for value in part)
            joined += part
        return bytes(joined[int(spelling.spaced) :])

    def _units(self, text: str, gaps: list[bytes], front: bool) -> list[int | bytes]:
        """A part of the text as tokens and bytes, and its gaps added; ``front``: with a space in front."""
        seen, found = without_gaps(text) if self._folds else (text, [])
        if front and not (self._folds and seen.startswith(" ")):
            seen, found = " " + seen, [b"", *found]
        units = self._tokenizer.spell(seen)
        if self._folds and self._spaces(units) != len(found):
            # Rare: a space that no token spells.
            if middle := len(text) // 2:
                return self._units(text[:middle], gaps, front) + self._units(text[middle:], gaps, False)
            return [text.encode()]
        gaps += found
        return units

    def _spaces(self, units: list[int | bytes]) -> int:
        """Spaces that the tokens among the units spell."""
        return sum((self._bytes[unit] or b"").count(b" ") for unit in units if isinstance(unit, int))


def _divided(text: str) -> list[tuple[bool, str]]:
    """Text and foreign characters in turn: whether it is text, and the characters; none empty.

    Short text beside foreign characters counts as foreign; beside many of them, longer text does too.
    """
    parts = [(index % 2 == 0, part) for index, part in enumerate(_FOREIGN.split(text))]
    if len(parts) == 1:
        return parts if text else []
    parts = _merged([is_text and len(part.encode()) >= _SHORT_TEXT for is_text, part in parts], parts)
    many = [not is_text and len(part) > _SHORT_RUN for is_text, part in parts]
    beside = [left or right for left, right in zip([False, *many], [*many[1:], False], strict=False)]
    kinds = [
        is_text and (len(part.encode()) >= _LONG_TEXT or not near)
        for (is_text, part), near in zip(parts, beside, strict=True)
    ]
    return _merged(kinds, parts)


def _merged(is_text: list[bool], parts: list[tuple[bool, str]]) -> list[tuple[bool, str]]:
    """The parts with new kinds, neighbours of one kind put together, empty ones left out."""
    groups = itertools.groupby(zip(is_text, parts, strict=True), key=lambda entry: entry[0])
    joined = [(kind, "".join(part for _, (_, part) in group)) for kind, group in groups]
    return [(kind, part) for kind, part in joined if part]


def _cut(text: str) -> Iterator[str]:
    """A long text in parts, cut before the end of a line or before a word where there is one."""
    start = 0
    while len(text) - start > _PART:
        end = start + _PART
        found = max(text.rfind("\n", start + 1, end), text.rfind(" ", start + 1, end))
        found = found if found > start else end
        yield text[start:found]
        start = found
    if start < len(text):
        yield text[start:]
