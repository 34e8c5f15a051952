"""The tokenizer, and how many bytes of text its tokens stand for."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from pgolf.data.operators import OPERATORS, Transform, has_operators
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes

ByteCounts = NDArray[np.uint16]
"""Bytes of text that each of some targets stands for. Add them up in int64."""

_SPACE = "\u2581"
# So many tokens are counted at once.
_BLOCK = 1 << 22


class ByteTable:
    """Counts the bytes of text that targets stand for.

    The counts of a document add up to the UTF-8 length of its text as the tokenizer normalises it. A control,
    unknown or unused piece counts 0 bytes, an operator of CaseOps too, a byte piece 1, any other its UTF-8
    length, where each U+2581 is a space of the text and counts 1. There are two exceptions. Some tokenizers
    put a space in front of every document: that one counts 0. And a tokenizer without a piece for the space
    alone spells it in the three byte pieces of U+2581: together they count 1, all of it for the first. One
    that puts a space at the end of every document, which no token tells, is a ``PgolfError``.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, name: str = "the tokenizer") -> None:
        size, seen = processor.vocab_size(), str(processor.normalize("a"))
        if seen.endswith(_SPACE):
            raise PgolfError(
                f"{name}: puts a space at the end of every text (treat_whitespace_as_suffix), so a token "
                "does not tell how many bytes it stands for; use a tokenizer that was trained without it"
            )
        self.adds_space = seen.startswith(_SPACE)
        """Whether a document begins with a space that is not of its text."""
        self.base = np.zeros(size, dtype=np.int64)
        self.leading_space = np.zeros(size, dtype=bool)
        self.boundary = np.zeros(size, dtype=bool)
        spelling: dict[int, int] = {}
        has_space, operators = False, OPERATORS if has_operators(processor) else ()
        for token in range(size):
            piece = processor.id_to_piece(token)
            if processor.is_control(token) or processor.is_unused(token):
                self.boundary[token] = True
            elif processor.is_byte(token):
                self.base[token] = 1
                spelling[int(piece[3:5], 16)] = token
            elif not processor.is_unknown(token) and piece not in operators:
                has_space |= piece == _SPACE
                self.leading_space[token] = piece.startswith(_SPACE)
                self.base[token] = len(piece.removeprefix(_SPACE).replace(_SPACE, " ").encode())
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
        raise PgolfError(f"{path}: no such tokenizer; pass --tokenizer MODEL (a SentencePiece .model file)")


class Tokenizer:
    """A SentencePiece model with its digest and byte table."""

    def __init__(self, path: Path, processor: sentencepiece.SentencePieceProcessor, content: bytes) -> None:
        self.path, self._processor = path, processor
        self.content = content
        """The model file's bytes; ``path`` is that file, or an artifact that carries it."""
        self.digest = hashlib.sha256(content).hexdigest()
        """SHA-256 of the model file, as 64 hexadecimal digits."""
        self.vocab_size = int(processor.vocab_size())
        self.bos_id = int(processor.bos_id())
        """The token that begins every document."""
        self.unknown_id = int(processor.unk_id())
        """The token for what no piece spells; the bytes of that text are lost."""
        self.transform: Transform = "caseops" if has_operators(processor) else "none"
        """What is done to a text before it becomes pieces, and undone after them."""

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Open a SentencePiece ``.model`` file; a ``PgolfError`` if it is absent or no such model."""
        check_model(path)
        return cls.read(path, read_bytes(path))

    @classmethod
    def read(cls, path: Path, content: bytes) -> Tokenizer:
        """Open the content of a ``.model`` file; ``path`` is where it lies."""
        try:
            # By its content: the library can open no file whose name is not UTF-8.
            processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, OSError) as error:
            raise PgolfError(f"{path}: not a SentencePiece model") from error
        return cls(path, processor, content)

    @property
    def pieces(self) -> list[str]:
        """Every piece as it is spelled in the model, by token."""
        return [str(self._processor.id_to_piece(token)) for token in range(self.vocab_size)]

    @functools.cached_property
    def parts(self) -> list[bytes | None]:
        """What the piece of each token is spelled like, in UTF-8; None of the unknown and of controls."""
        return [_bytes_of(self._processor, token) for token in range(self.vocab_size)]

    @functools.cached_property
    def is_byte(self) -> list[bool]:
        """Whether each token is a byte piece."""
        return [bool(self._processor.is_byte(token)) for token in range(self.vocab_size)]

    @functools.cached_property
    def byte_table(self) -> ByteTable:
        """Bytes per token."""
        return ByteTable(self._processor, str(self.path))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS."""
        if self.transform == "none":
            return list(self._processor.encode(text))
        from pgolf.data.caseops import encode  # Scoring tokens does without.

        return encode(self._processor, text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that token ids stand for."""
        if self.transform == "none":
            return str(self._processor.decode(list(map(int, tokens))))
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
        return text if self.transform != "none" else self.own_text(str(self._processor.normalize(text)))

    def own_text(self, normalized: str) -> str:
        """Text in which each U+2581 is a space, without the space that the tokenizer itself puts in front.

        With CaseOps neither is there: it is spelled in bytes.
        """
        if self.transform != "none":
            return normalized
        text = normalized.replace(_SPACE, " ")
        return text.removeprefix(" ") if self.byte_table.adds_space else text


def _bytes_of(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes | None:
    if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
        return None
    name = str(processor.id_to_piece(token))
    if processor.is_byte(token):
        return bytes((int(name[3:5], 16),))
    return name.replace(_SPACE, " ").encode()


def check_usable(tokenizer: Tokenizer) -> None:
    """Raise a ``PgolfError`` if shards cannot hold a tokenizer's tokens, or their bytes cannot be counted."""
    if tokenizer.vocab_size > 1 << 16:
        size = tokenizer.vocab_size
        raise PgolfError(f"{tokenizer.path}: has {size} pieces, but a shard's tokens go up to 65,536")
    if tokenizer.bos_id < 0:
        missing = "has no BOS piece, which begins every document"
        raise PgolfError(f"{tokenizer.path}: {missing}; train it with one")
    _ = tokenizer.byte_table
