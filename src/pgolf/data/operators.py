"""Which pieces are operators for capital letters: all of ``caseops.py`` that counting bytes has to know."""

from __future__ import annotations

from typing import Literal

import sentencepiece

Transform = Literal["none", "caseops"]
"""What is done to a text before it becomes pieces, and undone after them."""
TRANSFORMS: tuple[Transform, ...] = ("none", "caseops")
OPERATORS = ("\ue011", "\ue012", "\ue013")
"""The pieces TITLE, ALLCAPS and CAPNEXT. The field's own CaseOps has U+E001 to U+E004, which stand elsewhere:
its tokenizers are not taken for ours."""


def has_operators(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether a SentencePiece model writes capital letters by operators."""
    return not any(processor.is_unknown(processor.piece_to_id(operator)) for operator in OPERATORS)
