"""Tokens per byte with and without CaseOps, and with its operators on the other side of the space.

    python benchmarks/tokenizers.py --text part.jsonl --counted general.val.jsonl.zst --sizes 512 1024

Tokenizers are trained on ``--text``; the documents of each file of ``--counted`` are encoded by them. A JSON
object for each tokenizer: tokens per byte of each file, bytes of the model file as it is and by LZMA.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from pgolf.data import caseops, vocabulary
from pgolf.data.operators import OPERATORS, Transform
from pgolf.data.readers import Reading, read_documents
from pgolf.data.tokenizer import Tokenizer

_BEHIND = re.compile(f"([{''.join(OPERATORS)}]) ")


def behind(text: str) -> str:
    """``caseops.lowered`` with every operator behind the space, as the field's own CaseOps has it."""
    return _BEHIND.sub(r" \1", _lowered(text))


_lowered = caseops.lowered
WAYS: dict[str, tuple[Transform, Callable[[str], str]]] = {
    "plain": ("none", _lowered),
    "caseops": ("caseops", _lowered),
    "behind": ("caseops", behind),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--counted", type=Path, nargs="+", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 8192])
    options = parser.parse_args()
    training = list(read_documents(options.text, Reading()))
    counted = {path.name: list(read_documents(path, Reading())) for path in options.counted}
    for size in options.sizes:
        for way, (transform, lowered) in WAYS.items():
            with (
                tempfile.TemporaryDirectory() as folder,
                mock.patch.object(vocabulary, "lowered", lowered),
                mock.patch.object(caseops, "lowered", lowered),
            ):
                path = Path(folder) / "tokenizer.model"
                vocabulary.train_tokenizer(training, size, path, transform)
                model, tokenizer = path.read_bytes(), Tokenizer.load(path)
                found: dict[str, object] = {"pieces": size, "way": way, "bytes": len(model)}
                found["lzma"] = len(lzma.compress(model, preset=9 | lzma.PRESET_EXTREME))
                for name, documents in counted.items():
                    tokens = sum(len(tokenizer.encode(text)) for text in documents)
                    found[name] = tokens / sum(len(text.encode()) for text in documents)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
