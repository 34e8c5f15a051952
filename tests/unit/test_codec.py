"""The compressor's parts: range coder, tables, runs, pieces, file. Any bytes come back; damage is noticed."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from pgolf.codec import container, payload
from pgolf.codec.arithmetic import TOTAL, Decoder, Encoder, frequencies, from_weights, power_of_two
from pgolf.codec.container import MAGIC, Header, decode_file, encode_file, short_digest
from pgolf.codec.payload import MARK, decode, encode, fixed_threads
from pgolf.codec.pieces import Pieces
from pgolf.codec.raw import LONG, ByteModel, GapModel
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError
from pgolf.evaluate.protocol import Recorded, Scorer

WORDS = "hello world and hello world again, this is a text of some words; it has number {} in it."
ANY = st.one_of(
    st.binary(max_size=120),
    st.text(max_size=80).map(str.encode),
    st.text(alphabet=" \u2581\u00a0\tab\n\r\u3042\ufb01\x00<s>", max_size=60).map(str.encode),
    st.lists(
        st.sampled_from(
            [
                *(
                    word.encode()
                    for word in ("hello", "world", "naïve", "日本", "🙂", "</s>", "<0x41>", "<unk>", "\u2581")
                ),
                *(
                    b" ",
                    b"  ",
                    b"\n",
                    b"\r\n",
                    b"\xff",
                    b"\xe2\x96",
                    b"\x00" * 30,
                    b"\xed\xa0\x80",
                    b"\xef\xbb\xbf",
                ),
            ]
        ),
        max_size=25,
    ).map(b"".join),
)
CASES = {
    "empty": b"",
    "one byte": b"a",
    "one NUL": b"\x00",
    "a space": b" ",
    "leading spaces": b"   three spaces, then text",
    "trailing newlines": b"text\n\n\n",
    "CRLF": b"hello\r\nworld\r\n\r\nagain\r\n",
    "tabs and double  spaces": b"a\tb  c   d\t\t e",
    "invalid UTF-8": b"hello \xff\xfe world \xc3( \xe2\x96 \xed\xa0\x80",
    "all bytes": bytes(range(256)),
    "random": np.random.default_rng(0).bytes(3000),
    "zeros": b"\x00" * 20_000,
    "a run of one letter": b"a" * 500,
    "meta sign": "a\u2581b \u2581 \u2581\u2581c".encode(),
    "capitals and operators": b"The NASA " + b"\xffABC\xff" + "McCoy\ue011A\ue012 \ue013b iP.ABC".encode(),
    "ligatures and full width": "\ufb01ne \uff21\uff22\uff23 \u00bd \u2460".encode(),
    "byte order mark": b"\xef\xbb\xbfhello",
    "control pieces": b"<s> </s> <unk> <0x0A> <pad>",
    "Japanese": "これは日本語のテキストです。".encode() * 5,
    "emoji": "🙂🙃👩‍👩‍👧 ok 🇩🇪".encode(),
    "binary with strings": b"\x7fELF\x02\x01\x01"
    + b"\x00" * 9
    + b"hello world and hello world again"
    + b"\x80\x00" * 50,
}


class Bigrams(Scorer):
    """Learns which token follows which; a stand-in for a model that learns as it goes."""

    def __init__(self, vocab_size: int, flaw: Callable[[int, Tensor], Tensor] | None = None) -> None:
        self.vocab_size, self.flaw = vocab_size, flaw

    def begin(self, first: int, targets: int) -> None:
        self.counts, self.last, self.position = torch.full((self.vocab_size, self.vocab_size), 0.01), first, 0

    def wanted(self) -> int:
        return 5

    def distributions(self, given: Tensor) -> Tensor:
        previous = torch.cat((torch.tensor([self.last]), given))
        rows = self.counts[previous]
        rows = (rows / rows.sum(dim=1, keepdim=True)).log()
        return rows if self.flaw is None else self.flaw(self.position, rows)

    def receive(self, recorded: Recorded) -> None:
        assert recorded.first == self.position
        for token in recorded.tokens.tolist():
            self.counts[self.last, token] += 1
            self.last, self.position = token, self.position + 1

    def state_digest(self) -> str:
        return hashlib.sha256(self.counts.numpy().tobytes()).hexdigest()


def other_tokenizer(path: Path, **options: object) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS.format(index) for index in range(300)]),
        model_writer=model,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=3,
        **options,
    )
    path.write_bytes(model.getvalue())
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pieces]:
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer((WORDS.format(index) for index in range(300)), 320, folder / "own.model")
    train_tokenizer((WORDS.format(index) for index in range(300)), 330, folder / "caseops.model", "caseops")
    return {
        "ours": Pieces(Tokenizer.load(folder / "own.model")),
        "caseops": Pieces(Tokenizer.load(folder / "caseops.model")),
        # Replaces characters, merges spaces, puts one in front; newlines are unknown.
        "no byte pieces": Pieces(other_tokenizer(folder / "unigram.model", vocab_size=60)),
        "byte pieces": Pieces(
            other_tokenizer(folder / "bytes.model", vocab_size=400, model_type="bpe", byte_fallback=True)
        ),
        "space behind": Pieces(
            other_tokenizer(
                folder / "suffix.model",
                vocab_size=60,
                treat_whitespace_as_suffix=True,
                user_defined_symbols=["<x> y"],
            )
        ),
        "across words": Pieces(
            other_tokenizer(
                folder / "across.model",
                vocab_size=400,
                model_type="bpe",
                byte_fallback=True,
                split_by_whitespace=False,
                normalization_rule_name="identity",
            )
        ),
    }


KINDS = ["ours", "caseops", "no byte pieces", "byte pieces", "space behind", "across words"]


def size_of(pieces: Pieces) -> int:
    return len(pieces._bytes)


# --- range coder


@given(st.data())
def test_symbols_and_numbers_come_back(data: st.DataObject) -> None:
    weights = np.array(data.draw(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=50)))
    table = from_weights(weights)
    symbols = data.draw(st.lists(st.integers(0, len(weights) - 1), max_size=120))
    widths = data.draw(st.lists(st.integers(0, 32), min_size=len(symbols), max_size=len(symbols)))
    numbers = [data.draw(st.sampled_from([0, (1 << bits) - 1, (1 << bits) // 2])) for bits in widths]
    encoder = Encoder()
    for symbol, bits, number in zip(symbols, widths, numbers, strict=True):
        encoder.symbol(symbol, table)
        encoder.number(number, bits)
    content = encoder.finish()
    decoder = Decoder(content)
    for symbol, bits, number in zip(symbols, widths, numbers, strict=True):
        assert decoder.symbol(None, table) == symbol
        assert decoder.number(None, bits) == number
    decoder.finish()
    bits = sum(32 - math.log2(table[symbol + 1] - table[symbol]) for symbol in symbols) + sum(widths)
    assert 8 * len(content) <= bits + 8 + len(symbols) * 2**-14


@given(st.binary(max_size=60))
def test_any_content_ends_soon_or_is_no_code(content: bytes) -> None:
    table, read = from_weights(np.array([0.5, 0.25, 0.25])), 0
    with pytest.raises(ValueError, match=r"ends too early|no code"):
        decoder = Decoder(content)
        while read <= 10 * len(content) + 200:
            assert 0 <= decoder.symbol(None, table) < 3
            read += 1


def test_something_behind_the_code_is_noticed() -> None:
    encoder = Encoder()
    encoder.number(12345, 32)
    decoder = Decoder(encoder.finish() + b"\x01" * 9)
    decoder.number(None, 32)
    with pytest.raises(ValueError, match="follows its end"):
        decoder.finish()


# --- tables


@pytest.mark.parametrize("size", [1, 2, 1024, 8192, 65536])
def test_tables_lose_next_to_nothing(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    rows = torch.log_softmax(4 * torch.randn(size, generator=generator), dim=0).numpy()
    table = frequencies(rows)
    assert table[0] == 0
    assert table[-1] == TOTAL
    assert np.diff(table).min() >= 1
    chances = np.exp(rows.astype(np.float64))
    lost = (chances * np.log2(chances / (np.diff(table) / TOTAL))).sum()
    assert abs(lost) < 1e-4


def test_tables_depend_on_nothing_but_the_numbers() -> None:
    rows = np.linspace(-30.0, 0.0, 1000, dtype=np.float32)
    assert (
        hashlib.sha256(frequencies(rows).astype("<i8").tobytes()).hexdigest().startswith("a18644b74ec4572f")
    )
    exact = np.linspace(0, 63.9, 5001)
    assert np.abs(power_of_two(exact) / np.exp2(-exact) - 1).max() < 2e-12


def test_tables_of_strange_rows() -> None:
    certain = np.full(10, -np.inf, dtype=np.float32)
    certain[3] = 0.0
    assert np.diff(frequencies(certain)).tolist() == [1, 1, 1, TOTAL - 9, 1, 1, 1, 1, 1, 1]
    assert np.array_equal(
        frequencies(np.full(4, 5.0, np.float32)), frequencies(np.full(4, -70.0, np.float32))
    )
    for wrong in ([0.0, np.nan], [0.0, np.inf], [-np.inf, -np.inf]):
        with pytest.raises(ValueError, match="no probability"):
            frequencies(np.array(wrong, dtype=np.float32))


# --- runs of bytes


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5))
def test_runs_come_back(runs: list[bytes]) -> None:
    encoder, writer, reader = Encoder(), ByteModel(), ByteModel()
    for run in runs:
        assert writer.run(encoder, run, len(run)) == run
    decoder = Decoder(encoder.finish())
    assert [reader.run(decoder, None, 300) for _ in runs] == runs


@pytest.mark.parametrize(
    ("run", "largest"),
    [
        (np.random.default_rng(1).bytes(1000), 1012),
        (np.random.default_rng(1).bytes(LONG + 1), LONG + 8),
        (np.random.default_rng(1).bytes(100_003), 100_012),
        (b"\x00" * 1000, 20),
        (b"\x00" * 1_000_000, 250),
        (bytes(range(256)) * 64, 400),
    ],
)
def test_runs_of_every_kind_are_short(run: bytes, largest: int) -> None:
    encoder = Encoder()
    ByteModel().run(encoder, run, len(run))
    content = encoder.finish()
    assert len(content) <= largest
    assert ByteModel().run(Decoder(content), None, len(run)) == run
    with pytest.raises(ValueError, match="longer than the file"):
        ByteModel().run(Decoder(content), None, len(run) - 1)


@given(st.binary(max_size=200))
def test_garbage_is_no_run_or_one_within_the_limit(content: bytes) -> None:
    try:
        assert len(ByteModel().run(Decoder(content), None, 20_000)) <= 20_000
    except ValueError as error:
        assert str(error)


# --- pieces


@given(content=ANY)
@example(content=b"")
def test_any_bytes_are_spelled_by_any_tokenizer(tokenizers: dict[str, Pieces], content: bytes) -> None:
    for pieces in tokenizers.values():
        spelling = pieces.spell(content)
        assert pieces.join(spelling) == content
        assert all(spelling.runs)
        assert int((spelling.tokens == pieces.unknown).sum()) == len(spelling.runs)
        assert len(spelling.tokens) <= len(content) + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_known_difficulties(tokenizers: dict[str, Pieces], kind: str, case: str) -> None:
    spelling = tokenizers[kind].spell(CASES[case])
    assert tokenizers[kind].join(spelling) == CASES[case]


def test_no_tokenizer_needs_the_last_resort(
    tokenizers: dict[str, Pieces], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Pieces, content: bytes) -> None:
        raise AssertionError(content)

    monkeypatch.setattr(Pieces, "as_run", forbidden)
    for pieces in tokenizers.values():
        for content in CASES.values():
            pieces.spell(content)


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_is_tokens_only(tokenizers: dict[str, Pieces], kind: str) -> None:
    pieces = tokenizers[kind]
    text = " ".join(WORDS.format(7) for _ in range(50)).encode()
    spelling = pieces.spell(text)
    assert not spelling.runs
    assert len(spelling.tokens) < len(text) / 1.2


def test_our_tokenizers_spell_as_they_encode(tokenizers: dict[str, Pieces], tmp_path: Path) -> None:
    train_tokenizer((WORDS.format(index) for index in range(300)), 320, tmp_path / "own.model")
    own = Tokenizer.load(tmp_path / "own.model")
    for text in ("hello world\n\n  and 17 naïve words", " ".join(WORDS.format(n) for n in range(2000))):
        assert tokenizers["ours"].spell(text.encode()).tokens.tolist() == own.encode(text)


def test_white_space_that_a_tokenizer_merges_is_kept_beside_its_tokens(tokenizers: dict[str, Pieces]) -> None:
    lines = b"hello world and\nhello world again,\n\nthis is\ta text  of\xc2\xa0some words; "
    lines += b"it has\r\nnumber 1 in it."
    for kind, pieces in tokenizers.items():
        spelling = pieces.spell(lines)
        assert pieces.join(spelling) == lines
        if kind not in ("ours", "caseops", "across words"):
            assert (
                spelling.tokens.tolist()
                == pieces.spell(b" ".join(lines.replace(b"\xc2\xa0", b" ").split())).tokens.tolist()
            )
            assert spelling.gaps is not None
            assert {b"\n", b"\n\n", b"\t", b"  ", b"\r\n", b" "} <= set(spelling.gaps)
        else:
            assert spelling.gaps is None
    # Words that the tokenizer cannot spell, beside gaps and at the beginning.
    for content in ("日本\n\n日本 hello\n", "\n 日本", " ", "\n", "日", "a\n\n"):
        for pieces in tokenizers.values():
            assert pieces.join(pieces.spell(content.encode())) == content.encode()


def test_gaps_come_back_and_cost_little() -> None:
    sentences = (
        [(b" ", ord("o"), ord("a"))] * 9 + [(b" ", ord("."), ord("T"))] * 2 + [(b"\n\n", ord("."), ord("T"))]
    )
    gaps = (
        sentences * 30 + [(b"\n \t", -1, -1), (b"", -1, ord("a")), (b"\n \t", ord("."), -1)] + sentences * 30
    )
    encoder, writer = Encoder(), GapModel(ByteModel())
    for gap, before, after in gaps:
        assert writer.code(encoder, gap, before, after, len(gap)) == gap
    content = encoder.finish()
    # Three bits for each of 60 paragraphs, and something for what is new.
    assert len(content) < 60
    decoder, reader = Decoder(content), GapModel(ByteModel())
    assert [reader.code(decoder, None, before, after, 3) for _, before, after in gaps] == [
        gap for gap, _, _ in gaps
    ]


def test_more_gaps_than_are_remembered() -> None:
    gaps = [b"\n" * (3 + index % 90) for index in range(200)]
    encoder, writer = Encoder(), GapModel(ByteModel())
    for gap in gaps:
        writer.code(encoder, gap, ord("."), -1, len(gap))
    decoder, reader = Decoder(encoder.finish()), GapModel(ByteModel())
    assert [reader.code(decoder, None, ord("."), -1, 100) for _ in gaps] == gaps


def test_long_stretches_become_runs(tokenizers: dict[str, Pieces]) -> None:
    for pieces in tokenizers.values():
        noise = np.random.default_rng(3).bytes(50_000)
        assert len(pieces.spell(noise).tokens) < 20
        between = b"hello world and hello world again " * 3
        spelling = pieces.spell(between + noise + between)
        assert max(map(len, spelling.runs)) > 49_000
        assert len(spelling.tokens) < 200


# --- tokens and runs in one code


def header_for(content: bytes, pieces: Pieces, coded: payload.Payload) -> Header:
    digest, kinds = hashlib.sha256(content).digest(), (False, coded.spaced, coded.folded)
    return Header(*kinds, 1, b"m" * 16, b"t" * 16, digest, len(content), coded.tokens, "somewhere")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_everything_comes_back(tokenizers: dict[str, Pieces], kind: str, case: str) -> None:
    pieces, content = tokenizers[kind], CASES[case]
    coded = encode(Bigrams(size_of(pieces)), pieces, content)
    again, found = decode(
        Bigrams(size_of(pieces)), pieces, header_for(content, pieces, coded), coded.content, "x.pgz"
    )
    assert found == content
    assert again == coded


@given(content=ANY)
def test_any_bytes_come_back(tokenizers: dict[str, Pieces], content: bytes) -> None:
    pieces = tokenizers["no byte pieces"]
    coded = encode(Bigrams(size_of(pieces)), pieces, content)
    header = header_for(content, pieces, coded)
    assert decode(Bigrams(size_of(pieces)), pieces, header, coded.content, "x.pgz")[1] == content


TEXT = " ".join(WORDS.format(n * n) for n in range(70)).encode()


def test_the_code_is_as_long_as_the_ledger_says(tokenizers: dict[str, Pieces]) -> None:
    pieces = tokenizers["ours"]
    done: list[tuple[int, int]] = []
    coded = encode(Bigrams(size_of(pieces)), pieces, TEXT, lambda *counts: done.append(counts))
    tokens = coded.tokens
    assert done[-1] == (tokens, tokens)
    marks = 16 * math.ceil(tokens / MARK)
    assert coded.token_bits == pytest.approx(coded.ledger_bits, rel=1e-4)
    assert 8 * len(coded.content) == pytest.approx(coded.token_bits + marks, abs=16)


def test_the_ledger_says_what_strict_grading_says(tokenizers: dict[str, Pieces]) -> None:
    pieces = tokenizers["ours"]
    coded = encode(Bigrams(size_of(pieces)), pieces, TEXT[:2000])
    scorer, nats = Bigrams(size_of(pieces)), 0.0
    scorer.begin(pieces.first, coded.tokens)
    for place, token in enumerate(pieces.spell(TEXT[:2000]).tokens.tolist()):
        nats -= float(scorer.distributions(torch.zeros(0, dtype=torch.int64))[0, token])
        scorer.receive(Recorded(place, np.array([token], dtype=np.uint16)))
    assert coded.ledger_bits == pytest.approx(nats / math.log(2), rel=1e-9)


@pytest.mark.parametrize("place", [0, 1500, 2900])
def test_other_arithmetic_is_noticed_at_the_next_mark(tokenizers: dict[str, Pieces], place: int) -> None:
    pieces = tokenizers["ours"]

    def flaw(position: int, rows: Tensor) -> Tensor:
        # The last bits of one entry of one distribution.
        if position == place:
            rows = rows.clone()
            rows[0, 5] *= 1 + 1e-6
        return rows

    coded = encode(Bigrams(size_of(pieces)), pieces, TEXT)
    header = header_for(TEXT, pieces, coded)
    start = place // MARK * MARK
    with pytest.raises(
        PgolfError, match=rf"x.pgz: .*between tokens {start:,} and .* of .*decompress it where"
    ) as error:
        decode(Bigrams(size_of(pieces), flaw), pieces, header, coded.content, "x.pgz")
    (end,) = re.findall(r"and ([\d,]+) of", str(error.value))
    assert place < int(end.replace(",", "")) <= min(start + MARK, header.tokens)


@given(st.data())
def test_a_hostile_payload_is_refused_or_stays_within_its_size(
    tokenizers: dict[str, Pieces], data: st.DataObject
) -> None:
    pieces = tokenizers[data.draw(st.sampled_from(KINDS))]
    content = data.draw(st.binary(max_size=80))
    size, count = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 3000))
    header = Header(False, False, data.draw(st.booleans()), 1, b"", b"", b"", size, count, "")
    try:
        found = decode(Bigrams(size_of(pieces)), pieces, header, content, "x.pgz")[1]
    except PgolfError as error:
        assert str(error).startswith("x.pgz: cannot be decoded")
    else:
        assert len(found) <= header.size


def test_a_scorer_that_is_too_certain_falls_back_to_a_run(
    tokenizers: dict[str, Pieces], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "plausible", lambda size, packed: False)
    pieces = tokenizers["ours"]
    coded = encode(Bigrams(size_of(pieces)), pieces, b"hello world " * 500)
    assert (coded.tokens, coded.run_bytes) == (1, 6000)
    header = header_for(b"hello world " * 500, pieces, coded)
    assert decode(Bigrams(size_of(pieces)), pieces, header, coded.content, "x")[1] == b"hello world " * 500


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.full((1, 400), torch.nan), "target 0.*no probability"),
        (torch.zeros(2, 400), r"shape \(2, 400\)"),
    ],
)
def test_a_scorer_that_fails(tokenizers: dict[str, Pieces], rows: Tensor, words: str) -> None:
    pieces = tokenizers["ours"]
    scorer = Bigrams(size_of(pieces), lambda position, _: rows[:, : size_of(pieces)])
    with pytest.raises(PgolfError, match=words.replace("400", str(size_of(pieces)))):
        encode(scorer, pieces, b"hello")


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), fixed_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


# --- the file


HEADER = Header(
    True, False, True, 3, b"m" * 16, b"t" * 16, hashlib.sha256(b"x").digest(), 1234, 300, "torch 9, AVX9"
)
FILE = encode_file(HEADER, b"some payload")


def test_a_file_has_what_was_put_in() -> None:
    assert decode_file(FILE, "x") == (HEADER, b"some payload")
    empty = replace(HEADER, size=0, tokens=0, ttt=False, spaced=True)
    assert decode_file(encode_file(empty, b""), "x") == (empty, b"")
    assert len(FILE) - len(b"some payload") < 125
    remembering = encode_file(replace(HEADER, memory=True), b"some payload")
    assert decode_file(remembering, "x")[0].memory
    # What was written before there was a memory is read as ever: its flag was 0.
    assert remembering[len(MAGIC)] == FILE[len(MAGIC)] + 8 and FILE[len(MAGIC)] < 8


def test_every_change_of_one_byte_is_noticed() -> None:
    for place in range(len(FILE)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(FILE)
            damaged[place] ^= change
            with pytest.raises(PgolfError, match=r"^x\.pgz: "):
                decode_file(bytes(damaged), "x.pgz")


def test_every_cut_and_every_addition_is_noticed() -> None:
    for length in range(len(FILE)):
        with pytest.raises(PgolfError, match=r"cut short|not a file"):
            decode_file(FILE[:length], "x.pgz")
    with pytest.raises(PgolfError, match="follows its end"):
        decode_file(FILE + b"\x00", "x.pgz")


def test_another_version_is_named() -> None:
    with pytest.raises(PgolfError, match="a format that this version of pgolf does not know"):
        decode_file(MAGIC[:-1] + b"\x02" + FILE[len(MAGIC) :], "x.pgz")
    with pytest.raises(PgolfError, match="not a file that `pgolf compress` wrote"):
        decode_file(b"PK\x03\x04" + FILE, "x.pgz")


@pytest.mark.parametrize(
    "lie",
    [{"size": 1 << 50, "tokens": 1 << 50}, {"size": 1 << 21}, {"tokens": 1236}, {"size": 0}, {"tokens": 0}],
)
def test_a_wellformed_lie_is_refused(lie: dict[str, int]) -> None:
    with pytest.raises(PgolfError, match="make no sense"):
        decode_file(encode_file(replace(HEADER, **lie), b"some payload"), "x.pgz")


@given(st.binary(max_size=200))
@example(b"\x00\x01" + bytes(64) + b"\xff" * 20)
def test_any_header_with_a_right_checksum_is_read_or_refused(body: bytes) -> None:
    text = MAGIC + body
    try:
        decode_file(text + short_digest(text), "x.pgz")
    except PgolfError as error:
        assert str(error).startswith("x.pgz: ")


def test_the_limit_of_plausibility() -> None:
    assert container.plausible(1 << 20, 0)
    assert not container.plausible((1 << 20) + 1, 0)
    assert container.plausible(1 << 30, 1 << 14)
