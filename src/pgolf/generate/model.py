"""A trained model as an object, as ``pgolf.load`` returns it: it writes text, and knows what one costs."""

from __future__ import annotations

import codecs
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pgolf.codec.pieces import Pieces
from pgolf.compress.weights import load_weights
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluate import EvalResult, evaluate
from pgolf.evaluate.protocol import Scorer
from pgolf.generate.sampling import MemoryReader, Reader, Sampling, drawn_seed
from pgolf.model.gpt import parameter_count
from pgolf.runtime.run_files import scored_file
from pgolf.runtime.wording import in_python

if TYPE_CHECKING:
    from pgolf.memory.memory import Memory

# Tokens.
_SMALLEST_ROOM = 4096
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
Ending = Literal["tokens", "document", "stop"]


class Model:
    """A model with its tokenizer, on the CPU; where a path is wanted, it is its file's.

    ``path`` is an artifact, weights file or run folder, and its tokenizer's file by default the one beside
    it, or of the data it was trained on. What is not usable, or does not belong together, is a
    ``PgolfError``.
    """

    def __init__(self, path: Path, tokenizer: Path | None = None) -> None:
        self._weights = load_weights(scored_file(path))
        self.network = self._weights.model()
        """The torch module; ``logits`` is its output for tokens."""
        self.recipe = self._weights.recipe
        """What it was made by."""
        self.source = self._weights.source
        """The file it was read from."""
        self.window = self.recipe.evaluation_length
        """The most tokens it can look back on."""
        self._read: tuple[int, Memory] | None = None
        if tokenizer is not None:
            self.__dict__["tokenizer"] = self._weights.tokenizer(tokenizer)

    @functools.cached_property
    def parameters(self) -> int:
        """Number of weights."""
        return parameter_count(self.network)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """What it reads and writes in; a ``PgolfError`` if it is not where it is looked for."""
        with in_python():
            return self._weights.tokenizer()

    def __fspath__(self) -> str:
        return os.fspath(self.source)

    def __repr__(self) -> str:
        return f"<pgolf.Model {self.recipe.name}, {self.parameters:,} parameters, from {self.source}>"

    def generate(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        past_document: bool = False,
        memory: bool = False,
    ) -> str:
        """Write on from a prompt; ``prompt + generate(prompt)`` is the whole text.

        Args:
            prompt: how the text begins; empty: a new document.
            max_tokens: most tokens to draw.
            temperature: 0 always takes the likeliest token; 1 draws from the model's own distribution.
            top_k: draw from so many of the likeliest tokens.
            top_p: draw from the likeliest tokens that have this probability together.
            seed: the same one gives the same text on the same machine; by default a new one each time, which
                ``stream(...).seed`` says.
            stop: one or several strings; the text ends before the first that comes up.
            past_document: go on when the model ends the document; the next one follows after a blank line.
            memory: mix what followed the same words before, in the prompt, in the text so far and in what
                the artifact stores, with the model's predictions at every token.

        Raises:
            PgolfError: a value is out of range, the prompt has no tokens, or the tokenizer is not known.
        """
        how: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k}
        how |= {"top_p": top_p, "seed": seed, "stop": stop, "past_document": past_document, "memory": memory}
        return "".join(self.stream(prompt, **how))

    def stream(
        self,
        prompt: str | Sequence[int] = "",
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        past_document: bool = False,
        memory: bool = False,
    ) -> TextStream:
        """As ``generate``, but part by part, as the text comes; together the parts are what that returns.

        The prompt may be tokens too, with BOS or without.
        """
        sampling = Sampling(temperature, top_k, top_p, drawn_seed() if seed is None else seed)
        return TextStream(self, prompt, max_tokens, sampling, stop, past_document, memory)

    def loss(self, text: str) -> float:
        """What a text costs the model, in nats per token, in sliding windows; see ``score``."""
        return self.score(text).val_loss

    def bits_per_byte(self, text: str) -> float:
        """What a text costs the model, in bits per byte, in sliding windows; see ``score``."""
        return self.score(text).val_bpb

    def score(self, text: str, mode: str | None = None, *, memory: bool = False) -> EvalResult:
        """Score a text as one document, by the same grader as ``pgolf.evaluate``.

        Args:
            text: bytes count as the tokenizer normalises it.
            mode: standard, sliding (the default) or ttt; the model is left as it was.
            memory: mix with the recipe's memory, also where the recipe does not enable it; it learns from
                the text, so ttt is the mode for it, and then the default.

        Raises:
            PgolfError: the text has no tokens, the mode is unknown, or none for a memory.
        """
        mode = mode or ("ttt" if memory else "sliding")
        if memory and mode != "ttt":
            raise PgolfError(f'mode {mode}: a memory learns from the text; score with it in mode "ttt"')
        tokens = np.array(self.encode(text), dtype=np.uint16)
        if len(tokens) < 2:
            raise PgolfError("nothing to score: the text has no tokens")
        counts = self.tokenizer.byte_table.count_stream(tokens)
        enabled = self.recipe.memory.model_copy(update={"enabled": True})
        recipe = self.recipe.model_copy(update={"memory": enabled}) if memory else self.recipe
        start = self._weights.memory_start(self.tokenizer) if memory else None
        return evaluate(self.network, recipe, tokens, counts, mode, memory=start)

    def encode(self, text: str) -> list[int]:
        """BOS and the tokens of a text; a ``PgolfError`` if it has surrogates, which are no characters."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place = f"character {error.start + 1} is a surrogate"
            raise PgolfError(f"the text is no valid Unicode: {place}") from error
        return [self.pieces.first, *self.tokenizer.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; BOS is none of it. A token outside the vocabulary is a ``PgolfError``."""
        self._check(tokens)
        return self.tokenizer.decode(tokens)

    def _check(self, tokens: Sequence[int]) -> None:
        size = self.recipe.model.vocab_size
        if bad := [token for token in tokens if not 0 <= token < size]:
            raise PgolfError(f"token {bad[0]}: the vocabulary is 0 to {size - 1}")

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """What may follow each of some tokens: (T, V) float32, for 1 to ``window`` tokens.

        Another number of tokens, or one outside the vocabulary, is a ``PgolfError``.
        """
        if not 1 <= len(tokens) <= self.window:
            raise PgolfError(f"{len(tokens)} tokens: the model reads 1 to {self.window} at once")
        self._check(tokens)
        hidden = self.network.hidden(torch.tensor([list(tokens)]), self.window)
        return self.network.project(hidden)[0]

    @functools.cached_property
    def pieces(self) -> Pieces:
        """The tokenizer's pieces as bytes; BOS is its ``first``."""
        return Pieces(self.tokenizer)

    def with_memory(self, base: Scorer) -> Scorer:
        """A scorer with the recipe's memory beside it; what the artifact stores is read once for all."""
        from pgolf.evaluate.memory_scorer import MemoryScorer  # Brings a compiler.

        read = self._memory

        class Remembering(MemoryScorer):
            def begin(self, first: int, targets: int) -> None:
                base.begin(first, targets)
                self.memory, self._rows = read(targets + 1), None
                self.memory.receive(np.array([first], np.uint16))

        return Remembering(base, self.recipe.memory, self._weights.memory_start(self.tokenizer))

    def _memory(self, tokens: int) -> Memory:
        """A memory of its own for a text of so many tokens, which has read what the artifact stores."""
        from pgolf.memory.memory import Memory  # Brings a compiler.

        # Texts of about one length share what was read of the stored text, which takes seconds.
        room = max(_SMALLEST_ROOM, 1 << tokens.bit_length())
        if self._read is None or self._read[0] != room:
            start = self._weights.memory_start(self.tokenizer)
            self._read = room, Memory(self.recipe.memory, start, room)
        return self._read[1].copy()


class Step(NamedTuple):
    """One token of a text that is written."""

    token: int | None
    """What was drawn; None of the last step, which only has text that has been waiting."""
    logits: Tensor | None
    """What it was drawn from (V,) float32."""
    text: str
    """What is settled by it, whole characters; often empty."""


class TextStream(Iterator[str]):
    """Text of a model, part by part: whole characters, as soon as they are settled; see ``Model.stream``."""

    def __init__(
        self,
        model: Model,
        prompt: str | Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        stop: str | Sequence[str],
        past_document: bool,
        memory: bool = False,
    ) -> None:
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if max_tokens < 1:
            raise PgolfError(f"{max_tokens} tokens asked for: must be 1 or more")
        if not all(stop):
            raise PgolfError("an empty stop string would end every text before it begins; leave it out")
        self.tokens: list[int] = []
        """What was drawn so far."""
        self.seed = sampling.seed
        """Of the random numbers."""
        self.ended: Ending | None = None
        """Why it is over: enough tokens, the end of a document, or a stop string; None before."""
        pieces = model.pieces
        if isinstance(prompt, str):
            read = model.encode(prompt)
            if prompt and len(read) == 1:
                raise PgolfError(
                    "the prompt has no tokens; give it some text, or leave it empty for a new document"
                )
        else:
            model._check(prompt)
            read = [*([] if list(prompt[:1]) == [pieces.first] else [pieces.first]), *prompt]
        spell = pieces.reader()
        spelled = b"".join(spell(token) or b"" for token in read[1:])
        drop_space = pieces.spaced
        if len(read) > 1:
            drop_space = isinstance(prompt, str) and _repeats_space(prompt, spelled)
        self.read = tuple(read)
        """BOS and the tokens of the prompt."""
        self._writer = TextWriter(pieces, stop, drop_space, spell)
        self._reader: Reader | MemoryReader = Reader(model.network, model.window)
        if memory:
            self._reader = MemoryReader(self._reader, model._memory(len(read) + max_tokens))
        self._sampling = sampling
        self._unread = read
        self.steps = self._run(max_tokens, None if past_document else pieces.first)
        """The same, token by token; take either these or the parts."""

    def __next__(self) -> str:
        return next(step.text for step in self.steps if step.text)

    def prompt_logits(self) -> Iterator[tuple[int, Tensor]]:
        """Each token of the prompt after BOS with what it was predicted by (V,) float32.

        To be taken before anything else; the prompt is then read token by token.
        """
        while len(self._unread) > 1:
            token, *self._unread = self._unread
            yield self._unread[0], self._reader.next_logits([token])

    def _run(self, count: int, end: int | None) -> Iterator[Step]:
        writer, generator = self._writer, torch.Generator().manual_seed(self._sampling.seed)
        read = self._unread
        ended: Ending = "tokens"
        for _ in range(count):
            logits = self._reader.next_logits(read)
            token = self._sampling.draw(logits, generator)
            self.tokens.append(token)
            read = [token]
            if token == end:
                ended = "document"
                yield Step(token, logits, "")
                break
            yield Step(token, logits, writer.add(token))
            if writer.stopped:
                break
        text = writer.finish()
        self.ended = "stop" if writer.stopped else ended
        yield Step(None, None, text)


def _repeats_space(prompt: str, spelled: bytes) -> bool:
    """Whether a space at the beginning of what follows a prompt is not of the text.

    A tokenizer may leave out white space at the end of a prompt.
    """
    return prompt[-1].isspace() and not spelled[-1:].isspace()


class TextWriter:
    """Turns tokens into text.

    Bytes that are no UTF-8, and the unknown piece, become U+FFFD. A new document becomes a blank line.

    Args:
        pieces: of the tokenizer.
        stop: text ends before the first of these that comes up; none may be empty.
        drop_space: whether a space that the text begins with is left out.
        spell: a reader of the pieces that has read the prompt; default a new one.
    """

    def __init__(
        self,
        pieces: Pieces,
        stop: Sequence[str],
        drop_space: bool,
        spell: Callable[[int], bytes | None] | None = None,
    ) -> None:
        self._pieces, self._stop, self._drop_space = pieces, tuple(stop), drop_space
        self._spell = spell or pieces.reader()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = ""
        self.stopped = False
        """Whether a stop string came up; there is no more text then."""

    def add(self, token: int) -> str:
        """The text that is settled by one more token, often empty."""
        content = self._content(token)
        if content and self._drop_space:
            content, self._drop_space = content.removeprefix(b" "), False
        if token == self._pieces.first:
            self._drop_space = self._pieces.spaced
        return self._settled(self._decoder.decode(content))

    def finish(self) -> str:
        """The text that has been waiting, when no more tokens come."""
        text = self._settled(self._decoder.decode(b"", final=True))
        return text if self.stopped else text + self._waiting

    def _content(self, token: int) -> bytes:
        content = self._spell(token)
        if token == self._pieces.first:
            return b"\n\n"
        if token == self._pieces.unknown:
            return _REPLACEMENT
        return content or b""

    def _settled(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._waiting + text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        settled = len(text) - held
        self._waiting = text[settled:]
        return text[:settled]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that are the beginning of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


def sample_texts(model: Model, count: int, tokens: int, seed: int = 0) -> list[str]:
    """``count`` beginnings of documents of the model's own, of at most ``tokens`` tokens each, for reports.

    They are what ``generate`` gives with the seeds ``seed``, ``seed + 1`` and so on.
    """
    return [model.generate(max_tokens=tokens, seed=seed + index) for index in range(count)]
