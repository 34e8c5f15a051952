"""Tokenizers of other kinds than SentencePiece, made on the spot. Whoever imports this is skipped where their
packages are not installed.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Threads would be in the way of tests that fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
tiktoken = pytest.importorskip("tiktoken", reason="the package tiktoken is not installed")
GPT_2 = pytest.importorskip("tiktoken_ext.openai_public").r50k_pat_str
"""The pattern by which tiktoken splits text for GPT-2."""

LINES = [
    "the cat sat on the mat, and the cat was 12 years old.",
    "hello world  two spaces; it's number {} of many words",
    "naïve 日本 7 ½ \ufb01ne e\u0301 🙂 I'll say \ufffd",
]
TEXT = [line.format(number) for number in range(60) for line in LINES]
_BYTES = [f"<0x{value:02X}>" for value in range(256)]


def _trained(**parts: Any) -> Any:
    """A Hugging Face tokenizer of some parts, trained on the lines; of model and trainer by their names."""
    model, options = parts.pop("model")
    tokenizer = tokenizers.Tokenizer(getattr(tokenizers.models, model)(**parts.pop("given", {})))
    for name, part in parts.items():
        setattr(tokenizer, name, part(tokenizers))
    trainer = {"BPE": "BpeTrainer", "Unigram": "UnigramTrainer", "WordPiece": "WordPieceTrainer"}[model]
    options = {"vocab_size": 330, "show_progress": False, **options}
    tokenizer.train_from_iterator(TEXT, getattr(tokenizers.trainers, trainer)(**options))
    return tokenizer


def byte_level(prefix: bool = False, special: tuple[str, ...] = ("<|endoftext|>",)) -> str:
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        model=("BPE", {"special_tokens": list(special), "initial_alphabet": alphabet}),
        pre_tokenizer=lambda t: t.pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        decoder=lambda t: t.decoders.ByteLevel(),
        post_processor=lambda t: t.processors.ByteLevel(),
    ).to_str()


def _with_byte_pieces(tokenizer: Any) -> str:
    tree = json.loads(tokenizer.to_str())
    vocabulary = tree["model"]["vocab"]
    vocabulary |= {name: len(vocabulary) + value for value, name in enumerate(_BYTES)}
    tree["model"]["byte_fallback"] = True
    return json.dumps(tree)


def metaspace() -> str:
    """BPE with byte pieces: a space in front, nothing else changed."""
    return _with_byte_pieces(
        _trained(
            model=("BPE", {"vocab_size": 120, "special_tokens": ["<unk>", "<s>"], "limit_alphabet": 40}),
            given={"unk_token": "<unk>", "byte_fallback": True},
            pre_tokenizer=lambda t: t.pre_tokenizers.Metaspace(),
            decoder=lambda t: t.decoders.Sequence(
                [t.decoders.ByteFallback(), t.decoders.Metaspace(), t.decoders.Fuse()]
            ),
        )
    )


def llama() -> str:
    """Spaces are marked by the normalizer, and there is no pre-tokenizer."""
    return _with_byte_pieces(
        _trained(
            model=("BPE", {"vocab_size": 120, "special_tokens": ["<unk>", "<s>"], "limit_alphabet": 40}),
            given={"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True},
            normalizer=lambda t: t.normalizers.Sequence(
                [t.normalizers.Prepend("\u2581"), t.normalizers.Replace(" ", "\u2581")]
            ),
            decoder=lambda t: t.decoders.Sequence(
                [
                    t.decoders.Replace("\u2581", " "),
                    t.decoders.ByteFallback(),
                    t.decoders.Fuse(),
                    t.decoders.Strip(" ", 1, 0),
                ]
            ),
        )
    )


def unigram(split: bool = False) -> str:
    """NFKC, and no byte pieces; ``split``: white space becomes one space."""
    return _trained(
        model=(
            "Unigram",
            {"vocab_size": 80, "special_tokens": ["<unk>", "<s>", "</s>"], "unk_token": "<unk>"},
        ),
        normalizer=lambda t: t.normalizers.NFKC(),
        pre_tokenizer=lambda t: t.pre_tokenizers.Sequence(
            [*([t.pre_tokenizers.WhitespaceSplit()] if split else []), t.pre_tokenizers.Metaspace()]
        ),
        decoder=lambda t: t.decoders.Metaspace(),
        post_processor=lambda t: t.processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 2)]
        ),
    ).to_str()


def wordpiece() -> str:
    """Lower case, and no white space at all."""
    return _trained(
        model=("WordPiece", {"vocab_size": 150, "special_tokens": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]}),
        given={"unk_token": "[UNK]"},
        normalizer=lambda t: t.normalizers.BertNormalizer(),
        pre_tokenizer=lambda t: t.pre_tokenizers.BertPreTokenizer(),
        decoder=lambda t: t.decoders.WordPiece(),
        post_processor=lambda t: t.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    ).to_str()


def word_ends() -> str:
    """BPE that marks ends of words, and has no token that begins a document."""
    return _trained(
        model=("BPE", {"vocab_size": 150, "special_tokens": ["<unk>"], "end_of_word_suffix": "</w>"}),
        given={"unk_token": "<unk>", "end_of_word_suffix": "</w>"},
        pre_tokenizer=lambda t: t.pre_tokenizers.WhitespaceSplit(),
        decoder=lambda t: t.decoders.BPEDecoder(suffix="</w>"),
    ).to_str()


def piece_ranks() -> dict[bytes, int]:
    merged = [*(b"th", b"the", b" th", b" the", b"at", b" c", b" cat", b"  ", b"\xe6\x97", b"\xe6\x97\xa5")]
    merged += [b"12", b"\xf0\x9f", b"\xef\xbf", b"\xef\xbf\xbd", b"\n\n"]
    pieces = [*(bytes((value,)) for value in reversed(range(256))), *merged]
    return {piece: rank for rank, piece in enumerate(pieces)}


def ranks() -> str:
    """What tiktoken itself reads."""
    return "".join(f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in piece_ranks().items())


def encoding() -> str:
    """A pattern and special tokens of its own, and gaps between the tokens."""
    found = {base64.b64encode(piece).decode(): 2 * rank for piece, rank in piece_ranks().items()}
    special = {"<|user|>": 1, "<|bos|>": 600}
    return json.dumps(
        {"pat_str": r"\p{N}{1,2}| ?\p{L}+|\s+|.", "mergeable_ranks": found, "special_tokens": special}
    )


LOSSLESS: dict[str, Callable[[], str]] = {
    "byte level": byte_level,
    "byte level without beginning": lambda: byte_level(special=()),
    "ranks": ranks,
    "encoding": encoding,
}
KINDS: dict[str, Callable[[], str]] = {
    **LOSSLESS,
    "byte level with prefix": lambda: byte_level(prefix=True),
    "metaspace": metaspace,
    "llama": llama,
    "unigram": unigram,
    "unigram of words": lambda: unigram(split=True),
    "wordpiece": wordpiece,
    "word ends": word_ends,
}


def write(folder: Path, kind: str) -> Path:
    """The file of a kind, in a folder."""
    path = folder / f"{kind.replace(' ', '_')}.tok"
    path.write_text(KINDS[kind](), encoding="utf-8")
    return path
