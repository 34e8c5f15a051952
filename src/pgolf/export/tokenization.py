"""A tokenizer of pgolf's as ``transformers`` wants it. An exported folder has this with all that it uses, in
one file.

A text becomes the tokens that `pgolf data prepare` makes of it, after BOS. What special tokens are called is
text in a text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from pgolf.data.tokenizer import Tokenizer


class PgolfTokenizer(PreTrainedTokenizer):
    """Tokens are called by their pieces; what has none, or one that others have, by its number."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **options: Any) -> None:
        self.own = Tokenizer.load(Path(vocab_file))
        self.names: list[str] = []
        self.ids: dict[str, int] = {}
        for token, piece in enumerate(self.own.pieces):
            name = piece if piece and piece not in self.ids else f"<|{token}|>"
            self.names.append(name)
            self.ids[name] = token
        begin = self.names[self.own.bos_id]
        for role in ("bos_token", "eos_token", "pad_token"):
            options.setdefault(role, begin)
        options["split_special_tokens"] = True
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.own.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """The token of each name."""
        return dict(self.ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self.names[token] for token in self.own.encode(text)]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.names[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens by their names."""
        return self.own.decode([self.ids[name] for name in tokens])

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """BOS and the tokens; of a pair, those of both as one document."""
        return [self.own.bos_id, *token_ids_0, *(token_ids_1 or [])]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write the tokenizer's file."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}tokenizer.model"
        path.write_bytes(self.own.content)
        return (str(path),)
