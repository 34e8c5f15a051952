"""The corpus of the running Python's own prose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgolf.data import corpus
from pgolf.data.corpus import Texts, prepare_python_corpus, python_corpus
from pgolf.data.dataset import open_dataset
from pgolf.errors import PgolfError

MODULE = '''
"""Tools for the tests of this project, and for nothing else.

This paragraph is in two places, but only once in the corpus.

    >>> answer_of_the_library("to all of the questions")
    42

key ::= value ("," value)* | value [ "=" value ]
"""

raise SystemExit("importing this module would end the tests")

# A block comment is prose
# as well if it is written like that.

class Thing:
    """A thing of the kind that is tested here."""

    async def method(self):
        """This paragraph is in two places, but only once in the corpus."""
        x = "a string that is not a docstring is not in the corpus"  # nor is a comment like this one
        if x:
            def inner():
                """A docstring that is in a nested function is found."""
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A standard library of three files."""
    folder = tmp_path / "library"
    (folder / "pydoc_data").mkdir(parents=True)
    (folder / "pydoc_data" / "topics.py").write_text(
        "topics = {'b': 'The second of the topics is this one.', "
        "'a': 'This is the first topic in the order.\\n'}\n"
    )
    (folder / "module.py").write_text(MODULE)
    (folder / "broken.py").write_text('"""This file is not a module that can be parsed."""\nprint "so"\n')
    (folder / "test").mkdir()
    (folder / "test" / "test_it.py").write_text('"""The tests are not a part of the corpus."""\n')
    return folder


def test_only_prose_in_order_and_once(library: Path) -> None:
    assert python_corpus(library) == [
        "This is the first topic in the order.",
        "The second of the topics is this one.",
        "Tools for the tests of this project, and for nothing else.\n\n"
        "This paragraph is in two places, but only once in the corpus.\n\n"
        "A block comment is prose as well if it is written like that.\n\n"
        "A thing of the kind that is tested here.\n\n"
        "A docstring that is in a nested function is found.",
    ]


def test_a_python_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match="--data DIR"):
        python_corpus(tmp_path)


def test_the_running_python_has_a_corpus_of_english_prose() -> None:
    documents = python_corpus()
    paragraphs = [paragraph for text in documents for paragraph in text.split("\n\n")]
    assert 1_500_000 < sum(len(text.encode()) for text in documents) < 6_000_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert max(map(len, documents)) < 100_000
    words = re.findall(r"[a-z]+", " ".join(paragraphs).lower())
    # "the" makes up about 6 % of English text and next to nothing of code.
    assert 0.04 < words.count("the") / len(words) < 0.1


def test_the_prepared_corpus_is_split_and_cached(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [
        f"This is the text of number {number}, and it is not like the others: {number**5}."
        for number in range(200)
    ]
    calls = []

    def fake() -> list[str]:
        calls.append(1)
        return texts

    monkeypatch.setattr(corpus, "python_corpus", fake)
    out = prepare_python_corpus(tmp_path / "out", 300, 0.1)
    dataset = open_dataset(out, vocab_size=300)
    assert dataset.manifest is not None
    splits = dataset.manifest["splits"]
    assert splits["train"]["documents"] + splits["val"]["documents"] == 200
    total = sum(len(text.encode()) for text in texts)
    assert 0.1 * total <= splits["val"]["bytes_original"] < 0.1 * total + 100
    first = (out / "text_train_000000.bin").read_bytes()

    prepare_python_corpus(out, 300, 0.1)
    assert len(calls) == 1

    lowered = prepare_python_corpus(tmp_path / "lowered", 320, 0.1, transform="caseops")
    assert open_dataset(lowered).tokenizer.transform == "caseops"
    assert prepare_python_corpus(lowered, 320, 0.1, transform="caseops") and len(calls) == 2
    calls.pop()

    prepare_python_corpus(out, 300, 0.2)
    assert len(calls) == 2
    assert (out / "text_train_000000.bin").read_bytes() != first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_other_data_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(PgolfError, match="already exists"):
        prepare_python_corpus(tmp_path, 300, 0.1)
    assert (tmp_path / "mine.txt").is_file()


def test_the_data_of_texts_are_made_once_for_each_way_to_read_them(tmp_path: Path) -> None:
    text = tmp_path / "Notes.v2.txt"
    lines = [f"Number {n} is not Like the Others: {n**5}." for n in range(300)]
    text.write_text("\n".join(lines))
    texts = Texts((text,))
    assert re.fullmatch(r"Notes-[0-9a-f]{6}-sp320", texts.folder(320).name)
    assert texts.folder(320, "caseops").name == f"{texts.folder(320).name}-caseops"
    assert Texts((text,), (text,)).folder(320) != texts.folder(320)
    out = texts.prepare(tmp_path / "out", 320, 0.2)
    stamp = (out / "manifest.json").stat().st_mtime_ns
    texts.prepare(out, 320, 0.2)
    assert (out / "manifest.json").stat().st_mtime_ns == stamp

    capitals = open_dataset(texts.prepare(tmp_path / "capitals", 340, 0.2, transform="caseops"))
    given = Texts((text,), (text,), out / "tokenizer.model")
    assert given.folder(320) != Texts((text,), (text,)).folder(320)
    plain = open_dataset(given.prepare(tmp_path / "given", 320, 0.2))
    assert capitals.tokenizer.transform == "caseops"
    assert plain.tokenizer.digest == open_dataset(out).tokenizer.digest
    assert plain.manifest is not None
    assert plain.manifest["splits"]["val"]["bytes_original"] == len(text.read_bytes())

    text.write_text("\n".join(lines[:200]))
    texts.prepare(out, 320, 0.2)
    assert (out / "manifest.json").stat().st_mtime_ns != stamp, "another text takes the place of the old one"
