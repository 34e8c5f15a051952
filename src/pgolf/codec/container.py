"""The file of a compressed text, .pgz.

    magic       8 bytes   "PGOLFZ\\x00\\x01" (the last byte is the format version)
    header                flags (1: test-time training, 2: spelled with a space in front, 4: gaps beside the
                          tokens, 8: memory), threads: a byte each; model, tokenizer: the first 16 bytes of
                          the SHA-256 of their files; original: SHA-256 of the original bytes; original
                          bytes, tokens, payload bytes: variable length (7 bits a byte, low ones first);
                          machine: a length byte and text; first 8 bytes of the SHA-256 of the payload
    digest      8 bytes   first ones of the SHA-256 of everything before
    payload               tokens and runs, range coded

Sizes are checked against the file and against each other before anything is decoded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pgolf.errors import PgolfError

MAGIC = b"PGOLFZ\x00\x01"
MAX_THREADS = 255
_TTT, _SPACED, _FOLDED, _MEMORY = 1, 2, 4, 8
_DIGEST, _SHORT_DIGEST = 16, 8
# A file that claims more bytes than this for each of its payload is refused (and not written): its reader
# would have to work for days before it could know that they are not there.
_FREE_BYTES, _BYTES_PER_BYTE = 1 << 20, 1 << 16


@dataclass(frozen=True)
class Header:
    """What a compressed file says about itself."""

    ttt: bool
    """Whether the model learns from the text as it goes."""
    spaced: bool
    """Whether the tokens spell one space more, in front of the text."""
    folded: bool
    """Whether gaps between words are coded beside the tokens."""
    threads: int
    """Of torch, 1 to ``MAX_THREADS``."""
    model: bytes
    """First 16 bytes of the SHA-256 of the model's file."""
    tokenizer: bytes
    """The same of the tokenizer's."""
    original: bytes
    """SHA-256 of the original bytes."""
    size: int
    """Original bytes."""
    tokens: int
    """Tokens that spell them."""
    machine: str
    """Where it was compressed."""
    memory: bool = False
    """Whether counts of the text so far are mixed with the model's predictions."""


def short_digest(content: bytes) -> bytes:
    """The part of a SHA-256 that is kept of sections."""
    return hashlib.sha256(content).digest()[:_SHORT_DIGEST]


def file_digest(hexadecimal: str) -> bytes:
    """The part of a SHA-256, given as 64 hexadecimal digits, that is kept of files."""
    return bytes.fromhex(hexadecimal)[:_DIGEST]


def plausible(size: int, payload: int) -> bool:
    """Whether ``size`` original bytes may be in ``payload`` bytes."""
    return size <= _FREE_BYTES + _BYTES_PER_BYTE * payload


def encode_file(header: Header, payload: bytes) -> bytes:
    """The bytes of the file."""
    assert 1 <= header.threads <= MAX_THREADS
    machine = header.machine.encode()[:255]
    flags = _TTT * header.ttt + _SPACED * header.spaced + _FOLDED * header.folded + _MEMORY * header.memory
    text = MAGIC + bytes((flags, header.threads)) + header.model + header.tokenizer + header.original
    text += b"".join(map(_varint, (header.size, header.tokens, len(payload))))
    text += bytes((len(machine),)) + machine + short_digest(payload)
    return text + short_digest(text) + payload


def decode_file(content: bytes, where: str | Path) -> tuple[Header, bytes]:
    """Header and payload; a ``PgolfError`` if the file, named ``where``, is foreign or damaged."""
    if not content or not (content.startswith(MAGIC[:-1]) or MAGIC.startswith(content)):
        raise PgolfError(f"{where}: not a file that `pgolf compress` wrote")
    if len(content) >= len(MAGIC) and content[len(MAGIC) - 1] != MAGIC[-1]:
        remedy = "has a format that this version of pgolf does not know; use the version it is from"
        raise PgolfError(f"{where}: {remedy}")
    reader = _Reader(content, len(MAGIC), where)
    flags, threads = reader.take(2)
    model, tokenizer, original = reader.take(_DIGEST), reader.take(_DIGEST), reader.take(32)
    size, tokens, length = reader.varint(), reader.varint(), reader.varint()
    machine = reader.take(reader.take(1)[0]).decode("ascii", "replace")
    payload_digest = reader.take(_SHORT_DIGEST)
    checked, copy = reader.place, "restore it from a copy"
    if reader.take(_SHORT_DIGEST) != short_digest(content[:checked]):
        raise PgolfError(f"{where}: the header is damaged (its checksum does not match); {copy}")
    payload = content[reader.place :]
    if len(payload) != length:
        what = "cut short" if len(payload) < length else "something follows its end"
        raise PgolfError(f"{where}: damaged ({what}: {len(payload):,} bytes of payload, not {length:,})")
    if short_digest(payload) != payload_digest:
        raise PgolfError(f"{where}: the payload is damaged (its checksum does not match); {copy}")
    # One token more than bytes: the space in front.
    sound = flags < 2 * _MEMORY and threads >= 1 and tokens <= size + 1 and (size == 0) == (tokens == 0)
    if not sound or not plausible(size, length):
        found = f"{tokens:,} tokens for {size:,} bytes in {length:,}"
        raise PgolfError(f"{where}: refused: {found} make no sense")
    ttt, spaced, folded, memory = (bool(flags & flag) for flag in (_TTT, _SPACED, _FOLDED, _MEMORY))
    header = Header(ttt, spaced, folded, threads, model, tokenizer, original, size, tokens, machine, memory)
    return header, payload


class _Reader:
    """Takes the fields of a header one after the other."""

    def __init__(self, content: bytes, place: int, where: str | Path) -> None:
        self._content, self.place, self._where = content, place, where

    def take(self, count: int) -> bytes:
        part = self._content[self.place : self.place + count]
        if len(part) < count:
            raise PgolfError(f"{self._where}: cut short inside the header; restore it from a copy")
        self.place += count
        return part

    def varint(self) -> int:
        value = 0
        for shift in range(0, 56, 7):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise PgolfError(
            f"{self._where}: the header is damaged (a number without end); restore it from a copy"
        )


def _varint(value: int) -> bytes:
    assert 0 <= value < 1 << 56
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*parts, value))
