"""Bytes per token add up to the text, on any text."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from pgolf.data.inspect import decoded_bytes, plain_token
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError


@functools.cache
def official_tokenizer(shared: Path) -> Tokenizer:
    return Tokenizer.load(shared / "tokenizers" / "fineweb_1024_bpe.model")


TEXTS = st.one_of(
    st.text(max_size=80),
    st.text(alphabet=" \u2581\u00a0\tab\n\u3042\ufb01", max_size=40),
    st.lists(st.sampled_from(["hello", "world", " ", "  ", "\n", "naïve", "日本", "🙂"]), max_size=15).map(
        "".join
    ),
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(
        (f"hello world, number {n} of many words in one naïve text" for n in range(300)), 320, path
    )
    return Tokenizer.load(path)


def counted(tokenizer: Tokenizer, text: str) -> int:
    tokens = np.array([tokenizer.bos_id, *tokenizer.encode(text)])
    return int(tokenizer.byte_table.count_stream(tokens).sum())


@given(text=TEXTS)
@example(text=" a space at the beginning is text")
def test_bytes_of_a_tokenizer_of_ours_are_those_of_the_text(own: Tokenizer, text: str) -> None:
    seen = text.replace("\u2581", " ")
    assert own.decode(own.encode(text)) == seen
    assert counted(own, text) == len(own.normalize(text).encode()) == len(seen.encode())


LINES = [
    "the cat sat on the mat and it was 12 years old",
    "hello world  two spaces",
    "na\u00efve \u65e5 7 \u00bd <sep> x",
]
# What tells spaces, spelled spaces, half spelled ones and their neighbours apart.
PARTS = [
    *(" ", "  ", "\u2581", "\n", "\t", "\u00a0", "a", "the", " the", "x", "1", "23", "<sep>"),
    *("\u00bd", "\ufdfa", "\u65e5", "\u2603", "\u2580", "\u2582", "\u3581", "\U0001f581", "\u2026"),
]
KINDS = list(
    itertools.product(
        ("bpe", "unigram", "char"),
        ("identity", "nmt_nfkc"),
        *([("byte_fallback", yes) for yes in (True, False)],),
        *(
            [(name, yes) for yes in (True, False)]
            for name in ("add_dummy_prefix", "remove_extra_whitespaces")
        ),
        *([(name, yes) for yes in (True, False)] for name in ("split_digits", "split_by_whitespace")),
        ((), ("<sep>", "x y")),
    )
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, bool], Tokenizer]:
    """Trains the tokenizer of a kind, with a piece for the space or without."""
    folder = tmp_path_factory.mktemp("zoo")

    @functools.cache
    def make(kind: int, has_space: bool) -> Tokenizer:
        model_type, rule, *options, symbols = KINDS[kind]
        chosen = dict(options)
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES * 30),
            model_writer=model,
            model_type=model_type,
            normalization_rule_name=rule,
            vocab_size=330 if chosen["byte_fallback"] else 70,
            user_defined_symbols=list(symbols),
            hard_vocab_limit=False,
            character_coverage=0.98,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=1,
            minloglevel=3,
            **chosen,
        )
        content = model.getvalue()
        if not has_space:
            # The piece of the space alone (field 1, 3 bytes, then its score) becomes another character.
            content = content.replace(b"\x0a\x03\xe2\x96\x81\x15", b"\x0a\x03\xe2\x96\x83\x15")
        path = folder / f"{kind}-{has_space}.model"
        path.write_bytes(content)
        return Tokenizer.load(path)

    return make


@given(
    kind=st.integers(0, len(KINDS) - 1),
    has_space=st.booleans(),
    texts=st.lists(st.lists(st.sampled_from(PARTS), max_size=12).map("".join), min_size=1, max_size=4),
)
def test_bytes_are_those_of_the_normalised_text_for_every_kind_of_tokenizer(
    zoo: Callable[[int, bool], Tokenizer], kind: int, has_space: bool, texts: list[str]
) -> None:
    tokenizer = zoo(kind, has_space)
    documents = [np.array([tokenizer.bos_id, *tokenizer.encode(text)], dtype=np.uint16) for text in texts]
    stream = np.concatenate([*documents, [tokenizer.bos_id]])
    counts = tokenizer.byte_table.count_stream(stream)
    place = 0
    for text, document in zip(texts, documents, strict=True):
        size = int(counts[place : place + len(document)].sum())
        place += len(document)
        normalized = len(tokenizer.normalize(text).encode())
        if tokenizer.unknown_id in document:
            assert size <= normalized
        else:
            assert size == normalized
        assert decoded_bytes(tokenizer, document, plain_token(tokenizer)) == size
        assert counted(tokenizer, text) == size, "documents count alone as they count in a stream"


def test_the_zoo_has_what_it_is_for(zoo: Callable[[int, bool], Tokenizer]) -> None:
    with_fallback = [index for index, kind in enumerate(KINDS) if ("byte_fallback", True) in kind]
    spelled = [zoo(index, False) for index in with_fallback[::7]]
    assert all(len(tokenizer.byte_table.spelled_space) == 3 for tokenizer in spelled)
    assert all(not zoo(index, True).byte_table.spelled_space for index in with_fallback[::7])
    adds = {zoo(index, True).byte_table.adds_space for index in range(0, len(KINDS), 9)}
    assert adds == {True, False}
    across = [zoo(index, True) for index, kind in enumerate(KINDS) if ("split_by_whitespace", False) in kind][
        :4
    ]
    pieces = [tokenizer.decode([token]) for tokenizer in across for token in range(4, tokenizer.vocab_size)]
    assert any(" " in piece.strip() for piece in pieces)


def test_a_spelled_space_counts_one_byte(zoo: Callable[[int, bool], Tokenizer]) -> None:
    kind = next(i for i, kind in enumerate(KINDS) if kind[0] == "bpe" and ("add_dummy_prefix", True) in kind)
    tokenizer = zoo(kind, False)
    first, second, third = tokenizer.byte_table.spelled_space
    bos, letter = tokenizer.bos_id, tokenizer.encode("1")[-1]
    stream = np.array([bos, first, second, third, letter, first, second, third, letter])
    assert tokenizer.byte_table.count_stream(stream).tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
    # Cut within: the first token is no target.
    assert tokenizer.byte_table.count_stream(stream[5:]).tolist() == [0, 0, 1]
    # Other characters that begin or end alike.
    other = np.array([letter, first, second, second, second, third])
    assert tokenizer.byte_table.count_stream(other).tolist() == [1, 1, 1, 1, 1]


def test_a_space_at_the_end_of_every_text_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 30),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        treat_whitespace_as_suffix=True,
        minloglevel=3,
    )
    (tmp_path / "suffix.model").write_bytes(model.getvalue())
    with pytest.raises(
        PgolfError, match=r"suffix.model: puts a space at the end.*use a tokenizer that was trained"
    ):
        _ = Tokenizer.load(tmp_path / "suffix.model").byte_table


@given(text=TEXTS)
def test_bytes_of_the_official_tokenizer_are_those_of_the_normalised_text(shared: Path, text: str) -> None:
    official = official_tokenizer(shared)
    assert counted(official, text) == len(official.normalize(text).encode())


@pytest.mark.parametrize("adds_space", [True, False])
def test_the_definition_of_bytes(zoo: Callable[[int, bool], Tokenizer], adds_space: bool) -> None:
    kind = next(
        i for i, kind in enumerate(KINDS) if kind[0] == "bpe" and ("add_dummy_prefix", adds_space) in kind
    )
    tokenizer = zoo(kind, True)
    table, bos, letter = tokenizer.byte_table, tokenizer.bos_id, tokenizer.encode("1")[-1]
    assert table.count(np.array([bos]), np.array([letter])).tolist() == [1]
    assert table.count(np.array([letter]), np.array([bos])).tolist() == [0]
    spaced = next(t for t in range(tokenizer.vocab_size) if table.leading_space[t] and table.base[t] > 0)
    after_text, after_bos = table.count(np.array([letter, bos]), np.array([spaced, spaced])).tolist()
    # The space in front of a document is not of its text if the tokenizer put it there.
    assert after_text == after_bos + adds_space
    assert table.count(np.array([[bos, letter]]), np.array([[letter, letter]])).dtype == np.int64


def test_unusable_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match=r"no such tokenizer.*--tokenizer"):
        Tokenizer.load(tmp_path / "missing.model")
    (tmp_path / "bad.model").write_bytes(b"no model at all")
    with pytest.raises(PgolfError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path / "bad.model")
