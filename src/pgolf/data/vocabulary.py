"""The tokenizer of a new data folder: a copy of an existing one, or one trained on the documents.

The trainer is C++ that nothing but the end of its process can stop, so it has a process of its own, which
runs this module: documents come in on standard input, each a JSON string on a line, the model goes out on
standard output, and what the trainer says of a mistake to standard error.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

import sentencepiece

from pgolf.data.caseops import LETTERS, lowered
from pgolf.data.operators import OPERATORS, Transform
from pgolf.data.tokenizer import Tokenizer, check_usable
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes
from pgolf.runtime.processes import end_with
from pgolf.runtime.writing import write_bytes

SAMPLE_BYTES = 64 << 20
"""A tokenizer is trained on at most this much text."""

# What the trainer says, and what that means for the user.
_COMPLAINTS = (
    (r"too high .*<= (\d+)", "this text yields at most {} pieces; lower it or give more text"),
    (
        r"smaller than required_chars. \d+ vs (\d+)",
        "this text needs at least {} pieces for its characters; raise it",
    ),
    (r"([^\n]*)\Z", "no tokenizer can be trained on this text ({})"),
)


def make_tokenizer(
    path: Path,
    model: Path | None,
    vocab_size: int | None,
    documents: Iterable[str],
    transform: Transform = "none",
) -> None:
    """Put a copy of ``model`` at ``path``, or train one of ``vocab_size`` pieces on the documents there.

    A copied one brings its transform along; asked for another, ``transform`` is a mistake. So are neither or
    contradicting arguments, and a model that shards cannot be made with.
    """
    if model is None:
        if vocab_size is None:
            raise PgolfError("no tokenizer; pass --tokenizer MODEL, or --vocab-size N to train one")
        train_tokenizer(documents, vocab_size, path, transform)
        return
    opened = Tokenizer.load(model)
    if vocab_size not in (None, opened.vocab_size):
        pieces = f"has {opened.vocab_size} pieces, not --vocab-size {vocab_size}"
        raise PgolfError(f"{model}: {pieces}; leave one of them out")
    if transform not in ("none", opened.transform):
        raise PgolfError(
            f"{model}: has no operators for capital letters, which --transform {transform} needs; have a "
            f"tokenizer trained, with --vocab-size N --transform {transform}"
        )
    check_usable(opened)
    write_bytes(path, read_bytes(model))


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, path: Path, transform: Transform = "none"
) -> None:
    """Train a SentencePiece BPE model with byte fallback and write it to ``path``.

    It loses nothing: no normalisation, all white space kept, no space added in front. Pad, BOS, EOS and
    unknown are ids 0 to 3, digits are single pieces, the rarest 0.1 % of characters are spelled in bytes, all
    as in the field's official tokenizer. The result depends on nothing but the text, of which the first
    ``SAMPLE_BYTES`` are used. The number of pieces includes the 4 above and 256 bytes, with CaseOps also its
    operators, all small letters and the space. A size that this text does not allow, or a trainer that was
    killed, is a ``PgolfError``.
    """
    if not 260 < vocab_size <= 1 << 16:
        allowed = "above 260 (4 control pieces, 256 bytes) and at most 65,536"
        raise PgolfError(f"--vocab-size {vocab_size} must be {allowed}")
    package = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join([package, *filter(None, sys.path)])
    # -P: a file in the user's folder that is called like a module is none. A session of its own does not see
    # Ctrl-C.
    words = [sys.executable, "-P", "-m", "pgolf.data.vocabulary"]
    words += [str(vocab_size), str(os.getpid()), transform]
    if transform == "caseops":
        documents = map(lowered, documents)
    environment = {**os.environ, "PYTHONPATH": search}
    with subprocess.Popen(
        words, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stdin is not None
            _send(first_bytes(documents, SAMPLE_BYTES), process.stdin)
            process.stdin = None
            model, complaint = process.communicate()
        finally:
            process.kill()
            process.wait()
    if process.returncode < 0:
        raise PgolfError(
            "the process that trains the tokenizer was killed, perhaps for lack of memory; close other "
            "programs, give less text, or name a model with --tokenizer"
        )
    if process.returncode:
        said = complaint.decode(errors="replace").strip()
        raise _refusal(vocab_size, said or f"the trainer ended with status {process.returncode}")
    write_bytes(path, model)


def _refusal(vocab_size: int, message: str) -> PgolfError:
    """The trainer's error in the user's terms."""
    if "sentences_.empty()" in message:
        remedy = "lower --val-fraction or give more text"
        return PgolfError(f"no training text is left to train a tokenizer on; {remedy}")
    found = ((re.search(pattern, message), meaning) for pattern, meaning in _COMPLAINTS)
    what = next(meaning.format(said[1].strip()) for said, meaning in found if said)
    return PgolfError(f"--vocab-size {vocab_size}: {what}")


def first_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    """The first documents, without empty ones, whose UTF-8 has ``limit`` bytes together; the last is cut."""
    for text in filter(None, documents):
        encoded = text.encode()
        # Half a character may be left at the cut.
        if text := encoded[:limit].decode(errors="ignore"):
            yield text
        limit -= len(encoded)
        if limit <= 0:
            return


def _send(documents: Iterable[str], pipe: IO[bytes]) -> None:
    try:
        with pipe:
            for text in documents:
                pipe.write(json.dumps(text, ensure_ascii=False).encode() + b"\n")
    except BrokenPipeError:
        pass  # It ended early, and says why.


def main() -> None:
    """Train a model in this process; see ``train_tokenizer``."""
    end_with(int(sys.argv[2]))
    model = io.BytesIO()
    more: dict[str, Any] = {}
    if sys.argv[3] == "caseops":
        more = {"user_defined_symbols": list(OPERATORS), "required_chars": f"{LETTERS}\u2581"}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=map(json.loads, sys.stdin.buffer),
            model_writer=model,
            model_type="bpe",
            vocab_size=int(sys.argv[1]),
            character_coverage=0.999,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            max_sentence_length=1 << 30,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=1,
            minloglevel=3,
            **more,
        )
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    sys.stdout.buffer.write(model.getvalue())


if __name__ == "__main__":
    main()
