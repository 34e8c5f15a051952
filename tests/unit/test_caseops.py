"""CaseOps: every text comes back from its tokens, and they count its bytes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pgolf.codec.pieces import Pieces
from pgolf.compress.code_size import scorer_modules
from pgolf.data.caseops import ALLCAPS, CAPNEXT, TITLE, lowered
from pgolf.data.dataset import open_dataset
from pgolf.data.inspect import inspect_dataset
from pgolf.data.prepare import prepare
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError
from pgolf.generate.model import TextWriter
from pgolf.memory.stored import start_of
from pgolf.recipe.recipe import load_recipe
from pgolf.report.text_analysis import pieces_of
from pgolf.runs.pipeline import job_dataset

WORDS = "The cat of Dr. McCoy sat on the mat at NASA. So did THE dog, number {} of all."
# What tells words, operators, spaces and their neighbours apart.
PARTS = [
    *(" ", "  ", "\n", "\t", "'", ".", "1", "a", "b", "z", "A", "B", "Z"),
    *("the", "The", "THE", " the", " The", "NASA", "McCoy", "iPhone", "PDFs"),
    *("\ue011", "\ue012", "\ue013", "\ue001", "\u2581", "\u2582", "\x00", "<0x41>", "<s>"),
    *("é", "É", "ß", "İ", "ı", "\u212a", "\u0301", "\ufb01", "日", "🙂", "\u00a0"),
]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PARTS), max_size=25).map("".join))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("caseops") / "tokenizer.model"
    train_tokenizer((WORDS.format(number) for number in range(300)), 340, path, "caseops")
    return path


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(model)


def _check(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    counts = tokenizer.byte_table.count_stream(np.array([tokenizer.bos_id, *tokens]))
    assert int(counts.sum()) == len(text.encode()) == len(tokenizer.normalize(text).encode())


@given(text=TEXTS)
def test_every_text_comes_back_and_counts_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    _check(tokenizer, text)


@pytest.mark.parametrize("count", [3000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_so_do_many_texts(tokenizer: Tokenizer, count: int) -> None:
    choose = random.Random(count)
    for _ in range(count):
        _check(tokenizer, "".join(choose.choices(PARTS, k=choose.randrange(25))))


def _documents(path: Path) -> Iterator[str]:
    with zstandard.open(path, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


@pytest.mark.parametrize("name", ["fineweb_legal.val*", pytest.param("*", marks=pytest.mark.slow)])
def test_so_does_real_text(shared: Path, tokenizer: Tokenizer, name: str) -> None:
    for path in sorted((shared / "data").glob(f"{name}.jsonl.zst")):
        for text in _documents(path):
            _check(tokenizer, text)


@given(tokens=st.lists(st.integers(3, 339), max_size=40))
def test_whatever_is_written_has_the_bytes_that_it_counts(tokenizer: Tokenizer, tokens: list[int]) -> None:
    read = tokenizer.reader()
    text = b"".join(read(token) or b"" for token in tokens)
    assert len(text) == int(tokenizer.byte_table.count_stream(np.array([1, *tokens])).sum())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cat", "the cat"),
        ("The Cat", f"{TITLE}the{TITLE} cat"),
        ("a NASA  Man", f"a{ALLCAPS} nasa {TITLE} man"),
        ("I, McCoy's iPhone", f"{TITLE}i,{TITLE} mc{CAPNEXT}coy's i{CAPNEXT}phone"),
        ("1A 2BC É Éa \u212aB", f"1{TITLE}a 2{ALLCAPS}bc É É" + f"a \u212a{TITLE}b"),
        ("x\n\tYes ABc", f"x\n\t{TITLE}yes{TITLE} a{CAPNEXT}bc"),
    ],
)
def test_operators_stand_before_the_space(text: str, expected: str) -> None:
    assert lowered(text) == expected


def test_a_word_is_spelled_alike_however_it_begins(tokenizer: Tokenizer) -> None:
    small, title, capitals = (tokenizer.encode(f"x{word}")[1:] for word in (" the", " The", " THE"))
    assert title[1:] == capitals[1:] == small and len(small) == 1
    operators = {tokenizer.pieces.index(operator) for operator in (TITLE, ALLCAPS, CAPNEXT)}
    assert tokenizer.byte_table.base[list(operators)].tolist() == [0, 0, 0]
    assert not any(operator in piece for piece in tokenizer.pieces[7:] for operator in (TITLE, ALLCAPS))
    # In a text they are characters like others.
    assert not operators.intersection(tokenizer.encode(TITLE + ALLCAPS + CAPNEXT))


def test_a_long_text_takes_no_longer_than_its_length(tokenizer: Tokenizer) -> None:
    for text in ("acgt" * 50_000, "ACGT" * 50_000, "aC" * 50_000, " " * 200_000):
        assert len(lowered(text)) >= len(text)


def test_what_is_written_goes_on_as_the_prompt_ends(tokenizer: Tokenizer) -> None:
    pieces = Pieces(tokenizer)
    read = pieces.reader()
    for token in tokenizer.encode("the NASA"):
        read(token)
    writer = TextWriter(pieces, ("OF",), False, read)
    tokens = tokenizer.encode("tional CAT of mice")
    assert "".join(writer.add(token) for token in tokens) + writer.finish() == "TIONAL CAT of mice"
    writer = TextWriter(pieces, ("OF",), False)
    assert "".join(writer.add(token) for token in tokenizer.encode("sat OF course")) == "sat "


def test_a_memory_takes_no_operator_for_a_word(tokenizer: Tokenizer) -> None:
    starts = start_of(tokenizer.pieces, tokenizer.bos_id, np.zeros(0, np.uint16)).starts
    begins = dict(zip(tokenizer.pieces, starts.tolist(), strict=True))
    assert not begins[TITLE] and not begins[CAPNEXT] and not begins["a"]
    assert begins["\u2581the"] and begins["."]


def test_a_report_has_a_class_of_its_own_for_operators(tokenizer: Tokenizer) -> None:
    found = dict(zip(tokenizer.pieces, pieces_of(tokenizer), strict=True))
    assert {found[operator].kind for operator in (TITLE, ALLCAPS, CAPNEXT)} == {"capital letters"}
    assert found["\u2581the"].kind == "word, lower case"


def test_scoring_does_without_the_transform() -> None:
    assert "data/caseops.py" not in scorer_modules(memory=True)


def _prepare(folder: Path, out: str, **options: Any) -> Path:
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": WORDS.format(n) + " \ue011X" * n}) + "\n" for n in range(60)))
    prepare([text], folder / out, val_fraction=0.2, **options)
    return folder / out


def test_a_folder_keeps_it_with_the_tokenizer(model: Path, tmp_path: Path) -> None:
    folder = _prepare(tmp_path, "trained", vocab_size=340, transform="caseops")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["tokenizer"]["transform"] == "caseops"
    assert all(split["bytes_original"] == split["bytes_normalized"] for split in manifest["splits"].values())
    found = inspect_dataset(folder)
    assert found["tokenizer"]["transform"] == "caseops" and not found["errors"]
    assert found["val"]["bytes"] == manifest["splits"]["val"]["bytes_original"]
    # A tokenizer brings its own, asked for or not.
    for number, options in enumerate([{}, {"transform": "caseops"}]):
        again = open_dataset(_prepare(tmp_path, f"again{number}", tokenizer=model, **options))
        assert again.tokenizer.transform == "caseops"


def test_a_recipe_that_asks_for_it_takes_no_other_data(tmp_path: Path) -> None:
    data = _prepare(tmp_path, "plain", vocab_size=320)
    recipe = load_recipe("tiny", ["model.vocab_size=320", "data.transform=caseops"])
    with pytest.raises(PgolfError, match=r"has no operators .*prepare the data with --transform caseops"):
        job_dataset(recipe, data, None)
    data = _prepare(tmp_path, "lowered", vocab_size=340, transform="caseops")
    for setting in ("none", "caseops"):
        recipe = load_recipe("tiny", ["model.vocab_size=340", f"data.transform={setting}"])
        assert job_dataset(recipe, data, None).tokenizer.transform == "caseops"


def test_mistakes(tmp_path: Path) -> None:
    plain = _prepare(tmp_path, "plain", vocab_size=320) / "tokenizer.model"
    with pytest.raises(PgolfError, match=r"has no operators .*--vocab-size N --transform caseops"):
        _prepare(tmp_path, "out", tokenizer=plain, transform="caseops")
    with pytest.raises(PgolfError, match="--transform upper: unknown; use none or caseops"):
        _prepare(tmp_path, "out", vocab_size=340, transform="upper")
    # With a normalisation of its own the text would not come back.
    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.format(number).lower() for number in range(300)),
        model_writer=other,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        add_dummy_prefix=False,
        user_defined_symbols=[TITLE, ALLCAPS, CAPNEXT],
        minloglevel=3,
    )
    folded = tmp_path / "folded.model"
    folded.write_bytes(other.getvalue())
    (tmp_path / "ligature.txt").write_text("A \ufb01ne day\n\nB")
    with pytest.raises(PgolfError, match="a document"):
        prepare([tmp_path / "ligature.txt"], tmp_path / "out", tokenizer=folded)
    assert not (tmp_path / "out").exists()
