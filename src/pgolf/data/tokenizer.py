"""The tokenizer, and the only authority on how many bytes of text a token stands for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from pgolf.errors import PgolfError
from pgolf.files import read_bytes, sha256_file

_SPACE = "\u2581"


class ByteTable:
    """Counts the bytes of text that targets stand for, given the token before each.

    A control, unknown or unused piece counts 0 bytes, a byte piece 1, any other its UTF-8 length without
    one leading U+2581; that space counts 1 more unless the token before is a control, unknown or unused
    piece (nothing precedes the text then, so the space is not part of it). A U+2581 inside a piece is a
    space of the text and counts 1.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        size = processor.vocab_size()
        self.base = np.zeros(size, dtype=np.int64)
        self.leading_space = np.zeros(size, dtype=bool)
        self.boundary = np.ones(size, dtype=bool)
        for token in range(size):
            if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
                continue
            self.boundary[token] = False
            if processor.is_byte(token):
                self.base[token] = 1
                continue
            piece = processor.id_to_piece(token)
            self.leading_space[token] = piece.startswith(_SPACE)
            self.base[token] = len(piece.removeprefix(_SPACE).replace(_SPACE, " ").encode())

    def count(self, previous: NDArray[np.integer], targets: NDArray[np.integer]) -> NDArray[np.int64]:
        """Bytes of each target, int64, of the same shape as the two arrays of token ids."""
        return self.base[targets] + (self.leading_space[targets] & ~self.boundary[previous])


class Tokenizer:
    """A SentencePiece model with its digest and byte table."""

    def __init__(self, path: Path, processor: sentencepiece.SentencePieceProcessor) -> None:
        self.path = path
        self._processor = processor

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Open a SentencePiece ``.model`` file.

        Raises:
            PgolfError: absent, or not a SentencePiece model.
        """
        if not path.is_file():
            raise PgolfError(f"{path}: no such tokenizer; pass --tokenizer MODEL (a SentencePiece .model file)")
        try:
            # By its content: the library can open no file whose name is not UTF-8.
            processor = sentencepiece.SentencePieceProcessor(model_proto=read_bytes(path))
        except (RuntimeError, OSError) as error:
            raise PgolfError(f"{path}: not a SentencePiece model") from error
        return cls(path, processor)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the model file, as 64 hexadecimal digits."""
        return sha256_file(self.path)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return int(self._processor.vocab_size())

    @property
    def bos_id(self) -> int:
        """The token that begins every document."""
        return int(self._processor.bos_id())

    @functools.cached_property
    def byte_table(self) -> ByteTable:
        """Bytes per token."""
        return ByteTable(self._processor)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS."""
        return list(self._processor.encode(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that token ids stand for."""
        return str(self._processor.decode(list(map(int, tokens))))

    def normalize(self, text: str) -> str:
        """The text as the tokenizer sees it: what the counted bytes of a document refer to.

        One leading space is not part of it: some tokenizers put it there themselves, and by the definition
        of bytes it counts for nothing after BOS.
        """
        return str(self._processor.normalize(text)).replace(_SPACE, " ").removeprefix(" ")
