"""Text in the pieces of a SentencePiece model, without its normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import sentencepiece

# A protocol buffer appended to another one overrides its fields. This one sets, in the model's field 3 (how
# to normalise): 2 (table of replaced characters) to nothing, 3 (space in front) and 4 (merged spaces) to
# false.
_AS_IT_IS = bytes((0x1A, 6, 0x12, 0, 0x18, 0, 0x20, 0))


def as_it_is(content: bytes) -> sentencepiece.SentencePieceProcessor:
    """The model of a content that does not normalise."""
    return sentencepiece.SentencePieceProcessor(model_proto=content + _AS_IT_IS)


def spell(
    processor: sentencepiece.SentencePieceProcessor,
    parts: Sequence[bytes | None],
    is_byte: Sequence[bool],
    text: str,
) -> list[int | bytes]:
    """Tokens of a text, and bytes where none stands for them; see ``Backend.spell``."""
    tokens, unknown = processor.encode(text), processor.unk_id()
    found = [parts[token] for token in tokens]
    if unknown in tokens:
        names = processor.encode(text, out_type=str)
        for index, token in enumerate(tokens):
            if token == unknown:
                found[index] = names[index].replace("\u2581", " ").encode()
    known = [part for part in found if part]
    if len(known) == len(found) and b"".join(known) == text.encode():
        pairs = zip(tokens, known, strict=True)
        return [part if token == unknown or is_byte[token] else token for token, part in pairs]
    # Rare: something that even the unknown piece and byte pieces do not spell.
    if middle := len(text) // 2:
        left, right = text[:middle], text[middle:]
        return spell(processor, parts, is_byte, left) + spell(processor, parts, is_byte, right)
    return [text.encode()]
