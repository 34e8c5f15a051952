"""Which files a user's paths stand for, and the documents in them, one at a time.

Nothing is ever read whole but a single document (for Parquet and Arrow, a batch of rows). Files may be
compressed (.gz, .zst). Every complaint names the file and the line, record, row or byte it is about.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from pgolf.data.columns import Advance, Bad, import_pyarrow, read_columns, shown, text_of
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json
from pgolf.runtime.paths import read_error

COLUMNS = (".parquet", ".arrow")

_COMPRESSIBLE = (".txt", ".jsonl", ".json")
_SPACE = re.compile(r"[ \t\r\n]*")
# Longer than what the parser takes for wrong while the rest of it is not read yet: -Infinity, \uXXXX.
_LOOK_AHEAD = 16
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# Small, for a block of zstd may stand for thirty thousand times its size.
_BLOCK_BYTES = 1 << 12
_LARGEST_WINDOW = 1 << 31


@dataclass(frozen=True)
class Reading:
    """How files become documents."""

    split: str = "files"
    """"files": a text file is one document; "blank-lines": blank lines separate the documents in it."""
    text_column: str = "text"
    """Field or column that holds the text; dots lead into nested ones."""
    bad_documents: str = "error"
    """"error": one that cannot be used ends the work; "skip": it is left out and counted."""

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--split", self.split, ("files", "blank-lines")),
            ("--bad-documents", self.bad_documents, ("error", "skip")),
        ):
            if value not in known:
                raise PgolfError(f"{option} {value}: must be one of {', '.join(known)}")
        if not self.text_column:
            raise PgolfError("--text-column is empty; name the column that holds the text")


def read_documents(
    path: Path,
    reading: Reading | None = None,
    *,
    advance: Advance | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[str]:
    """Yield the documents of a file in order.

    A .txt file is a document, or several with blank lines between them; a .jsonl file holds an object or a
    string on each line (blank lines are skipped), a .json file an array of them, or one after the other;
    .parquet and .arrow files a column of text. The first three may be compressed (.gz, .zst). A document that
    is empty or only white space yields "", so that the caller can count it.

    ``advance`` is told how many bytes of the file were consumed, and ``skipped`` receives the number of
    documents that were left out, by reason. What is of an unknown kind, unreadable, damaged,
    without text or, if these are errors, a bad document is a ``PgolfError``.
    """
    reading = reading or Reading()
    found = False
    try:
        for document in _documents(path, reading, advance or (lambda consumed: None)):
            if isinstance(document, str):
                blank = not document or document.isspace()
                found |= not blank
                yield "" if blank else document
                continue
            if reading.bad_documents == "error":
                remedy = f"{document.remedy}, or leave such documents out with --bad-documents skip"
                raise PgolfError(f"{path}: {document.message}; {remedy}")
            if skipped is not None:
                skipped[document.reason] += 1
            found = True
    except OSError as error:
        raise read_error(path, error) from error
    if not found:
        raise PgolfError(f"{path}: holds no text; leave the file out or give another one")


def file_kind(path: Path) -> tuple[str, str]:
    """A file's kind by its name (".jsonl"), and how it is compressed ("", ".gz" or ".zst").

    What is unknown is a ``PgolfError``.
    """
    name = path.name.lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    name = name.removesuffix(compression)
    for kind in _COMPRESSIBLE if compression else (*_COMPRESSIBLE, *COLUMNS):
        if name.endswith(kind):
            return kind, compression
    raise PgolfError(
        f"{path}: unknown kind of file; text must be one of {', '.join(_COMPRESSIBLE)} (also with "
        f"{' or '.join(COMPRESSIONS)}), {', '.join(COLUMNS)}, or a folder of these"
    )


def _documents(path: Path, reading: Reading, advance: Advance) -> Iterator[str | Bad]:
    kind, compression = file_kind(path)
    column = reading.text_column
    if kind in COLUMNS:
        return read_columns(path, column, advance)
    if kind == ".json":
        values = enumerate(_JsonValues(path, blocks(path, compression, advance)), 1)
        return (text_of(value, column, f"record {number}") for number, value in values)
    decoded = _decoded(lines(path, compression, advance))
    if kind == ".jsonl":
        return _json_lines(decoded, column)
    return _text(decoded, reading.split == "blank-lines")


def _decoded(lines: Iterable[bytes]) -> Iterator[tuple[int, str | Bad]]:
    """Number (from 1) and text of each line; a byte-order mark at the very beginning is dropped."""
    offset = 0
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            place = f"byte 0x{line[error.start]:02x} at offset {offset + error.start} of the text"
            what = f"line {number} is not UTF-8 ({place})"
            yield number, Bad("not UTF-8", what, "convert the file to UTF-8")
        else:
            yield number, text.removeprefix("\ufeff") if number == 1 else text
        offset += len(line)


def _text(lines: Iterable[tuple[int, str | Bad]], blank_lines: bool) -> Iterator[str | Bad]:
    parts: list[str] = []
    bad: Bad | None = None
    for _, line in lines:
        if isinstance(line, Bad):
            bad = bad or line
        elif not (blank_lines and line.isspace()):
            parts.append(line)
        elif parts or bad:
            yield bad or "".join(parts).rstrip("\r\n")
            parts, bad = [], None
    if parts or bad:
        yield bad or "".join(parts).rstrip("\r\n")


def _json_lines(lines: Iterable[tuple[int, str | Bad]], column: str) -> Iterator[str | Bad]:
    for number, line in lines:
        if isinstance(line, Bad):
            yield line
        elif line and not line.isspace():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Bad("not valid JSON", f"line {number} is not valid JSON ({_json_complaint(error)})")
            else:
                yield text_of(record, column, f"line {number}")


def _json_complaint(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep or too long a number"


class _JsonValues:
    """The elements of a JSON file's array, or the values that stand in it one after the other.

    One value is held at a time. Bytes that are not UTF-8 become lone surrogates, which makes the text they
    are in bad.
    """

    def __init__(self, path: Path, blocks: Iterator[bytes]) -> None:
        self._path, self._blocks = path, blocks
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._position, self._count = "", 0, 0

    def __iter__(self) -> Iterator[Any]:
        self._fill()
        self._position = int(self._text.startswith("\ufeff"))
        is_array = self._next() == "["
        self._position += is_array
        while (following := self._next()) != ("]" if is_array else ""):
            if is_array and self._count:
                if following != ",":
                    raise self._error("a comma or the end of the array is missing")
                self._position += 1
                self._next()
            yield self._value()
            self._count += 1
        self._position += is_array
        if self._next():
            raise self._error("something follows the array")

    def _fill(self) -> bool:
        """Drop what was used and read on, until as much again is there; False at the end of the file."""
        parts, wanted, size = [self._text[self._position :]], len(self._text) - self._position, 0
        for block in self._blocks:
            parts.append(self._utf8.decode(block))
            size += len(parts[-1])
            if size > wanted:
                break
        self._text, self._position = "".join(parts), 0
        return size > 0

    def _next(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._fill():
                return ""

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._parse(self._text, self._position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LOOK_AHEAD
                if not cut or not self._fill():
                    raise self._error(error.msg) from error
            except (ValueError, RecursionError) as error:
                raise self._error(_json_complaint(error)) from error
            else:
                # More digits may follow a number.
                if end < len(self._text) or isinstance(value, str | dict | list) or not self._fill():
                    self._position = end
                    return value

    def _error(self, what: str) -> PgolfError:
        return PgolfError(f"{self._path}: not valid JSON in or after record {self._count + 1} ({what})")


def find_sources(paths: Sequence[Path], splits: Sequence[str] = ("train",)) -> list[Path]:
    """The text files behind some paths, in order; what cannot be read is a ``PgolfError`` before any work.

    A folder that ``datasets.save_to_disk`` made stands for its Arrow files; one with several splits for the
    first of ``splits`` that it has. Any other folder stands for the text files that lie in it (not deeper),
    by name.
    """
    files: list[Path] = []
    for path in paths:
        try:
            found = _inside(path, splits) if path.is_dir() else [path]
            for file in found:
                _check(file)
        except OSError as error:
            raise read_error(Path(error.filename or path), error) from error
        files += found
    return files


def _check(path: Path) -> None:
    kind, _ = file_kind(path)
    if not path.is_file():
        raise PgolfError(f"{path}: no such text file")
    path.open("rb").close()
    if kind in COLUMNS:
        import_pyarrow(path)


def _inside(folder: Path, splits: Sequence[str]) -> list[Path]:
    listing = folder / "dataset_dict.json"
    if listing.is_file():
        names = _listed(listing, "splits", "", "splits")
        chosen = next((name for name in splits if name in names), None)
        if chosen is None:
            found = f"has no split {' or '.join(splits)} (it has: {shown(names)})"
            raise PgolfError(f"{folder}: {found}; name a split's folder")
        folder /= chosen
        if not folder.is_dir():
            listed = f"absent, but {listing.name} beside it lists it"
            raise PgolfError(f"{folder}: {listed}; copy the folder again")
    state = folder / "state.json"
    if state.is_file():
        names = _listed(state, "_data_files", ".arrow", "Arrow files")
        if any(read_json(state).get(key) for key in ("_indices_files", "_indices_data_files")):
            found = "keeps its rows in another order than its files"
            raise PgolfError(f"{folder}: {found}; save it again with a newer datasets")
        return [folder / name for name in names]
    files = sorted(path for path in folder.iterdir() if path.is_file() and _is_text(path))
    if not files:
        kinds = ".txt, .jsonl, .json, .parquet"
        raise PgolfError(f"{folder}: holds no text files ({kinds}); name a folder that does")
    return files


def _listed(path: Path, key: str, ending: str, what: str) -> list[str]:
    """The names, or file names of entries, that a JSON file lists: things beside it with an ending."""
    found = read_json(path)
    try:
        names = [entry["filename"] if isinstance(entry, dict) else entry for entry in found[key]]
        sound = bool(names) and all(Path(name).name == name and name.endswith(ending) for name in names)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise PgolfError(f"{path}: damaged; it has no list of {what}")
    return names


def _is_text(path: Path) -> bool:
    try:
        return bool(file_kind(path)) and not path.name.startswith(".")
    except PgolfError:
        return False


def lines(path: Path, compression: str, advance: Advance) -> Iterator[bytes]:
    """The lines of a file, each with its line break; errors are those of ``blocks``."""
    rest: list[bytes] = []
    for block in blocks(path, compression, advance):
        *whole, last = block.split(b"\n")
        for line in whole:
            yield b"".join((*rest, line, b"\n"))
            rest.clear()
        rest.append(last)
    if line := b"".join(rest):
        yield line


def blocks(path: Path, compression: str, advance: Advance) -> Iterator[bytes]:
    """The content of a file in pieces; a ``PgolfError`` if it is damaged, or not compressed as its name says.

    Memory holds one piece, and for zstd the frame's window: up to 2 GiB (``zstd --long=31``), of which only
    what was written in the frame is ever touched.
    """
    # Frame by frame (gzip: member by member): the libraries' own readers take a truncated file for a whole.
    frame, ended = None, False
    try:
        with path.open("rb") as file:
            while piece := file.read(_BLOCK_BYTES):
                advance(len(piece))
                if not compression:
                    yield piece
                    continue
                while piece:
                    if ended and frame is None and not (piece := piece.lstrip(b"\0")):
                        break  # Some tools pad a file with zeros.
                    frame = frame or _new_frame(compression)
                    yield frame.decompress(piece)
                    piece = frame.unused_data
                    if frame.eof:
                        frame, ended = None, True
    except (zstandard.ZstdError, zlib.error) as error:
        kind = COMPRESSIONS[compression]
        raise PgolfError(f"{path}: damaged or not {kind}-compressed ({error})") from error
    except MemoryError as error:
        remedy = "decompressing needs more memory than there is; write it with a smaller window"
        raise PgolfError(f"{path}: {remedy}") from error
    if frame is not None:
        raise PgolfError(f"{path}: the compressed data ends too early; copy or download the file again")


def _new_frame(compression: str) -> Any:
    if compression == ".zst":
        return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
    return zlib.decompressobj(wbits=31)
