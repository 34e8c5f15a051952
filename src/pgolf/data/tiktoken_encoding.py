"""tiktoken encodings as a kind of tokenizer; see ``backend.py``.

A file is either what tiktoken itself reads, a line with base64 and rank for each piece, which is split as
GPT-2 does and has "<|endoftext|>" at the first rank that is free; or a JSON object of what makes an encoding:
"pat_str", "mergeable_ranks" (pieces in base64 to ranks) and "special_tokens" (names to tokens). Pieces are
bytes, so every text comes back as it was.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from pgolf.data.tokenizer_json import beginning

# Contractions, letters, digits, others, each with a space in front; white space (GPT-2, Radford et al. 2019).
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class TiktokenEncoding:
    """An encoding by its parts; a ``ValueError`` if they make none, an ``ImportError`` without tiktoken."""

    space, unknown_id, decodes = " ", -1, True
    operators: Sequence[int] = ()

    def __init__(self, pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> None:
        import tiktoken

        if missing := {bytes((value,)) for value in range(256)}.difference(ranks):
            raise ValueError(f"no piece for byte {min(missing)[0]}")
        ids = [*ranks.values(), *special.values()]
        if len(set(ids)) < len(ids) or min(ids) < 0 or max(ids) >= 1 << 22:
            raise ValueError("two pieces have one token, or one has none that is possible")
        self._encoding = tiktoken.Encoding(
            "pgolf", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
        self.encode("a 1")  # A pattern that matches nothing at all is noticed here.
        self.bos_id = beginning(special, max(ids) + 1)
        self.parts: list[bytes | None] = [None] * max(max(ids) + 1, self.bos_id + 1)
        for piece, token in ranks.items():
            self.parts[token] = piece
        self.is_byte = [False] * len(self.parts)
        self.pieces = [(part or b"").decode(errors="replace").replace(" ", "\u2581") for part in self.parts]

    @classmethod
    def from_ranks(cls, content: bytes) -> TiktokenEncoding:
        ranks = {}
        for line in content.splitlines():
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        taken = set(ranks.values())
        free = next(token for token in range(len(taken) + 1) if token not in taken)
        return cls(_GPT2, ranks, {"<|endoftext|>": free})

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> TiktokenEncoding:
        ranks = {
            base64.b64decode(piece, validate=True): int(rank)
            for piece, rank in tree["mergeable_ranks"].items()
        }
        return cls(
            str(tree["pat_str"]),
            ranks,
            {str(name): int(token) for name, token in tree["special_tokens"].items()},
        )

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, tokens: list[int]) -> str:
        return self._encoding.decode([token for token in tokens if self.parts[token] is not None])

    def normalize(self, text: str) -> str:
        return text

    def spell(self, text: str) -> list[int | bytes]:
        return [*self.encode(text)]
