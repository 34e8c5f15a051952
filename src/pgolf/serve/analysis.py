"""What a text costs the model, token by token and in every way that the artifact has, and what comes next.

The grader of every evaluation hands the text out, so that what learns does so from scored tokens alone, and
the bits are those of ``Model.score``; with a memory nearly, for its tables have room for longer texts.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.evaluate.build import build_scorer, without_memory
from pgolf.evaluate.evaluations import usual_mode
from pgolf.evaluate.ledger import Ledger
from pgolf.evaluate.protocol import Scorer, grade
from pgolf.generate.model import Model, TextWriter
from pgolf.report.text_analysis import overheard, pieces_of

Ways = Mapping[str, Callable[[], Scorer]]
"""How a text can be scored: a fresh scorer of "model", "ttt" and "memory", in this order."""
_NEXT = 10
_NO_TOKENS = torch.zeros(0, dtype=torch.int64)


def ways_of(model: Model, mode: str | None = None) -> Ways:
    """What the model's recipe has, in mode "sliding" the model alone; None is the mode it is made for."""
    alone, network = without_memory(model.recipe), model.network
    ways: dict[str, Callable[[], Scorer]] = {"model": partial(build_scorer, network, alone, "sliding")}
    if (mode or usual_mode(model.recipe)) == "ttt":
        learning = partial(build_scorer, network, alone, "ttt")
        if usual_mode(alone) == "ttt":
            ways["ttt"] = learning
        if model.recipe.memory.enabled:
            ways["memory"] = lambda: model.with_memory(learning())
    return ways


def analyse(model: Model, ways: Ways, text: str) -> Iterator[dict[str, Any] | None]:
    """What each token of a text costs; a step for each way, and last the result, as JSON values.

    "tokens": spans of whole characters with "end", how many tokens end there, and "bits" in each way. "bits":
    sums. "bytes": of the text, as the tokenizer normalises it, and packed by ``xz -9e``. "next": see
    ``following``.
    """
    tokens, counts = _read(model, text)
    costs, rows = [], []
    for make in ways.values():
        nats, row = _score(make(), tokens, counts, len(counts))
        costs.append(nats / np.log(2))
        rows.append(row)
        yield None
    content = text.encode()
    yield {
        "ways": list(ways),
        "tokens": list(_spans(model, tokens, costs)),
        "bits": [float(bits.sum()) for bits in costs],
        "bytes": {
            "text": len(content),
            "normalised": int(counts.sum(dtype=np.int64)),
            "xz": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
        },
        "next": _likeliest(model.tokenizer, rows),
    }


def following(model: Model, ways: Ways, text: str, place: int) -> Iterator[dict[str, Any] | None]:
    """What may come after the first ``place`` tokens of a text; the rest of it stays unseen.

    A step for each way, and last {"next": the 10 likeliest of every way}, likeliest in the last way first;
    each with its "text" and its probabilities "p".
    """
    tokens, counts = _read(model, text)
    if place > len(counts):
        raise PgolfError(f"at {place}: the text has {len(counts)} tokens")
    rows = []
    for make in ways.values():
        rows.append(_score(make(), tokens[: place + 1], counts[:place], len(counts))[1])
        yield None
    yield {"next": _likeliest(model.tokenizer, rows)}


def shown(tokenizer: Tokenizer) -> list[str]:
    """The name of every token: its text, or what the tokenizer calls it where that is no whole text."""
    texts = [piece.text.decode(errors="replace") for piece in pieces_of(tokenizer)]
    names = map(str, tokenizer.pieces)
    return [name if not text or "\ufffd" in text else text for text, name in zip(texts, names, strict=True)]


def _read(model: Model, text: str) -> tuple[Tokens, NDArray[np.uint16]]:
    """BOS and the tokens of a text (n + 1,), and their bytes (n,)."""
    tokens = np.array(model.encode(text), np.uint16)
    return tokens, model.tokenizer.byte_table.count_stream(tokens)


def _score(
    scorer: Scorer, tokens: Tokens, counts: NDArray[np.uint16], announced: int
) -> tuple[NDArray[np.float64], Tensor]:
    """What targets cost in nats (n,), and the logarithms of probabilities (V,) of what comes after them."""
    heard = overheard(scorer, max(announced, 1))
    grade(scorer, tokens, counts, Ledger())
    nats = torch.cat(heard).numpy() if heard else np.zeros(0)
    return nats, scorer.distributions(_NO_TOKENS)[0].double()


def _spans(model: Model, tokens: Tokens, costs: list[NDArray[np.float64]]) -> Iterator[dict[str, Any]]:
    pieces = model.pieces
    writer = TextWriter(pieces, (), pieces.spaced)
    bits, count = [0.0] * len(costs), len(tokens) - 1
    for place, token in enumerate(tokens[1:].tolist(), 1):
        bits = [before + float(way[place - 1]) for before, way in zip(bits, costs, strict=True)]
        text = writer.add(token) + (writer.finish() if place == count else "")
        # A character that is spelled in bytes, and the operators before a letter, belong together.
        if text or place == count:
            yield {"text": text, "end": place, "bits": bits}
            bits = [0.0] * len(costs)


def _likeliest(tokenizer: Tokenizer, rows: list[Tensor]) -> list[dict[str, Any]]:
    found = {int(token) for row in rows for token in row.topk(min(_NEXT, len(row))).indices}
    names, ordered = shown(tokenizer), sorted(found, key=lambda token: -float(rows[-1][token]))
    return [{"text": names[token], "p": [float(row[token].exp()) for row in rows]} for token in ordered]
