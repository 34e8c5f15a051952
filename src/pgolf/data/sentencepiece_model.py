"""SentencePiece models as a kind of tokenizer; see ``backend.py``."""

from __future__ import annotations

from collections.abc import Sequence

import sentencepiece

from pgolf.data.operators import OPERATORS, Transform, has_operators

_SPACE = "\u2581"


class SentencePieceModel:
    """A model by its content; a ``RuntimeError`` or ``IndexError`` if it is none."""

    space, decodes = _SPACE, True

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._literal: sentencepiece.SentencePieceProcessor | None = None
        # By its content: the library can open no file whose name is not UTF-8.
        self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.transform: Transform = "caseops" if has_operators(processor) else "none"
        self.operators: Sequence[int] = ()
        if self.transform != "none":
            self.operators = [processor.piece_to_id(operator) for operator in OPERATORS]
        self.bos_id, self.unknown_id = int(processor.bos_id()), int(processor.unk_id())
        tokens = range(processor.vocab_size())
        self.pieces = [str(processor.id_to_piece(token)) for token in tokens]
        self.is_byte = [bool(processor.is_byte(token)) for token in tokens]
        self.parts = [self._part(token) for token in tokens]

    def _part(self, token: int) -> bytes | None:
        processor, piece = self._processor, self.pieces[token]
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            return None
        if self.is_byte[token]:
            return bytes((int(piece[3:5], 16),))
        return piece.replace(_SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        if self.transform == "none":
            return list(self._processor.encode(text))
        from pgolf.data.caseops import encode  # Scoring tokens does without.

        return encode(self._processor, text)

    def decode(self, tokens: list[int]) -> str:
        return str(self._processor.decode(tokens))

    def normalize(self, text: str) -> str:
        return str(self._processor.normalize(text))

    def spell(self, text: str) -> list[int | bytes]:
        from pgolf.data.spelling import as_it_is, spell  # Scoring tokens does without.

        if self._literal is None:
            self._literal = as_it_is(self._content)
        return spell(self._literal, self.parts, self.is_byte, text)
