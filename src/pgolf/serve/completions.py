"""The completions of OpenAI's interface (``/v1/completions``): what can be asked for, and the answer's parts.

Source: the reference of the endpoint, https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.generate.model import Model, TextStream, TextWriter
from pgolf.generate.sampling import Sampling, drawn_seed

# What may be named, but only with the value that changes nothing.
_NEUTRAL: dict[str, Any] = {"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0}
_NEUTRAL |= {"suffix": "", "logit_bias": {}}
_MOST_LOGPROBS = 5
_MOST_STOPS = 4
Fields = TypeVar("Fields", bound=BaseModel)


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None


class Asked(BaseModel):
    """A request; ``top_k`` and ``memory`` are ours."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    prompt: str | list[int] | list[str] | list[list[int]] = ""
    max_tokens: int = Field(16, ge=0)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] = []
    logprobs: int | None = Field(None, ge=0, le=_MOST_LOGPROBS)
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    memory: bool = False
    user: str | None = None


FIELDS = {*Asked.model_fields, *_NEUTRAL}


def asked(body: object) -> Asked:
    """A request from its JSON; a ``PgolfError`` that names the first field that is wrong."""
    if not isinstance(body, dict):
        raise PgolfError("the body must be a JSON object")
    given = {key: value for key, value in body.items() if value is not None}
    for key, neutral in _NEUTRAL.items():
        value = given.pop(key, neutral)
        if value != neutral or isinstance(value, bool):  # True is 1 to Python.
            raise PgolfError(f"{key}: only {neutral!r} is served; leave it out")
    return checked(Asked, given)


def checked(kind: type[Fields], given: object) -> Fields:
    """JSON values as fields; a ``PgolfError`` that names the first one that is wrong."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        # Of a value that may be of several kinds, what follows the field is their names.
        places = first["loc"] if first["type"] == "extra_forbidden" else first["loc"][:1]
        raise PgolfError(f"{'.'.join(map(str, places)) or 'body'}: {first['msg']}") from error


class Completion:
    """One answer.

    Args:
        model: writes it.
        name: of the model, which the request may name.
        request: what was asked for.
        most: tokens that may be asked for.

    Raises:
        PgolfError: something is asked for that is not served; what is wrong with the prompt comes up in the
            first step.
    """

    _stream: TextStream

    def __init__(self, model: Model, name: str, request: Asked, most: int) -> None:
        if request.model not in (None, name):
            raise PgolfError(f"model: there is no {request.model!r} here, only {name!r}")
        if request.max_tokens > most:
            raise PgolfError(f"max_tokens: at most {most:,} here; `pgolf serve --max-tokens` sets it")
        if not request.max_tokens and not request.echo:
            raise PgolfError("max_tokens: 0 is only for echo=true; ask for 1 or more")
        stop = [request.stop] if isinstance(request.stop, str) else request.stop
        if len(stop) > _MOST_STOPS:
            raise PgolfError(f"stop: at most {_MOST_STOPS} texts")
        if not all(stop):
            raise PgolfError("stop: an empty text would end every answer before it begins; leave it out")
        seed = drawn_seed() if request.seed is None else request.seed
        self._sampling = Sampling(request.temperature, request.top_k, request.top_p, seed)
        self._model, self.request, self._stop, self._prompt = model, request, stop, _only(request.prompt)
        self._head: dict[str, Any] = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
        self._head |= {"created": int(time.time()), "model": name}

    def steps(self) -> Iterator[dict[str, Any] | None]:
        """Chunks as they are streamed, with None for work that brought no text yet; the last has the end."""
        request, length = self.request, 0
        how = max(request.max_tokens, 1), self._sampling, self._stop, False, request.memory
        try:
            self._stream = stream = TextStream(self._model, self._prompt, *how)
        except PgolfError as error:
            raise PgolfError(f"prompt: {error}") from error
        waiting = _Logprobs(self._model.tokenizer, request.logprobs)
        if request.echo:
            writer = TextWriter(self._model.pieces, (), self._model.pieces.spaced)
            for token, logits in stream.prompt_logits() if request.logprobs is not None else ():
                waiting.add(token, logits, length)
                length += len(writer.add(token))
                yield None
            prompt = self._prompt if isinstance(self._prompt, str) else self._model.decode(self._prompt)
            yield self._chunk(prompt, waiting.taken())
            length = len(prompt)
        text = ""
        for drawn, given, text in stream.steps if request.max_tokens else ():
            if drawn is None or given is None:
                break  # The last text comes with the end.
            waiting.add(drawn, given, length)
            length += len(text)
            yield self._chunk(text, waiting.taken()) if text else None
        yield self._chunk(text, waiting.taken(), "stop" if stream.ended in ("document", "stop") else "length")

    def usage(self) -> dict[str, int]:
        """Tokens of prompt (without BOS) and answer so far."""
        prompt, answer = len(self._stream.read) - 1, len(self._stream.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def last_chunk(self) -> dict[str, Any]:
        """What a stream ends with where the request's ``stream_options`` ask for usage."""
        return {**self._head, "choices": [], "usage": self.usage()}

    def whole(self, chunks: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """The answer that is not streamed, from all chunks."""
        choices = [chunk["choices"][0] for chunk in chunks]
        found = {**choices[-1], "text": "".join(choice["text"] for choice in choices)}
        for key, last in (found["logprobs"] or {}).items():
            if last is not None:
                found["logprobs"][key] = [each for choice in choices for each in choice["logprobs"][key]]
        return {**self._head, "choices": [found], "usage": self.usage()}

    def _chunk(self, text: str, logprobs: dict[str, Any] | None, ended: str | None = None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": ended}
        return {**self._head, "choices": [choice]}


def _only(prompt: str | list[int] | list[str] | list[list[int]]) -> str | list[int]:
    """The prompt of a request, which may stand in a list alone."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise PgolfError("prompt: one at a time; send a request for each")
        return prompt[0]
    return prompt  # type: ignore[return-value]


class _Logprobs:
    """What the tokens of an answer cost, in OpenAI's form, chunk by chunk; None where nobody asked for it.

    Natural logarithms of the model's own probabilities, whatever temperature and top_p it is drawn with.
    """

    def __init__(self, tokenizer: Tokenizer, likeliest: int | None) -> None:
        self._tokenizer, self._likeliest = tokenizer, likeliest
        self._found: list[tuple[str, float, dict[str, float], int]] = []

    def add(self, token: int, logits: Tensor, offset: int) -> None:
        """Note a token, what it was drawn from, and where its text begins."""
        if self._likeliest is None:
            return
        row = logits.double().log_softmax(0)
        top: dict[str, float] = {}
        for each in [*row.topk(min(self._likeliest, len(row))).indices.tolist(), token]:
            top.setdefault(self._name(each), float(row[each]))
        name, price = self._name(token), float(row[token])
        self._found.append((name, price, top, offset))

    def taken(self) -> dict[str, Any] | None:
        """What was noted since the last time."""
        if self._likeliest is None:
            return None
        found, self._found = self._found, []
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        columns = {name: [entry[place] for entry in found] for place, name in enumerate(names)}
        return columns if self._likeliest else columns | {"top_logprobs": None}

    def _name(self, token: int) -> str:
        part = self._tokenizer.parts[token]
        if part is None:
            return str(self._tokenizer.pieces[token])
        try:
            return part.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{value:02x}" for value in part)
