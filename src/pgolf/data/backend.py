"""What ``tokenizer.py`` asks of a kind of tokenizer: ``sentencepiece_model.py``, ``tokenizer_json.py``,
``tiktoken_encoding.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Backend(Protocol):
    """What a kind of tokenizer file has to say; each kind is a module of its own."""

    parts: list[bytes | None]
    """Raw bytes that the piece of each token spells; None of the unknown and of controls."""
    pieces: list[str]
    """The same as text, where U+2581 is a space; of controls their names."""
    is_byte: list[bool]
    """Whether each token is a byte piece: one byte of what no other piece spells."""
    operators: Sequence[int]
    """Tokens whose pieces stand for no text (CaseOps)."""
    space: str
    """The character that pieces and normalised text have for a space."""
    bos_id: int
    """The token that begins every document; -1 if there is none."""
    unknown_id: int
    """The token for what no piece spells; -1 if there is none."""
    decodes: bool
    """Whether ``decode`` gives the text that the tokens were made of, as it was normalised."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, none of them a control's."""

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids, as the kind's own library says."""

    def normalize(self, text: str) -> str:
        """The text that pieces are looked up in, with a space that is put in front."""

    def spell(self, text: str) -> list[int | bytes]:
        """Tokens of a text without normalisation, and the bytes themselves where no token spells them.

        No space is put in front. Neither the unknown nor byte pieces are among the tokens. What does not add
        up to the text is noticed by who asks.
        """
