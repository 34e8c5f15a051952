"""From tokens to text as they come: only whole characters, and nothing of a stop string.

A token may be a part of a character (a byte piece), so bytes wait until they are one. What may be the
beginning of a stop string waits too.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from pgolf.codec.pieces import Pieces

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


class TextWriter:
    """Turns tokens into text.

    Bytes that are no UTF-8, and the unknown piece, become U+FFFD. A new document becomes a blank line.

    Args:
        pieces: of the tokenizer.
        stop: text ends before the first of these that comes up; none may be empty.
        drop_space: whether a space that the text begins with is left out.
    """

    def __init__(self, pieces: Pieces, stop: Sequence[str], drop_space: bool) -> None:
        self._pieces, self._stop, self._drop_space = pieces, tuple(stop), drop_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = ""
        self.stopped = False
        """Whether a stop string came up; there is no more text then."""

    def add(self, token: int) -> str:
        """The text that is settled by one more token, often empty."""
        content = self._content(token)
        if content and self._drop_space:
            content, self._drop_space = content.removeprefix(b" "), False
        if token == self._pieces.first:
            self._drop_space = self._pieces.spaced
        return self._settled(self._decoder.decode(content))

    def finish(self) -> str:
        """The text that has been waiting, when no more tokens come."""
        text = self._settled(self._decoder.decode(b"", final=True))
        return text if self.stopped else text + self._waiting

    def _content(self, token: int) -> bytes:
        if token == self._pieces.first:
            return b"\n\n"
        if token == self._pieces.unknown:
            return _REPLACEMENT
        return self._pieces.bytes_of(token) or b""

    def _settled(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._waiting + text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        settled = len(text) - held
        self._waiting = text[settled:]
        return text[:settled]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that are the beginning of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
