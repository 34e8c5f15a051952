"""Bytes per token add up to the text, on any text."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError

TEXTS = st.one_of(
    st.text(max_size=80),
    st.text(alphabet=" \u2581\u00a0\tab\n\u3042\ufb01", max_size=40),
    st.lists(st.sampled_from(["hello", "world", " ", "  ", "\n", "naïve", "日本", "🙂"]), max_size=15).map("".join),
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer((f"hello world, number {n} of many words in one naïve text" for n in range(300)), 320, path)
    return Tokenizer.load(path)


def counted(tokenizer: Tokenizer, text: str) -> int:
    tokens = np.array([tokenizer.bos_id, *tokenizer.encode(text)])
    return int(tokenizer.byte_table.count(tokens[:-1], tokens[1:]).sum())


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_bytes_of_a_tokenizer_of_ours_are_those_of_the_text(own: Tokenizer, text: str) -> None:
    seen = text.replace("\u2581", " ")
    assert own.decode(own.encode(text)) == seen
    # A space at the very beginning counts for nothing, whoever put it there.
    assert counted(own, text) == len(own.normalize(text).encode()) == len(seen.removeprefix(" ").encode())


@pytest.fixture(scope="module")
def across_words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Pieces may run over spaces, and a space is put in front of every text: unlike ours in both."""
    path = tmp_path_factory.mktemp("across") / "tokenizer.model"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world and hello world again"] * 50),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        split_by_whitespace=False,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        minloglevel=3,
    )
    path.write_bytes(model.getvalue())
    return Tokenizer.load(path)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text="hello world and hello world again")
def test_spaces_inside_pieces_count(across_words: Tokenizer, text: str) -> None:
    pieces = [across_words.decode([token]) for token in range(3, across_words.vocab_size)]
    assert any(" " in piece.strip() for piece in pieces)
    assert counted(across_words, text) == len(across_words.normalize(text).encode())


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_bytes_of_the_official_tokenizer_are_those_of_the_normalised_text(shared: Path, text: str) -> None:
    official = Tokenizer.load(shared / "tokenizers" / "fineweb_1024_bpe.model")
    assert counted(official, text) == len(official.normalize(text).encode())


def test_the_definition_of_bytes(own: Tokenizer) -> None:
    table, bos = own.byte_table, own.bos_id
    letter = own.encode("h")[0]
    assert table.count(np.array([bos]), np.array([letter])).tolist() == [1]
    assert table.count(np.array([letter]), np.array([bos])).tolist() == [0]
    spaced = next(t for t in range(own.vocab_size) if table.leading_space[t] and table.base[t] > 0)
    after_text, after_bos = table.count(np.array([letter, bos]), np.array([spaced, spaced])).tolist()
    assert after_text == after_bos + 1
    assert table.count(np.array([[bos, letter]]), np.array([[letter, letter]])).dtype == np.int64


def test_unusable_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match=r"no such tokenizer.*--tokenizer"):
        Tokenizer.load(tmp_path / "missing.model")
    (tmp_path / "bad.model").write_bytes(b"no model at all")
    with pytest.raises(PgolfError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path / "bad.model")
