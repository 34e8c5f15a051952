"""The tokenizer, and how many bytes of text its tokens stand for."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pgolf.data.operators import Transform
from pgolf.data.sentencepiece_model import SentencePieceModel
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes

if TYPE_CHECKING:
    from pgolf.data.backend import Backend

ByteCounts = NDArray[np.uint16]
"""Bytes of text that each of some targets stands for. Add them up in int64."""

_SPACE = "\u2581"
# So many tokens are counted at once.
_BLOCK = 1 << 22


class ByteTable:
    """Counts the bytes of text that targets stand for.

    The counts of a document add up to the UTF-8 length of its text as the tokenizer normalises it. A control,
    unknown or unused piece counts 0 bytes, an operator of CaseOps too, a byte piece 1, any other its raw
    bytes; where U+2581 is a space in pieces it counts 1. There are two exceptions. Some tokenizers put a
    space in front of every document: that one counts 0. And a tokenizer without a piece for the space alone
    spells it in the three byte pieces of U+2581: together they count 1, all of it for the first. One that
    puts a space at the end of every document, which no token tells, is a ``PgolfError``.
    """

    def __init__(self, backend: Backend, name: str = "the tokenizer") -> None:
        size, seen = len(backend.parts), backend.normalize("a")
        if seen.endswith(backend.space):
            raise PgolfError(
                f"{name}: puts a space at the end of every text (treat_whitespace_as_suffix), so a token "
                "does not tell how many bytes it stands for; use a tokenizer that was trained without it"
            )
        self.adds_space = seen.startswith(backend.space)
        """Whether a document begins with a space that is not of its text."""
        self.base = np.zeros(size, dtype=np.int64)
        self.leading_space = np.zeros(size, dtype=bool)
        self.boundary = np.zeros(size, dtype=bool)
        spelling: dict[int, int] = {}
        has_space = False
        for token, part in enumerate(backend.parts):
            if part is None:
                self.boundary[token] = token != backend.unknown_id
            elif backend.is_byte[token]:
                self.base[token] = 1
                spelling[part[0]] = token
            elif token not in backend.operators:
                has_space |= part == b" "
                self.leading_space[token] = part.startswith(b" ")
                self.base[token] = len(part.removeprefix(b" "))
        spelled = [spelling.get(value, -1) for value in _SPACE.encode()]
        self.spelled_space: tuple[int, ...] = () if has_space or min(spelled) < 0 else tuple(spelled)
        """The three byte pieces by which this tokenizer spells a space; empty if it has a piece for it."""

    def count(self, previous: NDArray[np.integer], targets: NDArray[np.integer]) -> NDArray[np.int64]:
        """Bytes of each target, given the token before it; arrays of one shape.

        A spelled space counts 3 here: pairs of tokens do not show it. ``count_stream`` is always exact.
        """
        added = self.boundary[previous] & self.adds_space
        return self.base[targets] + (self.leading_space[targets] & ~added)

    def count_stream(self, tokens: NDArray[np.integer]) -> ByteCounts:
        """Bytes of each token of a stream (n,) but the first, which is no target: (n - 1,)."""
        counts = np.empty(max(len(tokens) - 1, 0), dtype=np.uint16)
        for start in range(0, len(counts), _BLOCK):
            block = np.asarray(tokens[start : start + _BLOCK + 1], dtype=np.int64)
            counts[start : start + _BLOCK] = self.count(block[:-1], block[1:])
        if self.spelled_space:
            first, second, third = (np.asarray(tokens) == token for token in self.spelled_space)
            places = np.flatnonzero(first[:-2] & second[1:-1] & third[2:])
            counts[places] = counts[places + 1] = 0
            # The stream's first token is no target.
            places = places[places > 0]
            counts[places - 1] = ~(self.boundary[tokens[places - 1]] & self.adds_space)
        return counts


def check_model(path: Path) -> None:
    """Raise a ``PgolfError`` if there is no such file."""
    if not path.is_file():
        raise PgolfError(
            f"{path}: no such tokenizer; pass --tokenizer FILE (a SentencePiece model, a Hugging Face "
            "tokenizer.json or a tiktoken encoding)"
        )


class Tokenizer:
    """A tokenizer file of any kind, with its digest and byte table."""

    def __init__(self, path: Path, content: bytes, backend: Backend, transform: Transform = "none") -> None:
        self.path, self._backend = path, backend
        self.content = content
        """The bytes of the file; ``path`` is that file, or an artifact that carries it."""
        self.digest = hashlib.sha256(content).hexdigest()
        """SHA-256 of the file, as 64 hexadecimal digits."""
        self.transform = transform
        """What is done to a text before it becomes pieces, and undone after them."""
        self.parts, self.pieces, self.is_byte = backend.parts, backend.pieces, backend.is_byte
        self.bos_id, self.unknown_id, self.decodes = backend.bos_id, backend.unknown_id, backend.decodes
        self.vocab_size = len(backend.parts)
        self.adds_space = backend.normalize("a").startswith(backend.space)
        """Whether it puts a space in front of a text."""

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Open a tokenizer file of a kind that its content tells; a ``PgolfError`` if there is none."""
        check_model(path)
        return cls.read(path, read_bytes(path))

    @classmethod
    def read(cls, path: Path, content: bytes) -> Tokenizer:
        """Open the content of a tokenizer file; ``path`` is where it lies."""
        from pgolf.data.tokenizer_kinds import other_kind  # Most files are SentencePiece models.

        if (backend := other_kind(path, content)) is not None:
            return cls(path, content, backend)
        try:
            model = SentencePieceModel(content)
        except (RuntimeError, IndexError) as error:  # The latter of an empty file.
            raise PgolfError(
                f"{path}: not a SentencePiece model, nor a Hugging Face tokenizer.json or a tiktoken encoding"
            ) from error
        return cls(path, content, model, model.transform)

    @functools.cached_property
    def byte_table(self) -> ByteTable:
        """Bytes per token."""
        return ByteTable(self._backend, str(self.path))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS."""
        return self._backend.encode(text)

    def spell(self, text: str) -> list[int | bytes]:
        """Tokens of a text as it is, and bytes that no token spells; see ``Backend.spell``."""
        return self._backend.spell(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that token ids stand for."""
        if self.transform == "none":
            return self._backend.decode(list(map(int, tokens)))
        read = self.reader()
        return b"".join(read(int(token)) or b"" for token in tokens).decode(errors="replace")

    def reader(self) -> Callable[[int], bytes | None]:
        """Called with token after token of a text: the bytes that each stands for there.

        None of the unknown, and of controls, which stand for nothing.
        """
        if self.transform == "none":
            return self.parts.__getitem__
        from pgolf.data.caseops import Reader

        return Reader(self.parts, self.is_byte).add

    def normalize(self, text: str) -> str:
        """The text as the tokenizer sees it, without a space that it puts in front: what is counted."""
        return text if self.transform != "none" else self.own_text(self._backend.normalize(text))

    def own_text(self, normalized: str) -> str:
        """Text in which spaces are spaces, without the space that the tokenizer itself puts in front.

        With CaseOps neither is there: it is spelled in bytes.
        """
        if self.transform != "none":
            return normalized
        text = normalized.replace(self._backend.space, " ")
        return text.removeprefix(" ") if self.adds_space else text


def check_usable(tokenizer: Tokenizer) -> None:
    """Raise a ``PgolfError`` if shards cannot hold a tokenizer's tokens, or their bytes cannot be counted."""
    if tokenizer.vocab_size > 1 << 16:
        size = tokenizer.vocab_size
        raise PgolfError(f"{tokenizer.path}: has {size} pieces, but a shard's tokens go up to 65,536")
    if tokenizer.bos_id < 0:
        missing = "has no BOS piece, which begins every document"
        raise PgolfError(f"{tokenizer.path}: {missing}; train it with one")
    _ = tokenizer.byte_table
