"""The ledger: totals come from its entries alone, and the first change in a file is found."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import Entry, Ledger, Verification, _footer, _link, text_digest, verify_ledger
from tests.unit.stand_ins import byte_counts, random_tokens

TOKENS = random_tokens(41)
Line = dict[str, Any]


def recorded(sizes: tuple[int, ...] = (16, 4, 16, 4)) -> Ledger:
    ledger = Ledger({"artifact": "a" * 64, "data": text_digest(TOKENS), "targets": 40})
    first = 0
    for size in sizes:
        span = TOKENS[first : first + size + 1]
        ledger.record(first, span[1:], 0.1 + size, int(byte_counts(span).sum()), "s")
        first += size
    return ledger


def written(path: Path, lines: list[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(ledger: Ledger) -> list[Line]:
    return [json.loads(line) for line in ledger.lines()]


def chained(lines: list[Line]) -> list[Line]:
    """The lines with digests and totals as a careful forger would make them."""
    chain = "0" * 64
    for line in lines[:-1]:
        line.pop("chain", None)
        line["chain"] = chain = _link(chain, line)
    entries = recorded(()).entries
    ledger = Ledger()
    ledger._entries = [*entries, *(Entry(**line) for line in lines[1:-1])]
    return [*lines[:-1], _footer(ledger.entries, chain)]


def verify(path: Path, **more: Any) -> Verification:
    return verify_ledger(path, TOKENS, byte_counts(TOKENS), more or None)


def test_the_score_is_the_sum_of_the_entries(tmp_path: Path) -> None:
    ledger = recorded()
    score = ledger.score()
    assert (score.targets, score.bytes) == (40, byte_counts(TOKENS).sum())
    assert score.nats == math.fsum([16.1, 4.1, 16.1, 4.1])
    assert score.bpb == score.nats / math.log(2) / score.bytes
    assert ledger.running_bpb(20)[-1] == pytest.approx(score.bpb, rel=1e-12)
    assert len(ledger.running_bpb(20)) == 2
    (tmp_path / "l.jsonl").write_bytes(ledger.content())
    found = verify(tmp_path / "l.jsonl", artifact="a" * 64)
    assert found.problem is None
    assert found.score == score
    assert found.to_json()["val_bpb"] == score.bpb


def test_sums_do_not_depend_on_how_the_targets_are_split() -> None:
    ledger = Ledger()
    values = [1e16, 1.0, -0.0, 1.0, 1e-3]
    for index, value in enumerate(values):
        ledger.record(index, TOKENS[index : index + 1], value, 1, "s")
    assert ledger.score().nats == 1e16 + 2  # added one after the other, both ones would vanish


def change(key: str, value: Any, line: int = 2) -> Callable[[list[Line]], None]:
    def apply(lines: list[Line]) -> None:
        lines[line][key] = value

    return apply


def swap(lines: list[Line]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


CHANGES: dict[str, tuple[Callable[[list[Line]], Any], str, str]] = {
    "a loss": (change("nats", 1.5), "line 3: the entry of targets 16", ""),
    "bytes": (change("bytes", 99), "line 3: the entry", r"line 3: 99 bytes claimed, the text has \d+"),
    "the state": (change("state", "t"), "line 3: the entry", ""),
    "a target left out": (
        lambda lines: lines.pop(2),
        "line 3: .*chain",
        "line 3: targets 20 on follow 16.*missing",
    ),
    "scored again": (
        lambda lines: lines.insert(3, dict(lines[2])),
        "line 4: .*chain",
        "line 4: targets 16 on are scored again",
    ),
    "another order": (swap, "line 3: .*chain", "line 3: targets 20 on follow 16"),
    "other text": (change("text", "0" * 64), "line 3: .*chain", "line 3: targets 16 to 20 are other tokens"),
    "the header": (
        change("artifact", "b" * 64, 0),
        "line 1: the header",
        "line 1: the ledger is of another artifact",
    ),
    "fewer announced": (
        change("targets", 36, 0),
        "line 1: the header",
        "line 1: the ledger is of 36 targets, the data has 40",
    ),
    "no number": (change("nats", math.nan), "line 3: the entry", "line 3: no score"),
    "a field more": (change("why", 1), "line 3: not an entry", "line 3: not an entry"),
    "a whole number": (change("nats", 4), "line 3: not an entry", "line 3: not an entry"),
    "the end cut off": (lambda lines: lines.pop(), "line 5: the ledger has no end", ""),
    "the last entry cut off": (lambda lines: lines.pop(-2), "line 5: 36 targets", "line 5: 36 targets"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_where_it_is(tmp_path: Path, name: str) -> None:
    apply, problem, _ = CHANGES[name]
    lines = lines_of(recorded())
    apply(lines)
    found = verify(written(tmp_path / "l.jsonl", lines), artifact="a" * 64)
    assert found.problem is not None
    assert re.match(problem, found.problem), found.problem


FORGED = [name for name, (_, _, problem) in CHANGES.items() if problem and "not an entry" not in problem]


@pytest.mark.parametrize("name", FORGED)
def test_a_change_with_new_digests_is_found_by_the_data(tmp_path: Path, name: str) -> None:
    apply, _, problem = CHANGES[name]
    lines = lines_of(recorded())
    apply(lines)
    found = verify(written(tmp_path / "l.jsonl", chained(lines)), artifact="a" * 64)
    assert found.problem is not None
    assert re.match(problem, found.problem), found.problem


def test_totals_are_recomputed(tmp_path: Path) -> None:
    lines = lines_of(recorded())
    lines[-1]["val_bpb"] *= 0.99
    found = verify(written(tmp_path / "l.jsonl", lines))
    assert found.problem == "line 6: the totals are not those of the entries"


def test_other_data_and_other_bytes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_bytes(recorded().content())
    other = TOKENS.copy()
    other[30] ^= 1
    found = verify_ledger(path, other, byte_counts(other))
    assert found.problem == "line 1: the ledger is of another text than the data"


@given(st.data())
def test_no_changed_character_passes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = "\n".join(recorded().lines()) + "\n"
    place = data.draw(st.integers(0, len(text) - 2))
    letter = data.draw(
        st.characters(min_codepoint=32, max_codepoint=126).filter(lambda letter: letter != text[place])
    )
    path = tmp_path_factory.mktemp("l") / "l.jsonl"
    path.write_text(text[:place] + letter + text[place + 1 :])
    try:
        found = verify(path, artifact="a" * 64)
    except PgolfError:
        return
    # What JSON reads as the same value is the same ledger (1.0 written as 1.00, for instance).
    same = [json.loads(line) for line in path.read_text().splitlines()] == lines_of(recorded())
    assert (found.problem is None) == same


@pytest.mark.parametrize(
    "content", ["", "[]\n", "{}\n", "not json\n", '{"format": "pgolf-ledger-0"}\n', "\xff\n", "[" * 9000]
)
def test_what_is_no_ledger_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(PgolfError, match="not a ledger"):
        verify_ledger(path)
    with pytest.raises(PgolfError, match=r"missing\.jsonl: cannot be read"):
        verify_ledger(tmp_path / "missing.jsonl")
