"""The process that trains a tokenizer: documents come in on standard input, the model goes out on standard
output.

The trainer is C++ that nothing but the end of its process can stop, so ``train_tokenizer`` gives it one of
its own. A document is its length, 8 bytes, the lowest first, and its UTF-8. What the trainer says of a
mistake goes to standard error.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import sentencepiece

from pgolf.runtime.processes import end_with


class TrainingError(Exception):
    """What the trainer says of this text and number of pieces."""


class TrainerKilled(TrainingError):
    """It was killed from outside, and says nothing."""


def train_apart(documents: Iterable[str], vocab_size: int) -> bytes:
    """Train in another process and return the model file's bytes; an interruption ends that process.

    Raises:
        TrainingError: the trainer refuses the text or the number of pieces.
        TrainerKilled: it was killed.
    """
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, sys.path)])
    # -P: a file in the user's folder that is called like a module is none. A session of its own does not see
    # Ctrl-C.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "pgolf.data.trainer", str(vocab_size), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    ) as process:
        try:
            assert process.stdin is not None
            _send(documents, process.stdin)
            process.stdin = None
            model, complaint = process.communicate()
        finally:
            process.kill()
            process.wait()
    if process.returncode < 0:
        raise TrainerKilled
    if process.returncode:
        lines = (
            complaint.decode(errors="replace").strip()
            or f"the trainer ended with status {process.returncode}"
        )
        raise TrainingError(lines)
    return model


def _send(documents: Iterable[str], pipe: IO[bytes]) -> None:
    try:
        with pipe:
            for text in documents:
                data = text.encode()
                pipe.write(len(data).to_bytes(8, "little") + data)
    except BrokenPipeError:
        pass  # It ended early, and says why.


def _receive(pipe: IO[bytes]) -> Iterator[str]:
    while header := pipe.read(8):
        yield pipe.read(int.from_bytes(header, "little")).decode()


def main() -> None:
    """Train a BPE model with byte fallback; see ``train_tokenizer``."""
    end_with(int(sys.argv[2]))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_receive(sys.stdin.buffer),
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
        )
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    sys.stdout.buffer.write(model.getvalue())


if __name__ == "__main__":
    main()
