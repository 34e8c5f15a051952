"""Hugging Face tokenizers (``tokenizer.json``) as a kind of tokenizer; see ``backend.py``.

How a piece is spelled depends on the steps of the file: in the characters that stand for bytes (ByteLevel),
with another character for a space (Metaspace, or Replace), as ``<0x41>`` for a byte (byte fallback), with a
mark where it continues a word (WordPiece) or ends one. What the steps take away, as a WordPiece's do with
white space, no piece stands for. What special tokens are called in a text is text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Names by which special tokens begin a document; the first that there is counts.
_BEGINNINGS = (
    *("<s>", "<bos>", "<|bos|>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "[CLS]"),
    "<|endoftext|>",  # Of GPT-2, whose documents begin with it as well.
)
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# In front of the names of special tokens, so that no text has them.
_HIDDEN = "\U0010ffff" * 8
# What cannot be encoded is noticed when a file is opened.
_PROBE = "a 1"
# Decoders that put pieces side by side.
_PLAIN = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}


def beginning(special: Mapping[str, int], size: int) -> int:
    """The one of the special tokens that begins a document; else a new one, after the ``size`` that exist."""
    return next((special[name] for name in _BEGINNINGS if name in special), size)


class TokenizerJson:
    """A tokenizer by its JSON; a ``ValueError`` if it is none, an ``ImportError`` without tokenizers."""

    operators: Sequence[int] = ()

    def __init__(self, given: Mapping[str, Any]) -> None:
        import tokenizers

        if "merges" in given["model"] and given["model"].get("continuing_subword_prefix"):
            # One that does not fit to the merges ends the whole process.
            raise ValueError("BPE with a mark where words continue cannot be used")
        self._open = tokenizers.Tokenizer.from_str
        try:
            # In the library's own form, whatever version wrote it.
            tree = json.loads(self._open(json.dumps(given)).to_str())
            added = {token["content"]: token for token in tree["added_tokens"]}
            self._tree = tree = _without_extras(tree)
            self._tokenizer = self._open(json.dumps(tree))
            self.encode(_PROBE)
        except Exception as error:  # The library has no other class of errors.
            raise ValueError(error) from error
        model, self._steps = tree["model"], [*_steps(tree["normalizer"]), *_steps(tree["pre_tokenizer"])]
        self._bytes_of = _byte_characters() if any(s["type"] == "ByteLevel" for s in self._steps) else None
        self.space = next((found for step in self._steps if (found := _space(step))), " ")
        ends = {step["type"] for step in _steps(tree["decoder"])}
        self.decodes = bool(ends) and ends <= _PLAIN
        vocabulary = self._tokenizer.get_vocab()
        special = {name: token["id"] for name, token in added.items() if token["special"]}
        size = max(vocabulary.values()) + 1
        self.bos_id = beginning(special, size)
        self.parts: list[bytes | None] = [None] * max(size, self.bos_id + 1)
        self.pieces, self.is_byte = [""] * len(self.parts), [False] * len(self.parts)
        unknown = model.get("unk_id") if "unk_id" in model else vocabulary.get(model.get("unk_token"))
        self.unknown_id = -1 if unknown is None else int(unknown)
        if self.unknown_id < 0 and (model["type"] != "BPE" or model["unk_token"] is not None):
            raise ValueError("no piece for the unknown")
        mark, end = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
        for name, token in vocabulary.items():
            if name.startswith(_HIDDEN) or token == self.unknown_id:
                continue
            if name in added:
                part = name.encode()
            elif model.get("byte_fallback") and (byte := _BYTE_PIECE.fullmatch(name)):
                part, self.is_byte[token] = bytes((int(byte[1], 16),)), True
            else:
                part = self._spelled(name.removeprefix(mark).removesuffix(end))
            word = "\u2581" if mark and not name.startswith(mark) else ""
            self.parts[token] = part
            self.pieces[token] = word + part.decode(errors="replace").replace(" ", "\u2581")

    def _spelled(self, text: str) -> bytes:
        """The bytes of a text that has passed all steps but the model."""
        if self._bytes_of is None:
            return text.replace(self.space, " ").encode()
        known = self._bytes_of
        return b"".join(bytes((known[c],)) if c in known else c.encode() for c in text)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens))

    def normalize(self, text: str) -> str:
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        if self._tokenizer.pre_tokenizer is not None:
            text = "".join(word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text))
        return text if self._bytes_of is None else self._spelled(text).decode(errors="replace")

    @functools.cached_property
    def _literal(self) -> Any:
        """The tokenizer without normalisation, which puts no space in front."""
        normal, before = _steps(self._tree["normalizer"]), _steps(self._tree["pre_tokenizer"])
        normal = [step for step in normal if step["type"] == "ByteLevel" or _space(step)]
        if any(step["type"] == "Metaspace" for step in before):  # It puts spaces back that were taken away.
            before = [step for step in before if step["type"] != "WhitespaceSplit"]
        never = {"add_prefix_space": False, "prepend_scheme": "never"}
        before = [{key: never.get(key, value) for key, value in step.items()} for step in before]
        steps = {
            "normalizer": {"type": "Sequence", "normalizers": normal},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": before},
        }
        return self._open(json.dumps(self._tree | steps))

    def spell(self, text: str) -> list[int | bytes]:
        encoding = self._literal.encode(text)
        parts = [self.parts[token] or b"" for token in encoding.ids]
        plain = [self.parts[token] is not None and not self.is_byte[token] for token in encoding.ids]
        found = [token if own else part for token, part, own in zip(encoding.ids, parts, plain, strict=True)]
        if b"".join(parts) == text.encode():
            return found
        units: list[int | bytes] = []
        done = 0
        for unit, part, (begin, end) in zip(found, parts, encoding.offsets, strict=True):
            if begin >= done:  # Else it is of a character that is spelled already.
                covered = text[begin:end].encode()
                units += [text[done:begin].encode(), unit if part == covered else covered]
                done = end
        units.append(text[done:].encode())
        return [unit for unit in units if unit != b""]


def _without_extras(tree: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without what is cut off, put around a text or left to chance, and with hidden names."""
    model = dict(tree["model"])
    unknown = model.get("unk_token")
    hidden = {token["content"] for token in tree["added_tokens"] if token["special"]} | {unknown}

    def name(of: str) -> str:
        return _HIDDEN + of if of in hidden else of

    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {name(piece): token for piece, token in vocabulary.items()}
    else:
        model["vocab"] = [[name(piece), score] for piece, score in vocabulary]
    if unknown is not None:
        model["unk_token"] = name(unknown)
    if "dropout" in model:
        model["dropout"] = None
    added = [{**token, "content": name(token["content"])} for token in tree["added_tokens"]]
    without = dict.fromkeys(("truncation", "padding", "post_processor"))
    return {**tree, **without, "model": model, "added_tokens": added}


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The single steps of a normalizer, pre-tokenizer or decoder, in order."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    (inner,) = (value for key, value in step.items() if key != "type")
    return [found for each in inner for found in _steps(each)]


def _space(step: dict[str, Any]) -> str | None:
    """The character that a step puts in the place of a space."""
    if step["type"] == "Replace" and step["pattern"] == {"String": " "}:
        return str(step["content"])
    return str(step["replacement"]) if step["type"] == "Metaspace" else None


def _byte_characters() -> dict[str, int]:
    """The characters of bytes in ByteLevel's pieces: themselves if visible, else from U+0100 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in visible]
    return {chr(value): value for value in visible} | {chr(256 + n): value for n, value in enumerate(others)}
