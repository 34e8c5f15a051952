"""SentencePiece models as a kind of tokenizer; see ``Backend`` in ``tokenizer.py``."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import sentencepiece

from pgolf.data.operators import OPERATORS, Transform, has_operators

_SPACE = "\u2581"
# A protocol buffer appended to another one overrides its fields. This one sets, in the model's field 3 (how
# to normalise): 2 (table of replaced characters) to nothing, 3 (space in front) and 4 (merged spaces) to
# false.
_AS_IT_IS = bytes((0x1A, 6, 0x12, 0, 0x18, 0, 0x20, 0))


class SentencePieceModel:
    """A model by its content; a ``RuntimeError`` if it is none."""

    space, decodes = _SPACE, True

    def __init__(self, content: bytes) -> None:
        self._content = content
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

    @functools.cached_property
    def _literal(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self._content + _AS_IT_IS)

    def spell(self, text: str) -> list[int | bytes]:
        tokens = self._literal.encode(text)
        parts = [self.parts[token] for token in tokens]
        if self.unknown_id in tokens:
            names = self._literal.encode(text, out_type=str)
            for index, token in enumerate(tokens):
                if token == self.unknown_id:
                    parts[index] = names[index].replace(_SPACE, " ").encode()
        known = [part for part in parts if part]
        if len(known) == len(parts) and b"".join(known) == text.encode():
            pairs = zip(tokens, known, strict=True)
            return [
                part if token == self.unknown_id or self.is_byte[token] else token for token, part in pairs
            ]
        # Rare: something that even the unknown piece and byte pieces do not spell.
        if middle := len(text) // 2:
            return self.spell(text[:middle]) + self.spell(text[middle:])
        return [text.encode()]
