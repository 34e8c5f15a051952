"""What is in a tokenizer file that is no SentencePiece model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pgolf.data.tiktoken_encoding import TiktokenEncoding
from pgolf.data.tokenizer_json import TokenizerJson
from pgolf.errors import PgolfError

# Pieces in base64, each with its rank.
_RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")

_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


def other_kind(path: Path, content: bytes) -> TokenizerJson | TiktokenEncoding | None:
    """A Hugging Face tokenizer or a tiktoken encoding; None if the content is neither.

    What is one but unusable is a ``PgolfError``, and so is a package that is needed and not installed.
    """
    try:
        if _RANKS.match(content):
            return TiktokenEncoding.from_ranks(content)
        tree = json.loads(content) if content.startswith(b"{") else None
        if isinstance(tree, Mapping) and "pat_str" in tree:
            return TiktokenEncoding.from_tree(tree)
        if isinstance(tree, Mapping) and "model" in tree:
            return TokenizerJson(tree)
    except ImportError as error:
        remedy = 'pip install "pgolf[tokenizers]"'
        raise PgolfError(
            f"{path}: needs the package {error.name}, which is not installed; {remedy}"
        ) from error
    except BaseException as error:
        # A PanicException of the libraries is no Exception.
        if not isinstance(error, _DAMAGE) and type(error).__name__ != "PanicException":
            raise
        raise PgolfError(f"{path}: a damaged tokenizer ({error}); restore it from a copy") from error
    return None
