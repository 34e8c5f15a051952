"""Compressing a file with a model, and getting it back: what `pgolf compress` and `pgolf decompress` do."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from pgolf.codec.container import Header, decode_file, encode_file, file_digest
from pgolf.codec.payload import Payload, Progress, decode, elsewhere, encode, fixed_threads, machine
from pgolf.codec.pieces import Pieces
from pgolf.compress.weights import load_weights
from pgolf.errors import PgolfError
from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.protocol import Scorer
from pgolf.runtime.files import read_bytes, sha256_file
from pgolf.runtime.run_files import scored_file
from pgolf.runtime.writing import check_writable, write_bytes

Result = dict[str, Any]
"""What a command did, as JSON values; see ``_result``."""


class Job:
    """A model with its tokenizer, ready to code files. Computes on the CPU, with a fixed number of threads.

    The model is an artifact, weights file or run folder; its tokenizer by default the one beside it, or of
    the data that it was trained on. What is missing or does not belong together is a ``PgolfError``.
    """

    def __init__(self, model: Path, tokenizer: Path | None = None) -> None:
        self._weights = load_weights(scored_file(model))
        self._opened = self._weights.tokenizer(tokenizer)
        self.model_path, self.tokenizer_path = self._weights.source, self._opened.path
        self._model, self._tokenizer = sha256_file(self.model_path), self._opened.digest
        self._pieces = Pieces(self._opened)

    def scorer(self, ttt: bool, memory: bool) -> Scorer:
        """A fresh scorer, of sliding windows or with test-time training, alone or with a memory beside it."""
        weights, mode = self._weights, "ttt" if ttt else "sliding"
        base = build_scorer(weights.model(), weights.recipe, mode, self._pieces.first)
        if not memory:
            return base
        from pgolf.evaluate.memory_scorer import MemoryScorer  # Brings a compiler.

        return MemoryScorer(base, weights.recipe.memory, weights.memory_start(self._opened))

    def compress(
        self,
        content: bytes,
        ttt: bool,
        threads: int,
        progress: Progress | None = None,
        *,
        memory: bool = False,
    ) -> tuple[bytes, Result]:
        """The bytes of a compressed file, and what they are made of."""
        started = time.perf_counter()
        with fixed_threads(threads):
            payload = encode(self.scorer(ttt, memory), self._pieces, content, progress)
        header = Header(
            ttt=ttt,
            spaced=payload.spaced,
            folded=payload.folded,
            threads=threads,
            model=file_digest(self._model),
            tokenizer=file_digest(self._tokenizer),
            original=hashlib.sha256(content).digest(),
            size=len(content),
            tokens=payload.tokens,
            machine=machine(),
            memory=memory,
        )
        compressed = encode_file(header, payload.content)
        return compressed, _result(header, payload, len(compressed), time.perf_counter() - started)

    def decompress(
        self, compressed: bytes, where: str | Path, progress: Progress | None = None
    ) -> tuple[bytes, Result]:
        """The original bytes of a compressed file, checked, and what it is made of.

        It is a ``PgolfError`` if damaged, of another model or tokenizer, or not decodable on this machine.
        """
        header, content = decode_file(compressed, where)
        for digest, own, path, what in (
            (header.model, self._model, self.model_path, "model"),
            (header.tokenizer, self._tokenizer, self.tokenizer_path, "tokenizer"),
        ):
            if digest != file_digest(own):
                raise PgolfError(
                    f"{where}: was compressed with another {what} (SHA-256 {digest.hex()[:12]}) than {path} "
                    f"({own[:12]}); pass that one with --{what}"
                )
        started = time.perf_counter()
        with fixed_threads(header.threads):
            scorer = self.scorer(header.ttt, header.memory)
            payload, original = decode(scorer, self._pieces, header, content, where, progress)
        if len(original) != header.size or hashlib.sha256(original).digest() != header.original:
            raise PgolfError(f"{where}: decodes to something else than was compressed; {elsewhere(header)}")
        return original, _result(header, payload, len(compressed), time.perf_counter() - started)


def compress_file(
    source: Path,
    out: Path,
    model: Path,
    tokenizer: Path | None,
    ttt: bool,
    threads: int,
    progress: Progress | None,
    *,
    memory: bool = False,
) -> Result:
    """Compress ``source`` to ``out``; a ``PgolfError`` as of ``Job``, or if a file is out of reach."""
    content = read_bytes(source)
    job = _ready(source, out, model, tokenizer)
    compressed, result = job.compress(content, ttt, threads, progress, memory=memory)
    write_bytes(out, compressed)
    return {"file": str(out), **result}


def decompress_file(
    source: Path, out: Path, model: Path, tokenizer: Path | None, progress: Progress | None
) -> Result:
    """Restore the original of the compressed ``source`` at ``out``; nothing is written unless it is right.

    Raises a ``PgolfError`` as ``Job.decompress``, and if a file cannot be read or written.
    """
    content = read_bytes(source)
    # What is wrong with the file itself is said before the model is loaded.
    decode_file(content, source)
    job = _ready(source, out, model, tokenizer)
    original, result = job.decompress(content, source, progress)
    write_bytes(out, original)
    return {"file": str(out), **result}


def _ready(source: Path, out: Path, model: Path, tokenizer: Path | None) -> Job:
    job = Job(model, tokenizer)
    if out.resolve() in [path.resolve() for path in (source, job.model_path, job.tokenizer_path)]:
        raise PgolfError(f"{out}: is an input; choose another --out")
    check_writable(out)
    return job


def _result(header: Header, payload: Payload, size: int, seconds: float) -> Result:
    """Sizes in bytes; the seconds are those of coding, without loading the model."""
    return {
        "bytes": header.size,
        "compressed_bytes": size,
        "payload_bytes": len(payload.content),
        "tokens": header.tokens,
        "run_bytes": payload.run_bytes,
        "ledger_bits": payload.ledger_bits,
        "token_bits": payload.token_bits,
        "bits_per_byte": 8 * size / header.size if header.size else None,
        "ttt": header.ttt,
        "memory": header.memory,
        "threads": header.threads,
        "seconds": seconds,
        "tokens_per_second": header.tokens / seconds,
        "bytes_per_second": header.size / seconds,
    }
