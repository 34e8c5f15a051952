"""Text from a model: the cache against full passes, drawing, whole characters, windows, mistakes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from pgolf.codec.pieces import Pieces
from pgolf.compress.weights import save_weights
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError
from pgolf.generate.model import Model, TextWriter, sample_texts
from pgolf.generate.sampling import MemoryReader, Reader, Sampling, window_start
from pgolf.memory.memory import Memory
from pgolf.memory.stored import write_start
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import load_recipe
from tests.unit.stand_ins import LENGTH, random_tokens, small_model, small_recipe

WINDOW = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of ours, one that puts a space in front, and a model for each."""
    folder = tmp_path_factory.mktemp("model")
    words = [
        f"hello world and hello world again, this is a text of some words; it has number {n}."
        for n in range(300)
    ]
    train_tokenizer(iter(words), 320, folder / "tokenizer.model")
    (folder / "words.txt").write_text("\n".join(words))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "words.txt"),
        model_prefix=str(folder / "spaced"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    settings = [f"train.sequence_length={WINDOW}", f"train.batch_tokens={WINDOW}", "evaluate.stride=6"]
    recipe = load_recipe("tiny", [*settings, "model.vocab_size=320"])
    for name in ("tokenizer", "spaced"):
        digest = Tokenizer.load(folder / f"{name}.model").digest
        save_weights(folder / f"{name}.safetensors", small_model(recipe).state_dict(), recipe, digest)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model(folder / "tokenizer.safetensors")


def full_pass(network: GPT, tokens: list[int], length: int) -> torch.Tensor:
    """The logits after some tokens, without a cache."""
    with torch.no_grad():
        read = torch.tensor([tokens[window_start(len(tokens), length) :]])
        return network.project(network.hidden(read, length)[0, -1])


def test_logits_with_the_cache_are_those_without() -> None:
    network = small_model(small_recipe()).eval()
    tokens = random_tokens(3 * LENGTH).tolist()
    reader = Reader(network, LENGTH)
    for count in range(4, len(tokens)):
        new = tokens[:4] if count == 4 else [tokens[count - 1]]
        expected = full_pass(network, tokens[:count], LENGTH)
        assert torch.allclose(reader.next_logits(new), expected, atol=1e-4, rtol=1e-4)
    at_once = Reader(network, LENGTH).next_logits(tokens[:-1])
    assert torch.allclose(at_once, expected, atol=1e-4, rtol=1e-4)


def test_a_full_window_gives_way_to_its_newest_half() -> None:
    for length in (1, 2, 3, 8, 9):
        starts = [window_start(count, length) for count in range(1, 5 * length)]
        assert starts[:length] == [0] * length
        for count, (before, after) in enumerate(itertools.pairwise(starts), start=2):
            kept = count - after
            assert 1 <= kept <= length
            if after != before:
                assert count - 1 - before == length
                assert kept == max(length // 2, 1)


def test_temperature_zero_is_the_likeliest_token_of_every_full_pass(model: Model) -> None:
    stream = model.stream("hello", max_tokens=3 * WINDOW, temperature=0, past_document=True)
    text = "".join(stream)
    tokens = model.encode("hello")
    network = model.network
    for token in stream.tokens:
        assert token == int(full_pass(network, tokens, WINDOW).argmax())
        tokens.append(token)
    assert len(stream.tokens) == 3 * WINDOW and stream.ended == "tokens"
    assert text == model.generate("hello", max_tokens=3 * WINDOW, temperature=0, past_document=True, seed=5)


def test_a_seed_decides_the_text(model: Model) -> None:
    first = [model.generate("hello", max_tokens=20, temperature=2, seed=seed) for seed in range(4)]
    assert first == [model.generate("hello", max_tokens=20, temperature=2, seed=seed) for seed in range(4)]
    assert len(set(first)) == 4
    random_state = torch.get_rng_state()
    assert model.generate(max_tokens=10, temperature=2) != model.generate(
        max_tokens=10, temperature=2, seed=1
    )
    assert torch.equal(torch.get_rng_state(), random_state)
    assert sample_texts(model, 3, 10, seed=4) == [
        model.generate(max_tokens=10, seed=seed) for seed in (4, 5, 6)
    ]


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05])
    generator = torch.Generator().manual_seed(0)

    def shares(**settings: float | int) -> list[float]:
        sampling = Sampling(**{"temperature": 1.0, **settings})  # type: ignore[arg-type]
        drawn = [sampling.draw(probabilities.log(), generator) for _ in range(1000)]
        return [drawn.count(token) / 1000 for token in range(5)]

    assert shares() == pytest.approx(probabilities.tolist(), abs=0.05)
    assert shares(top_k=2) == pytest.approx([0, 0.625, 0, 0.375, 0], abs=0.05)
    assert shares(top_p=0.8) == pytest.approx([0, 0.625, 0, 0.375, 0], abs=0.05)
    assert shares(top_p=0.81) == pytest.approx([1 / 9, 5 / 9, 0, 3 / 9, 0], abs=0.05)
    assert shares(top_k=99, top_p=1e-9) == [0, 1, 0, 0, 0]
    flat = (probabilities**0.5 / (probabilities**0.5).sum()).tolist()
    assert shares(temperature=2) == pytest.approx(flat, abs=0.05)
    for temperature in (0, 1e-300):
        assert shares(temperature=temperature) == [0, 1, 0, 0, 0]
    with pytest.raises(PgolfError, match="no numbers"):
        Sampling().draw(torch.tensor([1.0, float("nan")]), generator)


def written(
    pieces: Pieces, tokens: list[int], stop: tuple[str, ...] = (), drop_space: bool = False
) -> list[str]:
    """What a writer says after each token, and at the end."""
    writer = TextWriter(pieces, stop, drop_space)
    return [*(writer.add(token) for token in tokens), writer.finish()]


def test_only_whole_characters_come(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    pieces = Pieces(tokenizer)
    text = "hello \N{SNOWMAN}\N{GRINNING FACE} w\u00f6rld"
    tokens = tokenizer.encode(text)
    parts = written(pieces, tokens)
    assert "".join(parts) == text and "\ufffd" not in "".join(parts)
    assert parts.count("\N{GRINNING FACE}") == 1
    cut = tokenizer.encode("a\N{SNOWMAN}")[:-1]
    assert written(pieces, cut) == ["a", "", "", "\ufffd"]
    assert "".join(written(pieces, [*cut, *tokenizer.encode("b")])) == "a\ufffdb"
    assert "".join(written(pieces, [pieces.unknown])) == "\ufffd"
    assert (
        "".join(written(pieces, [*tokenizer.encode("a"), pieces.first, *tokenizer.encode("b")])) == "a\n\nb"
    )


def test_stop_strings_end_the_text_before_them(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    pieces = Pieces(tokenizer)
    tokens = tokenizer.encode("hello world xyxyz, and more")
    assert "".join(written(pieces, tokens, ("xyz",))) == "hello world xy"
    assert "".join(written(pieces, tokens, ("nothing", "orl"))) == "hello w"
    assert "".join(written(pieces, tokens, ("more!",))) == "hello world xyxyz, and more"
    # What may become a stop string is not said before it is clear.
    parts = written(pieces, tokenizer.encode("xy") + tokenizer.encode("a"), ("xyz",))
    assert parts[:-2] == [""] * (len(parts) - 2) and "".join(parts) == "xya"


@pytest.mark.parametrize("name", ["tokenizer", "spaced"])
@pytest.mark.parametrize("prompt", ["", "hello", "hello ", "hello wor"])
def test_prompt_and_continuation_fit_together(
    folder: Path, name: str, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(folder / f"{name}.safetensors", folder / f"{name}.model")
    assert model.pieces.spaced == (name == "spaced")
    text = "hello world again"
    tokens = {
        "": "hello world again",
        "hello": " world again",
        "hello ": "world again",
        "hello wor": "ld again",
    }
    # A tokenizer that puts a space in front does so here too, as if the text were split after a word.
    drawn = model.encode(tokens[prompt])[1:]
    if name == "spaced" and prompt == "hello wor":
        drawn = (
            drawn[1:] if model.tokenizer.parts[drawn[0]] == b" " else model.encode("x" + tokens[prompt])[2:]
        )
    following = iter(drawn)
    monkeypatch.setattr(Sampling, "draw", lambda *_: next(following))
    assert prompt + model.generate(prompt, max_tokens=len(drawn)) == text


def test_the_parts_add_up_and_tell_why_they_end(model: Model) -> None:
    stream = model.stream("hello", max_tokens=40, temperature=1.5, seed=1, past_document=True)
    assert stream.ended is None and stream.tokens == []
    parts = list(stream)
    assert all(parts)
    assert "".join(parts) == model.generate(
        "hello", max_tokens=40, temperature=1.5, seed=1, past_document=True
    )
    stop = "".join(parts)[5:7]
    stopped = model.stream("hello", max_tokens=40, temperature=1.5, seed=1, past_document=True, stop=stop)
    text = "".join(stopped)
    assert stopped.ended == "stop" and stop not in text and "".join(parts).startswith(text)
    assert len(stopped.tokens) < 40


def test_a_document_ends_at_bos(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model.encode("")[0]
    ids = iter([*model.tokenizer.encode("ab"), first, *model.tokenizer.encode("cd")] * 2)
    monkeypatch.setattr(Sampling, "draw", lambda *_: next(ids))
    count = len(model.tokenizer.encode("ab")) + 1 + len(model.tokenizer.encode("cd"))
    on = model.stream(max_tokens=count, past_document=True)
    assert "".join(on) == "ab\n\ncd" and on.ended == "tokens"
    ending = model.stream(max_tokens=count)
    assert "".join(ending) == "ab" and ending.ended == "document"


def test_a_prompt_longer_than_the_window(model: Model) -> None:
    prompt = "hello world and hello world again, " * 10
    assert len(model.encode(prompt)) > 2 * model.window
    assert model.generate(prompt, max_tokens=10, seed=1) == model.generate(prompt, max_tokens=10, seed=1)


def test_mistakes_are_one_line(folder: Path, model: Model) -> None:
    for settings, message in (
        ({"temperature": -1.0}, "temperature -1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_p": 0.0}, "top_p 0"),
        ({"top_p": 1.01}, "top_p 1.01"),
        ({"top_k": 0}, "top_k 0"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1 << 64}, "below 2"),
        ({"max_tokens": 0}, "0 tokens asked for"),
        ({"stop": ["x", ""]}, "empty stop string"),
        ({"prompt": "\udcff"}, "no valid Unicode"),
    ):
        with pytest.raises(PgolfError, match=message):
            model.stream(**settings)  # type: ignore[arg-type]
    spaced = Model(folder / "spaced.safetensors", folder / "spaced.model")
    with pytest.raises(PgolfError, match="prompt has no tokens"):
        spaced.generate("   ")
    with pytest.raises(PgolfError, match=r"spaced\.model: is not the tokenizer of"):
        Model(folder / "tokenizer.safetensors", folder / "spaced.model")


PHRASE = "it has number 7, hello again. "


def test_with_a_memory_the_text_goes_on_as_it_began(model: Model) -> None:
    prompt = (PHRASE * 4).rstrip()
    settings = {"max_tokens": 20, "temperature": 0, "past_document": True}
    with_it = model.generate(prompt, memory=True, **settings)  # type: ignore[arg-type]
    assert with_it.startswith(" " + PHRASE.rstrip())
    assert with_it == model.generate(prompt, memory=True, **settings)  # type: ignore[arg-type]
    # A model with random weights knows no words.
    assert not model.generate(prompt, **settings).startswith(" it has")  # type: ignore[arg-type]
    drawn = [model.generate(prompt, max_tokens=20, temperature=2, memory=True, seed=s) for s in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_model_and_memory_are_mixed_at_every_token(model: Model) -> None:
    tokens = model.encode("hello world and hello world")
    memory = Memory(model.recipe.memory, model._weights.memory_start(model.tokenizer), len(tokens))
    row, nothing = None, np.zeros(0, np.uint16)
    for count, token in enumerate(tokens, 1):
        memory.receive(np.array([token], np.uint16), row)
        row = full_pass(model.network, tokens[:count], WINDOW).softmax(0)[None].numpy()
    expected = memory.distributions(nothing, row)[0]
    reader = MemoryReader(Reader(model.network, WINDOW), model._memory(len(tokens)))
    found = torch.cat([reader.next_logits(tokens[:5])[None], reader.next_logits(tokens[5:])[None]])[1]
    assert found.numpy() == pytest.approx(expected, abs=1e-3)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_a_memory_knows_the_stored_text_and_reads_it_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(folder / "tokenizer.safetensors")
    stored = np.array(model.encode(PHRASE * 4), np.uint16)
    start = replace(model._weights.memory_start(model.tokenizer), stored=stored, trust=(0.75, 0.35))
    section = write_start(model.recipe.memory, start)
    monkeypatch.setattr(model, "_weights", replace(model._weights, memory=section))
    read: list[int] = []
    code = Memory._code

    def noting(self: Memory, tokens: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
        read.append(len(tokens))
        return code(self, tokens, probabilities)

    monkeypatch.setattr(Memory, "_code", noting)
    texts = [model.generate("it has", max_tokens=8, temperature=0, memory=True) for _ in range(2)]
    assert texts[0] == texts[1] and texts[0].startswith(" number 7, hello")
    assert read.count(len(stored)) == 1


def test_a_text_that_says_everything_twice_costs_less_with_a_memory(model: Model) -> None:
    text = PHRASE * 8
    alone, mixed = model.score(text, "ttt"), model.score(text, memory=True)
    assert (mixed.mode, mixed.targets, mixed.bytes) == ("ttt", alone.targets, alone.bytes)
    assert mixed.val_bpb < 0.6 * alone.val_bpb
    assert model.score(text).mode == "sliding"
    with pytest.raises(PgolfError, match=r'mode sliding: a memory learns from the text; .* mode "ttt"'):
        model.score(text, "sliding", memory=True)
