"""What general compressors make of the validation text, alone and after the training text: a yardstick.

A model has read the training text before it is scored, so a compressor may do so too: what the validation
text costs it is the size of both texts together less that of the training text alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.codec.compare import Way, general_compressors, ppmd_of
from pgolf.data.dataset import Dataset
from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.runs.folder import saved_recipe
from pgolf.runs.pipeline import training_text
from pgolf.runtime.run_files import read_result

_PPMD_ORDERS = (6, 12, 16)
_OTHERS = ("xz -9e", "bzip2 -9")
# Guesses of the length that fits into a cap, and the part of it that they aim at.
_GUESSES, _NEAR = 12, 0.998


def yardstick(
    run: Path,
    data: Path | None = None,
    tokenizer: Path | None = None,
    cap: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """What ``measure`` finds for the text of a finished run, with the run's scores in bits per byte."""
    recipe, result = saved_recipe(run), read_result(run) or {}
    if recipe is None or "pack" not in result:
        raise PgolfError(f"{run}: no run with scores; make one with `pgolf run`")
    dataset = training_text(run, recipe, data, tokenizer)
    scores = {name: entry["val_bpb"] for name, entry in result["evaluations"].items()}
    measured = measure(dataset, cap, recipe.evaluation_length, progress)
    return {"recipe": recipe.name, "scores": scores, "artifact": result["pack"]["total_bytes"], **measured}


def measure(
    dataset: Dataset, cap: int | None, length: int = 1, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Bits per byte of the scored text for PPMd of several orders, xz and bzip2.

    Documents are separated by a newline, whose cost counts as a model's for the token that begins a document
    does; the bytes are those of the documents.

    Args:
        dataset: both splits.
        cap: the training text is cut to what the compressor itself packs into so many bytes; None: all of it.
        length: targets of a window; the scored text is cut to whole ones.
        progress: told (compressors done, all).

    Returns:
        JSON values: bytes of the scored text; for each compressor bits per byte alone and primed, bytes of
        the training text that it has read, and what it packs these into. PgolfError where there is no PPMd.
    """
    stream = dataset.train_stream()
    training = text_of(dataset.tokenizer, stream.take(0, stream.total))
    validation = dataset.validation_text(length)
    scored = text_of(dataset.tokenizer, validation.tokens)
    size = int(validation.byte_counts.sum(dtype=np.int64))
    ways = [ppmd_of([order]) for order in _PPMD_ORDERS]
    ways += [way for way in general_compressors() if way.compressor in _OTHERS]
    rows = []
    for done, way in enumerate(ways):
        if progress is not None:
            progress(done, len(ways))
        text, packed = _worth(way, training, cap)
        both = _packed(way, text + b"\n" + scored)
        rows.append(
            {
                "compressor": way.compressor,
                "note": way.note,
                "alone_bpb": 8 * _packed(way, scored) / size,
                "primed_bpb": 8 * (both - packed) / size,
                "training_bytes": len(text),
                "training_packed": packed,
            }
        )
    return {"bench": "yardstick", "data": str(dataset.folder), "bytes": size, "cap": cap, "rows": rows}


def text_of(tokenizer: Tokenizer, tokens: Tokens) -> bytes:
    """The documents that tokens (n,) stand for, a newline between them."""
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.bos_id))
    known = (part[(part != tokenizer.bos_id) & (part != tokenizer.unknown_id)] for part in documents)
    return b"\n".join(tokenizer.decode(part.tolist()).encode() for part in known if len(part))


def _packed(way: Way, content: bytes) -> int:
    if way.compress is None:
        raise PgolfError(f"bench yardstick: {way.compressor} is {way.note}")
    return len(way.compress(content, lambda done, total: None))


def _worth(way: Way, text: bytes, cap: int | None) -> tuple[bytes, int]:
    """The first part of a text that packs into ``cap`` bytes, nearly the longest, and its packed size."""
    size = _packed(way, text)
    if cap is None or size <= cap:
        return text, size
    fits, over = (0, 0), (len(text), size)
    for _ in range(_GUESSES):
        share = (_NEAR * cap - fits[1]) / (over[1] - fits[1])
        length = fits[0] + int(share * (over[0] - fits[0]))
        size = _packed(way, text[:length])
        if size > cap:
            over = length, size
        else:
            fits = length, size
        if fits[1] > (2 * _NEAR - 1) * cap:
            break
    return text[: fits[0]], fits[1]
