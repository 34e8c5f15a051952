"""The tokenizer of a new data folder: a copy of an existing one, or one trained on the documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pgolf.data.tokenizer import Tokenizer, check_usable
from pgolf.data.trainer import TrainerKilled, TrainingError, train_apart
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes
from pgolf.runtime.writing import write_bytes

SAMPLE_BYTES = 64 << 20
"""A tokenizer is trained on at most this much text."""


def make_tokenizer(path: Path, model: Path | None, vocab_size: int | None, documents: Iterable[str]) -> None:
    """Put a copy of ``model`` at ``path``, or train one of ``vocab_size`` pieces on the documents there.

    Raises:
        PgolfError: neither or contradicting arguments, or a model that shards cannot be made with.
    """
    if model is None:
        if vocab_size is None:
            raise PgolfError("no tokenizer; pass --tokenizer MODEL, or --vocab-size N to train one")
        train_tokenizer(documents, vocab_size, path)
        return
    opened = Tokenizer.load(model)
    if vocab_size not in (None, opened.vocab_size):
        raise PgolfError(
            f"{model}: has {opened.vocab_size} pieces, not --vocab-size {vocab_size}; leave one of them out"
        )
    check_usable(opened)
    write_bytes(path, read_bytes(model))


def train_tokenizer(documents: Iterable[str], vocab_size: int, path: Path) -> None:
    """Train a SentencePiece BPE model with byte fallback and write it to ``path``.

    It loses nothing: no normalisation, all white space kept, no space added in front. Pad, BOS, EOS and
    unknown are ids 0 to 3, digits are single pieces, the rarest 0.1 % of characters are spelled in bytes,
    all as in the field's official tokenizer. The result depends on nothing but the text.

    Args:
        documents: the text; only the first ``SAMPLE_BYTES`` of it are used.
        vocab_size: pieces, among them the 4 above and 256 bytes; at most 65,536.
        path: the ``.model`` file.

    Raises:
        PgolfError: a size that this text does not allow, or the trainer was killed.
    """
    if not 260 < vocab_size <= 1 << 16:
        raise PgolfError(
            f"--vocab-size {vocab_size} must be above 260 (4 control pieces, 256 bytes) and at most 65,536"
        )
    try:
        model = train_apart(first_bytes(documents, SAMPLE_BYTES), vocab_size)
    except TrainerKilled as error:
        raise PgolfError(
            "the process that trains the tokenizer was killed, perhaps for lack of memory; close other programs, "
            "give less text, or name a model with --tokenizer"
        ) from error
    except TrainingError as error:
        raise PgolfError(_complaint(vocab_size, str(error))) from error
    write_bytes(path, model)


def _complaint(vocab_size: int, message: str) -> str:
    """The trainer's error in the user's terms."""
    if found := re.search(r"too high .*<= (\d+)", message):
        return f"--vocab-size {vocab_size}: this text yields at most {found[1]} pieces; lower it or give more text"
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return f"--vocab-size {vocab_size}: this text needs at least {found[1]} pieces for its characters; raise it"
    if "sentences_.empty()" in message:
        return "no training text is left to train a tokenizer on; lower --val-fraction or give more text"
    return f"--vocab-size {vocab_size}: no tokenizer can be trained on this text ({message.splitlines()[-1].strip()})"


def first_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    for text in documents:
        if not text:
            continue
        encoded = text.encode()
        if len(encoded) > limit:
            # Half a character may be left at the cut.
            text = encoded[:limit].decode(errors="ignore")
        if text:
            yield text
        limit -= len(encoded)
        if limit <= 0:
            return
