"""Are the bytes that a score is divided by those of the text? Looked at from the other side: by decoding.

Inspecting, auditing and verifying a ledger ask here; preparing has the documents themselves to compare with.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.data.dataset import Dataset, Normalisation, Text
from pgolf.data.tokenizer import Tokenizer

# So many tokens of a text are decoded.
_LOOKED_AT = 1 << 22


@dataclass(frozen=True)
class ByteCheck:
    """What was found."""

    source: str
    """Who says what a target stands for: "tokenizer" or "byte files" (side-cars)."""
    evidence: str
    """What was compared."""
    problem: str | None
    """What is wrong; None if nothing is."""
    normalisation: Normalisation | None
    """What normalisation did to the validation text; None where it is not recorded or does not count."""

    def rows(self) -> list[tuple[str, str]]:
        """As labelled lines."""
        unknown = "not recorded" if self.source == "tokenizer" else "the side-cars count the text before it"
        return [("bytes per target", self.evidence), ("normalisation", str(self.normalisation or unknown))]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"source": self.source, "evidence": self.evidence}


def check_bytes(dataset: Dataset, text: Text) -> ByteCheck:
    """Hold the byte counts of the whole validation split against what its documents are decoded to.

    Side-cars count another text than the one that tokens are decoded to; of them only the sum is looked at,
    when they are read.
    """
    if names := dataset.val_byte_files:
        what = names[0].name if len(names) == 1 else f"{names[0].name} and {len(names) - 1} more"
        evidence = f"{what}: an entry for every token, no more bytes together than they spell"
        return ByteCheck("byte files", evidence, None, None)
    checked, problem = check_documents(dataset.tokenizer, text)
    compared = (
        f"as many as the documents decode to (compared: {checked:,})"
        if checked
        else "no document could be decoded"
    )
    evidence = f"counted by {dataset.tokenizer.path.name}, {compared}"
    return ByteCheck("tokenizer", problem or evidence, problem, dataset.normalisation("val"))


def check_documents(tokenizer: Tokenizer, text: Text) -> tuple[int, str | None]:
    """How many documents of a split, from its beginning on, have the bytes they decode to; what is wrong."""
    tokens = text.tokens[:_LOOKED_AT]
    edges = np.flatnonzero(tokens == tokenizer.bos_id).tolist()
    if edges and len(tokens) == len(text.tokens):
        edges.append(len(tokens))
    plain = plain_token(tokenizer)
    if len(edges) < 2 or plain is None:
        return 0, None
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        counted = int(text.byte_counts[begin : end - 1].sum(dtype=np.int64))
        decoded = decoded_bytes(tokenizer, tokens[begin:end], plain)
        if counted != decoded:
            return number, (
                f"{tokenizer.path}: document {number} counts {counted:,} bytes, but decodes to {decoded:,}; "
                "no score in these tokens is exact, use another tokenizer"
            )
    return len(edges) - 1, None


def decoded_bytes(tokenizer: Tokenizer, tokens: NDArray[np.integer], plain: int) -> int:
    """UTF-8 length of the text that SentencePiece decodes a whole document (n,) to, unknown pieces left out.

    It owes nothing to the byte table, so one can be held against the other. ``plain`` is ``plain_token``'s.
    """
    ids, unknown = tokens.tolist(), tokenizer.unknown_id
    known = [plain if token == unknown else token for token in ids if token != tokenizer.bos_id]
    # The decoder takes off spaces at the beginning of a text, so a character is put there.
    text = tokenizer.decode([plain, *known])[1:]
    return len(tokenizer.own_text(text).encode()) - ids.count(unknown) * int(tokenizer.byte_table.base[plain])


def plain_token(tokenizer: Tokenizer) -> int | None:
    """A token that is always decoded to one and the same character, no space; None if there is none."""
    table = tokenizer.byte_table
    for token in np.flatnonzero((table.base > 0) & ~table.leading_space).tolist():
        text = tokenizer.decode([token])
        # Half a character decodes to U+FFFD, which is longer; of a piece with a space only the rest is shown.
        whole = len(text.encode()) == table.base[token]
        if whole and len(text) == 1 and text.isprintable() and text != " ":
            return int(token)
    return None
