"""Documents from text files: .txt, .jsonl, .jsonl.zst and .parquet, one at a time.

Nothing is ever read whole but a single document (for Parquet, a batch of rows). Every complaint names the
file and the line, row or byte it is about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import zstandard

from pgolf.errors import PgolfError

EXTENSIONS = (".txt", ".jsonl", ".jsonl.zst", ".parquet")

Advance = Callable[[int], None]
"""Called with the number of bytes of the file that were consumed since the last call."""

_BLOCK_BYTES = 1 << 16
_ROWS = 256


def read_documents(path: Path, *, one_document: bool = False, advance: Advance | None = None) -> Iterator[str]:
    """Yield the documents of a file in order.

    A .txt file holds documents separated by blank lines; .jsonl and .jsonl.zst an object with the field
    "text" on each line (blank lines are skipped); .parquet a string column "text". A record whose text is
    empty or only white space yields "", so that the caller can count it.

    Args:
        path: the file; its ending says what it holds.
        one_document: a .txt file is a single document.
        advance: told how many bytes of the file were consumed.

    Raises:
        PgolfError: unknown ending, unreadable, damaged, not UTF-8, not JSON, no "text", or no text at all.
    """
    kind = extension(path)
    advance = advance or (lambda consumed: None)
    if kind == ".parquet":
        documents = _parquet(path, advance)
    elif kind == ".txt":
        documents = _text(path, _decoded(path, _lines(path, advance)), one_document)
    else:
        lines = _zstd_lines(path, advance) if kind == ".jsonl.zst" else _lines(path, advance)
        documents = _json_lines(path, _decoded(path, lines))
    found = False
    try:
        for text in documents:
            blank = not text or text.isspace()
            found |= not blank
            yield "" if blank else text
    except OSError as error:
        raise PgolfError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not found:
        raise PgolfError(f"{path}: holds no text; leave the file out or give another one")


def extension(path: Path) -> str:
    """The one of ``EXTENSIONS`` that a file name ends with.

    Raises:
        PgolfError: none of them.
    """
    for ending in EXTENSIONS:
        if path.name.lower().endswith(ending):
            return ending
    raise PgolfError(f"{path}: unknown kind of file; text must be one of {', '.join(EXTENSIONS)}")


def check_sources(paths: Sequence[Path]) -> None:
    """Fail before any work if one of the files is absent, of an unknown kind, or needs a missing package.

    Raises:
        PgolfError: the first such file.
    """
    for path in paths:
        kind = extension(path)
        if not path.is_file():
            raise PgolfError(f"{path}: no such text file")
        if kind == ".parquet":
            _pyarrow(path)


def _lines(path: Path, advance: Advance) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            advance(len(line))
            yield line


def _zstd_lines(path: Path, advance: Advance) -> Iterator[bytes]:
    rest: list[bytes] = []
    with path.open("rb") as file:
        for block in _zstd_blocks(path, file, advance):
            *lines, last = block.split(b"\n")
            for line in lines:
                yield b"".join((*rest, line, b"\n"))
                rest.clear()
            rest.append(last)
    if line := b"".join(rest):
        yield line


def _zstd_blocks(path: Path, file: IO[bytes], advance: Advance) -> Iterator[bytes]:
    # Frame by frame, not with stream_reader: that takes a truncated file for a complete one.
    frame = None
    try:
        while block := file.read(_BLOCK_BYTES):
            advance(len(block))
            while block:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data
                if frame.eof:
                    frame = None
    except zstandard.ZstdError as error:
        raise PgolfError(f"{path}: damaged or not zstd-compressed ({error})") from error
    if frame is not None:
        raise PgolfError(f"{path}: the compressed data ends too early; copy or download the file again")


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line; a byte-order mark at the very beginning is dropped."""
    offset = 0
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PgolfError(
                f"{path}: line {number} is not UTF-8 (byte 0x{line[error.start]:02x} at offset "
                f"{offset + error.start} of the text); convert the file to UTF-8"
            ) from error
        offset += len(line)
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _text(path: Path, lines: Iterable[tuple[int, str]], one_document: bool) -> Iterator[str]:
    parts: list[str] = []
    for _, line in lines:
        if one_document or not line.isspace():
            parts.append(line)
        elif parts:
            yield "".join(parts).rstrip("\r\n")
            parts = []
    if parts:
        yield "".join(parts).rstrip("\r\n")


def _json_lines(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    for number, line in lines:
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            detail = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep or too long a number"
            raise PgolfError(f"{path}: line {number} is not valid JSON ({detail})") from error
        yield _checked(path, f"line {number}", record)


def _checked(path: Path, where: str, record: Any) -> str:
    if not isinstance(record, dict) or "text" not in record:
        raise PgolfError(f'{path}: {where} has no field "text"; every line must be an object that has one')
    text = record["text"]
    if not isinstance(text, str):
        raise PgolfError(f'{path}: {where}: "text" is {type(text).__name__}, not a string')
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise PgolfError(f'{path}: {where}: "text" is not valid Unicode (a lone surrogate)') from error
    return text


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PgolfError(
            f"{path}: reading Parquet needs pyarrow; install it with pip install 'pgolf[parquet]'"
        ) from error
    return pyarrow


def _parquet(path: Path, advance: Advance) -> Iterator[str]:
    arrow = _pyarrow(path)
    size = path.stat().st_size
    row = told = 0
    try:
        with arrow.parquet.ParquetFile(path) as file:
            fields = {field.name: field.type for field in file.schema_arrow}
            kind = fields.get("text")
            if kind is None or not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise PgolfError(f'{path}: has no string column "text" (columns: {", ".join(fields) or "none"})')
            for batch in file.iter_batches(batch_size=_ROWS, columns=["text"]):
                for value in batch.column(0).to_pylist():
                    yield _checked(path, f"row {row}", {"text": value})
                    row += 1
                done = size * row // file.metadata.num_rows
                advance(done - told)
                told = done
    except arrow.ArrowException as error:
        raise PgolfError(f"{path}: damaged or not Parquet ({str(error).splitlines()[0]})") from error
    except UnicodeDecodeError as error:
        raise PgolfError(f"{path}: a text in rows {row} to {row + _ROWS - 1} is not UTF-8") from error
