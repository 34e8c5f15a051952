"""Hugging Face tokenizers and tiktoken encodings: what their tokens count, that nothing is lost unnoticed."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgolf.codec.pieces import Pieces
from pgolf.data.dataset import open_dataset
from pgolf.data.inspect import check_bytes, decoded_bytes, plain_token
from pgolf.data.prepare import prepare
from pgolf.data.tokenizer import Tokenizer, check_usable
from pgolf.errors import PgolfError
from pgolf.memory.stored import start_of
from pgolf.report.text_analysis import pieces_of
from tests.unit.foreign_tokenizers import (
    GPT_2,
    KINDS,
    LOSSLESS,
    TEXT,
    byte_level,
    encoding,
    metaspace,
    piece_ranks,
    ranks,
    tiktoken,
    tokenizers,
    write,
)

Open = Callable[[str], Tokenizer]
NAMES = ["<s>", "</s>", "<unk>", "[CLS]", "[UNK]", "<|endoftext|>", "<|bos|>", "<0x41>", "##ing", "</w>"]
PARTS = [
    *NAMES,
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "a", "the", " the", " The", "12", "1", ",", "(", "Ġ", "'s"),
    *(
        "\ufffd",
        "\u2581",
        "\u2582",
        "\ufb01",
        "\ufdfa",
        "e\u0301",
        "\u0301",
        "é",
        "日",
        "日本",
        "🙂",
        "👩‍👧",
        "\x00",
        "\U0010ffff",
    ),
]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PARTS), max_size=25).map("".join))


@pytest.fixture(scope="module")
def open_kind(tmp_path_factory: pytest.TempPathFactory) -> Open:
    folder = tmp_path_factory.mktemp("kinds")

    @functools.cache
    def opened(kind: str) -> Tokenizer:
        return Tokenizer.load(write(folder, kind))

    return opened


def counted(tokenizer: Tokenizer, tokens: list[int]) -> int:
    return int(tokenizer.byte_table.count_stream(np.array([tokenizer.bos_id, *tokens])).sum())


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=TEXTS)
@example(text="\ufffd\U0010ffff e\u0301 🙂<|endoftext|>\u2581")
def test_nothing_is_lost_and_pieces_are_bytes_of_the_text(open_kind: Open, kind: str, text: str) -> None:
    tokenizer = open_kind(kind)
    tokens = tokenizer.encode(text)
    assert b"".join(tokenizer.parts[token] or b"" for token in tokens) == text.encode()
    assert counted(tokenizer, tokens) == len(text.encode())
    assert tokenizer.normalize(text) == tokenizer.decode(tokens) == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_what_is_counted_is_the_text_as_it_is_normalised(open_kind: Open, kind: str, text: str) -> None:
    tokenizer = open_kind(kind)
    tokens = tokenizer.encode(text)
    size, normalized = counted(tokenizer, tokens), len(tokenizer.normalize(text).encode())
    # Of these two, pieces are told apart by marks that a text can have too; no more is counted than is there.
    marked = {"wordpiece": "##", "word ends": "</w>"}.get(kind, "<0x41>")
    if tokenizer.unknown_id in tokens or marked in text:
        assert size <= normalized
    else:
        assert size == normalized
    assert not {token for token in tokens if tokenizer.byte_table.boundary[token]}, "text is no control"
    plain = plain_token(tokenizer)
    if plain is not None:
        assert decoded_bytes(tokenizer, np.array([tokenizer.bos_id, *tokens]), plain) == size


@pytest.mark.parametrize("kind", KINDS)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        TEXTS.map(str.encode),
        st.lists(st.sampled_from(TEXT[:6]), max_size=4).map(lambda lines: "\n".join(lines).encode()),
    )
)
@example(content=b"the cat\xff\xfe sat " + bytes(range(40)) + "日本 The\u2581 \u00a0".encode())
def test_any_bytes_are_spelled(open_kind: Open, kind: str, content: bytes) -> None:
    pieces = pieces_for(open_kind(kind))
    spelling = pieces.spell(content)
    assert pieces.join(spelling) == content
    assert len(spelling.runs) == np.count_nonzero(spelling.tokens == pieces.unknown)


@functools.cache
def pieces_for(tokenizer: Tokenizer) -> Pieces:
    return Pieces(tokenizer)


@pytest.mark.parametrize("kind", ["byte level", "metaspace", "llama", "unigram of words", "ranks"])
def test_text_is_spelled_by_tokens(open_kind: Open, kind: str) -> None:
    text = "the cat sat on the mat and hello world"
    tokenizer = open_kind(kind)
    spelling = pieces_for(tokenizer).spell(text.encode())
    assert spelling.runs == [] and spelling.tokens.tolist() == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("kind", "begins", "unknown"),
    [
        ("byte level", "<|endoftext|>", None),
        ("byte level without beginning", None, None),
        ("unigram", "<s>", "<unk>"),
        ("wordpiece", "[CLS]", "[UNK]"),
        ("word ends", None, "<unk>"),
    ],
)
def test_documents_begin_with_a_special_token_or_a_new_last_one(
    open_kind: Open, kind: str, begins: str | None, unknown: str | None
) -> None:
    tokenizer = open_kind(kind)
    library = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    size = library.get_vocab_size()
    if begins is None:
        assert (tokenizer.bos_id, tokenizer.vocab_size) == (size, size + 1)
    else:
        assert (tokenizer.bos_id, tokenizer.vocab_size) == (library.token_to_id(begins), size)
    assert tokenizer.unknown_id == (-1 if unknown is None else library.token_to_id(unknown))
    check_usable(tokenizer)


def test_encodings_begin_documents_with_their_special_token(open_kind: Open) -> None:
    assert (open_kind("ranks").bos_id, open_kind("ranks").vocab_size) == (271, 272)
    found = open_kind("encoding")
    assert (found.bos_id, found.vocab_size) == (600, 601)
    # Of its own pattern: two digits at most.
    assert [found.parts[token] for token in found.encode("1234")] == [b"12", b"3", b"4"]


@given(text=TEXTS)
@example(text="It's we'll 12ab  \n\n x 日本_é")
def test_ranks_split_text_as_gpt_2_does(open_kind: Open, text: str) -> None:
    found = tiktoken.Encoding("theirs", pat_str=GPT_2, mergeable_ranks=piece_ranks(), special_tokens={})
    assert open_kind("ranks").encode(text) == found.encode_ordinary(text)


def test_the_definition_of_bytes(open_kind: Open) -> None:
    for kind in ("byte level", "ranks", "unigram"):
        tokenizer = open_kind(kind)
        tokens = tokenizer.encode("\ufffd")
        assert tokenizer.unknown_id not in tokens and counted(tokenizer, tokens) == 3
    level = open_kind("byte level")
    # Of a character in several pieces each counts its own bytes.
    assert [len(level.parts[token] or b"") for token in level.encode("☃")] == [1, 1, 1]
    meta = open_kind("metaspace")
    snowman = meta.encode("a☃")[-3:]
    assert all(meta.is_byte[token] for token in snowman) and counted(meta, snowman) == 3
    space = meta.encode("a")[0]
    stream = np.array([meta.bos_id, space, space, meta.bos_id, space])
    assert meta.byte_table.count_stream(stream).tolist() == [0, 1, 0, 0], (
        "the space in front is not of the text"
    )


def test_other_tokens_than_text_are_left_out_of_what_text_becomes(tmp_path: Path) -> None:
    # The file asks to cut texts off, to fill them up, to put tokens around them, and to choose by chance.
    tree = json.loads(byte_level(special=("<s>", "</s>")))
    tree["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tree["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "</s>",
    }
    tree["post_processor"] = {"type": "BertProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]}
    tree["model"]["dropout"] = 0.9
    (tmp_path / "t.json").write_text(json.dumps(tree))
    tokenizer = Tokenizer.load(tmp_path / "t.json")
    text = "<s>the cat sat on the mat</s>"
    assert tokenizer.encode(text) == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text and tokenizer.bos_id == 0


def test_added_pieces_that_are_no_special_ones_are_text(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_str(byte_level())
    library.add_tokens(["日本語", "<|user|>"])
    library.save(str(tmp_path / "t.json"))
    tokenizer = Tokenizer.load(tmp_path / "t.json")
    tokens = tokenizer.encode("x<|user|>日本語")
    assert len(tokens) == 3 and tokens == library.encode("x<|user|>日本語").ids
    assert counted(tokenizer, tokens) == len("x<|user|>日本語".encode())


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("kind", ["byte level", "encoding"])
def test_data_of_lossless_tokenizers_changes_nothing(open_kind: Open, tmp_path: Path, kind: str) -> None:
    text = jsonl(tmp_path / "a.jsonl", [*TEXT, "<|endoftext|> \ufffd e\u0301"])
    manifest = prepare([text], tmp_path / "data", val_fraction=0.2, tokenizer=open_kind(kind).path)
    assert all(s["bytes_original"] == s["bytes_normalized"] for s in manifest["splits"].values())
    dataset = open_dataset(tmp_path / "data")
    assert dataset.tokenizer.digest == open_kind(kind).digest
    assert str(dataset.normalisation("train")) == "changes nothing"
    found = check_bytes(dataset, dataset.validation_text(1))
    assert found.problem is None and "as many as the documents decode to" in found.evidence
    # The same shards alone, as others make them.
    (tmp_path / "bare").mkdir()
    for shard in (tmp_path / "data").glob("*.bin"):
        shutil.copy(shard, tmp_path / "bare")
    bare = open_dataset(tmp_path / "bare", open_kind(kind).path)
    assert np.array_equal(bare.validation_text(1).byte_counts, dataset.validation_text(1).byte_counts)


def test_what_normalisation_loses_is_said(open_kind: Open, tmp_path: Path) -> None:
    text = jsonl(tmp_path / "a.jsonl", ["the cat sat", "hello world"] * 5)
    prepare([text], tmp_path / "words", val_text=[text], tokenizer=open_kind("wordpiece").path)
    # Two spaces of "the cat sat" and one of "hello world" are no pieces: bytes that no score counts.
    assert (
        str(open_dataset(tmp_path / "words").normalisation("val"))
        == "adds 0.0000 % and loses 13.6 % of the text's bytes"
    )
    upper = jsonl(tmp_path / "b.jsonl", ["Thecat", "the"])
    prepare([upper], tmp_path / "case", val_text=[upper], tokenizer=open_kind("wordpiece").path)
    assert (
        str(open_dataset(tmp_path / "case").normalisation("val"))
        == "changes 1 documents, but not their length"
    )


def test_text_that_becomes_longer_is_refused(open_kind: Open, tmp_path: Path) -> None:
    tree = json.loads(open_kind("byte level").path.read_text())
    tree["normalizer"] = {"type": "Replace", "pattern": {"String": "cat"}, "content": "elephant"}
    (tmp_path / "t.json").write_text(json.dumps(tree))
    text = jsonl(tmp_path / "a.jsonl", ["the cat sat", "hello world"] * 5)
    with pytest.raises(
        PgolfError, match=r"adds .* % and loses .* of validation, and bits per byte of longer"
    ):
        prepare([text], tmp_path / "data", val_text=[text], tokenizer=tmp_path / "t.json")
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_that_drops_text_without_a_token_is_refused(open_kind: Open, tmp_path: Path) -> None:
    tree = json.loads(open_kind("byte level").path.read_text())
    del tree["model"]["vocab"]["q"]
    (tmp_path / "t.json").write_text(json.dumps(tree))
    text = jsonl(tmp_path / "a.jsonl", ["the cat sat", "a quiet river"])
    with pytest.raises(PgolfError, match=r"pieces of a document count 12 bytes, its normalised text has 13"):
        prepare([text], tmp_path / "data", val_text=[text], tokenizer=tmp_path / "t.json")


@pytest.mark.parametrize(("make", "package"), [(byte_level, "tokenizers"), (ranks, "tiktoken")])
def test_an_absent_package_is_named(
    make: Callable[[], str], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").write_text(make())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        PgolfError, match=rf't: needs the package {package}, .*pip install "pgolf\[tokenizers\]"'
    ):
        Tokenizer.load(tmp_path / "t")


def _changed(make: Callable[[], str], change: Callable[[dict[str, Any]], Any]) -> str:
    tree = json.loads(make())
    change(tree)
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: byte_level()[:-50], "a damaged tokenizer"),
        (lambda: '{"a": 1}', "not a SentencePiece model, nor"),
        (lambda: _changed(byte_level, lambda t: t["model"].update(vocab={})), "a damaged tokenizer"),
        (lambda: _changed(byte_level, lambda t: t.update(model=[])), "a damaged tokenizer"),
        (
            lambda: _changed(byte_level, lambda t: t["model"].update(continuing_subword_prefix="x")),
            "BPE with a mark where words continue cannot be used",
        ),
        (lambda: _changed(metaspace, lambda t: t["model"].update(unk_token="x")), "no piece for the unknown"),
        (lambda: _changed(encoding, lambda t: t.update(pat_str="")), "a damaged tokenizer"),
        (lambda: ranks()[:-3] + "x", "a damaged tokenizer"),
        (lambda: ranks().partition("\n")[2], "no piece for byte 255"),
        (lambda: ranks().replace(" 7\n", " 8\n"), "two pieces have one token"),
        (lambda: _changed(encoding, lambda t: t.update(pat_str="(")), "a damaged tokenizer"),
        (lambda: _changed(encoding, lambda t: t.pop("special_tokens")), "a damaged tokenizer"),
        (lambda: _changed(encoding, lambda t: t.update(mergeable_ranks=[])), "a damaged tokenizer"),
    ],
)
def test_damaged_files_are_named(content: Callable[[], str], words: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text(content())
    with pytest.raises(PgolfError, match=words):
        Tokenizer.load(tmp_path / "bad")


def test_more_pieces_than_shards_can_hold_are_refused(tmp_path: Path) -> None:
    tree = json.loads(encoding())
    tree["special_tokens"] = {"<|bos|>": 1 << 16}
    (tmp_path / "t").write_text(json.dumps(tree))
    with pytest.raises(PgolfError, match="has 65537 pieces, but a shard's tokens go up to 65,536"):
        check_usable(Tokenizer.load(tmp_path / "t"))


def test_a_memory_and_a_report_know_the_pieces(open_kind: Open) -> None:
    for kind, word, inside in (("byte level", b" the", b"at"), ("wordpiece", b"the", b"at")):
        tokenizer = open_kind(kind)
        starts = start_of(tokenizer.pieces, tokenizer.bos_id, np.zeros(0, np.uint16)).starts
        texts = dict(zip(tokenizer.pieces, starts.tolist(), strict=False))
        assert texts["\u2581the"] and not texts["at"], (word, inside)
    kinds = dict(zip(open_kind("byte level").parts, pieces_of(open_kind("byte level")), strict=True))
    assert kinds[b"\xff"].kind == "byte fallback" and kinds[b" the"].kind == "word, lower case"
    assert kinds[None].kind == "document start"
