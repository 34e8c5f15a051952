"""What the pieces of a tokenizer look like, and which class each belongs to."""

from __future__ import annotations

from typing import NamedTuple

import sentencepiece

from pgolf.data.tokenizer import Tokenizer
from pgolf.runtime.files import read_bytes

CLASSES = (
    *("document start", "byte fallback", "white space", "digits", "punctuation", "word, lower case"),
    *("word, Capitalised", "word, UPPER CASE", "word part", "word part, upper case", "not ASCII", "mixed"),
)
"""Every piece is in one of these; a word begins with a space, a word part does not."""


class Piece(NamedTuple):
    """One entry of the vocabulary."""

    text: bytes
    """What it stands for in a text, UTF-8, with its leading space; empty for control pieces."""
    kind: str
    """One of ``CLASSES``."""


def pieces_of(tokenizer: Tokenizer) -> list[Piece]:
    """Every piece of a tokenizer, by id."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=read_bytes(tokenizer.path))
    pieces = []
    for token in range(processor.vocab_size()):
        name = processor.id_to_piece(token)
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            pieces.append(Piece(b"", "document start"))
        elif processor.is_byte(token):
            pieces.append(Piece(bytes([int(name[3:5], 16)]), "byte fallback"))
        else:
            text = name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
            pieces.append(Piece(text.encode(), kind_of(text)))
    return pieces


def kind_of(text: str) -> str:
    """The class of a piece's text, with its leading space."""
    word = text.removeprefix(" ")
    if not word.strip():
        return "white space"
    if not word.isascii():
        return "not ASCII"
    if word.isdigit():
        return "digits"
    if not any(character.isalnum() for character in word):
        return "punctuation"
    if not word.isalpha():
        return "mixed"
    if not text.startswith(" "):
        return "word part, upper case" if word.isupper() else "word part"
    if word.isupper() and len(word) > 1:
        return "word, UPPER CASE"
    return "word, Capitalised" if word[0].isupper() else "word, lower case"
