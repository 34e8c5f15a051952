"""The ledger: an append-only, hash-chained record of what every range of targets cost.

A JSON line each: a header that says what was scored with what, an entry per range of targets, a footer with
the totals. Every line carries a digest over its own content and the digest of the line before, so that
nothing can be changed, left out, added or put elsewhere without breaking what follows. ``val_bpb`` is
computed from the entries alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteCounts
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes

FORMAT = "pgolf-ledger-1"
_START = "0" * 64
# A certain target may cost this much less than nothing, by rounding.
_ROUNDING = 1e-2


@dataclass(frozen=True)
class Score:
    """Sums over scored targets."""

    nats: float
    targets: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nats / self.targets if self.targets else math.nan

    @property
    def bpb(self) -> float:
        """Bits per byte of text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class Entry:
    """A range of targets and its score."""

    first: int
    """0-based index of the first target."""
    targets: int
    """How many there are."""
    nats: float
    """What they cost together, float64."""
    bytes: int
    """Bytes of text that they stand for."""
    state: str
    """Fingerprint of the scorer's state while they were scored."""
    text: str
    """SHA-256 of the targets as little-endian uint16."""
    chain: str
    """SHA-256 over the chain of the line before and this entry."""


_KINDS = {"first": int, "targets": int, "nats": float, "bytes": int, "state": str, "text": str, "chain": str}


@dataclass
class Ledger:
    """Entries in the order in which they were recorded; there is no way to take one back."""

    header: Mapping[str, Any] = field(default_factory=dict)
    """What was scored with what: digests of artifact, tokenizer and text, settings."""

    def __post_init__(self) -> None:
        self.header = {"format": FORMAT, **self.header}
        self._entries: list[Entry] = []
        self._chain = _link(_START, self.header)

    @property
    def entries(self) -> Sequence[Entry]:
        """What is recorded."""
        return tuple(self._entries)

    def record(self, first: int, tokens: Tokens, nats: float, byte_count: int, state: str) -> None:
        """Append the score of the targets ``tokens`` (n,) uint16, which begin at ``first``."""
        entry = Entry(first, len(tokens), nats, byte_count, state, text_digest(tokens), "")
        self._chain = _link(self._chain, _unchained(vars(entry)))
        self._entries.append(replace(entry, chain=self._chain))

    def score(self) -> Score:
        """The sums of all entries."""
        return total(self._entries)

    def running_bpb(self, size: int) -> list[float]:
        """Bits per byte up to the end of each chunk of ``size`` targets in which a range begins."""
        running: list[float] = []
        nats, count = 0.0, 0
        for index, entry in enumerate(self._entries):
            nats, count = nats + entry.nats, count + entry.bytes
            last = index + 1 == len(self._entries)
            if last or self._entries[index + 1].first // size != entry.first // size:
                running.append(Score(nats, entry.first + entry.targets, count).bpb)
        return running

    def content(self) -> bytes:
        """The whole file."""
        return "".join(f"{line}\n" for line in self.lines()).encode()

    def lines(self) -> Iterator[str]:
        """The file's lines."""
        yield _json({**self.header, "chain": _link(_START, self.header)})
        for entry in self._entries:
            yield _json(vars(entry))
        yield _json(_footer(self._entries, self._chain))


def total(entries: Sequence[Entry]) -> Score:
    """The sums of entries; nats are added exactly and rounded once."""
    return Score(
        math.fsum(entry.nats for entry in entries),
        sum(entry.targets for entry in entries),
        sum(entry.bytes for entry in entries),
    )


def text_digest(tokens: Tokens) -> str:
    """SHA-256 of tokens as little-endian uint16."""
    return hashlib.sha256(np.ascontiguousarray(tokens).astype("<u2").tobytes()).hexdigest()


@dataclass(frozen=True)
class Verification:
    """What was found in a ledger."""

    checks: list[tuple[str, str]]
    """What was checked, and what it showed."""
    problem: str | None
    """The first thing that is wrong, with its line; None if nothing is."""
    score: Score
    """Recomputed from the entries up to there."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        score = {"val_bpb": self.score.bpb, "val_loss": self.score.loss} if self.problem is None else {}
        return {"valid": self.problem is None, "problem": self.problem, "checks": dict(self.checks)} | score


def read_header(path: Path) -> dict[str, Any]:
    """What a ledger file says it is about; nothing of it is verified but that ``targets`` is a number.

    Raises:
        PgolfError: the file cannot be read or is no ledger at all.
    """
    header = _read(path)[0]
    if type(header.get("targets")) is not int or header["targets"] < 1:
        raise PgolfError(
            f"{path}: line 1 announces no number of targets; write a ledger with `pgolf eval --ledger`"
        )
    return header


def read_ledger(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """Header and entries of a ledger file as they stand; nothing of them is verified but their form.

    Raises:
        PgolfError: the file cannot be read or holds something else.
    """
    try:
        lines = _lines(path)
        if type(lines[0].get("targets")) is not int:
            raise _Wrong("line 1 announces no number of targets")
        return lines[0], [_entry(line, number) for number, line in enumerate(lines[1:-1], 2)]
    except _Wrong as wrong:
        message = f"{path}: no ledger, or damaged ({wrong}); write it again with `pgolf eval --ledger`"
        raise PgolfError(message) from None


def verify_ledger(
    path: Path,
    tokens: Tokens | None = None,
    byte_counts: ByteCounts | None = None,
    expected: Mapping[str, str] | None = None,
) -> Verification:
    """Recompute a ledger file's chain, coverage, order and totals.

    Args:
        path: the file.
        tokens: the stream it claims to cover, uint16, the first token included; compared range by range.
        byte_counts: with ``tokens``, the bytes of each of its targets, which are added up again.
        expected: entries that the header must have, such as the artifact's digest.

    Raises:
        PgolfError: the file cannot be read or is no ledger at all.
    """
    lines = _read(path)
    header = lines[0]
    entries: list[Entry] = []
    try:
        _check_header(header, expected or {}, tokens)
        chain = header["chain"]
        for number, line in enumerate(lines[1:-1], 2):
            entry, before = _entry(line, number), entries[-1] if entries else None
            _check_entry(entry, before, chain, number, tokens, byte_counts)
            chain = entry.chain
            entries.append(entry)
        _check_end(header, entries, chain, lines[-1], len(lines))
    except _Wrong as wrong:
        return Verification([], str(wrong), total(entries))
    score = total(entries)
    checks = [
        ("chain", f"{len(entries):,} entries, unbroken; ends with {chain[:16]}"),
        ("coverage and order", f"targets 0 to {score.targets:,}, each once, from left to right"),
        ("totals", f"{score.nats:,.2f} nats, {score.bytes:,} bytes, {score.bpb:.4f} bits per byte"),
        ("text", "not compared (no --data)" if tokens is None else "every range is that of the data"),
        ("bytes", "not compared (no --data)" if byte_counts is None else "every range added up again"),
    ]
    known = (expected or {}).items()
    checks += [(name, f"SHA-256 {value[:16]}..., as in the header") for name, value in known]
    return Verification(checks, None, score)


class _Wrong(Exception):
    pass


def _must(line: int, *checks: tuple[bool, str]) -> None:
    """Each with what is wrong if it does not hold; the first of these is raised."""
    for holds, otherwise in checks:
        if not holds:
            raise _Wrong(f"line {line}: {otherwise}")


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return _lines(path)
    except _Wrong as wrong:
        raise PgolfError(f"{path}: not a ledger ({wrong}); write one with `pgolf eval --ledger`") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(text) for text in read_bytes(path).decode("utf-8").splitlines()]
    except (ValueError, RecursionError) as error:
        raise _Wrong("its lines are not JSON") from error
    is_one = bool(lines) and all(isinstance(line, dict) for line in lines)
    if not is_one or lines[0].get("format") != FORMAT:
        raise _Wrong(f"it does not begin as one of this version of pgolf, {FORMAT}")
    return lines


def _unchained(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "chain"}


def _check_header(header: dict[str, Any], expected: Mapping[str, str], tokens: Tokens | None) -> None:
    changed = "the header does not match its chain digest; it was changed after it was written"
    _must(1, (header.get("chain") == _link(_START, _unchained(header)), changed))
    for name, value in expected.items():
        both = f"(SHA-256 {str(header.get(name))[:16]}..., not {value[:16]}...)"
        _must(1, (header.get(name) == value, f"the ledger is of another {name} {both}"))
    if tokens is not None:
        targets, count = header.get("targets"), len(tokens) - 1
        _must(
            1,
            (targets == count, f"the ledger is of {targets} targets, the data has {count}"),
            (header.get("data") == text_digest(tokens), "the ledger is of another text than the data"),
        )


def _entry(line: dict[str, Any], number: int) -> Entry:
    sound = set(line) == set(_KINDS) and all(type(line[key]) is kind for key, kind in _KINDS.items())
    _must(number, (sound, f"not an entry ({', '.join(_KINDS)})"))
    return Entry(**line)


def _check_entry(
    entry: Entry,
    before: Entry | None,
    chain: str,
    number: int,
    tokens: Tokens | None,
    byte_counts: ByteCounts | None,
) -> None:
    first, end = entry.first, entry.first + entry.targets
    place = before.first + before.targets if before else 0
    broken = f"the entry of targets {first} on does not match its chain digest"
    moved = "are scored again" if first < place else f"follow {place}: those between are missing"
    cost = math.isfinite(entry.nats) and entry.nats >= -_ROUNDING
    none = f"no score ({entry.targets} targets, {entry.nats} nats, {entry.bytes} bytes)"
    _must(
        number,
        (entry.chain == _link(chain, _unchained(vars(entry))), broken),
        (first == place, f"targets {first} on {moved}"),
        (cost and entry.targets >= 1 and entry.bytes >= 0, none),
    )
    if tokens is not None:
        same = entry.text == text_digest(tokens[first + 1 : end + 1])
        _must(
            number,
            (end <= len(tokens) - 1, f"targets {first} to {end}, but the data has {len(tokens) - 1}"),
            (same, f"targets {first} to {end} are other tokens than the data's"),
        )
    if tokens is not None and byte_counts is not None:
        counted = int(byte_counts[first:end].sum(dtype=np.int64))
        _must(number, (counted == entry.bytes, f"{entry.bytes} bytes claimed, the text has {counted}"))


def _check_end(
    header: dict[str, Any], entries: Sequence[Entry], chain: str, footer: dict[str, Any], number: int
) -> None:
    scored, announced = total(entries).targets, header.get("targets")
    _must(
        number,
        (number > 1 and "val_bpb" in footer, "the ledger has no end; it was cut off"),
        (scored == announced, f"{scored} targets are scored, the header announces {announced}"),
        (footer == _footer(entries, chain), "the totals are not those of the entries"),
    )


def _footer(entries: Sequence[Entry], chain: str) -> dict[str, Any]:
    score = total(entries)
    return {
        "entries": len(entries),
        **vars(score),
        "val_loss": score.loss,
        "val_bpb": score.bpb,
        "end": chain,
    }


def _link(chain: str, content: Mapping[str, Any]) -> str:
    return hashlib.sha256((chain + _json(content)).encode()).hexdigest()


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
