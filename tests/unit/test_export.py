"""Exported models: transformers and onnxruntime compute what pgolf computes, whatever a model is made of."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgolf.compress.weights import save_weights
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError
from pgolf.export.folder import export
from pgolf.generate.model import Model
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import Recipe, load_recipe
from tests.unit.stand_ins import write_tokenizer
from tests.unit.test_features import EXAMPLES
from tests.unit.test_model import PLAIN, TINY, randomised

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
pytestmark = pytest.mark.usefixtures("code_of_folders")

TEXTS = ["word7 is number 21", "", "  The <s> CAT's naïve <|endoftext|>\n\n日本 iPhone "]
# Features of all slots together.
MANY = [
    *("model.bigram.buckets=32", "model.bigram.width=8", "model.value_embedding.layers=[1, 2]"),
    *("model.value_embedding.width=4", "model.xsa_last=2", "model.value_residual=true"),
    *("model.gated_attention=true", "model.skip=gated", "model.smear=true", "model.window_smear.width=4"),
    *("model.loop.last=1", "model.loop.passes=2", "model.loop.pass_vectors=true"),
    *("model.lanes.mode=two", "model.lanes.start=2", "model.asymmetric_softcap=true"),
    *("model.rope_train_length=8", "model.document_mask=true", "model.mlp=star_relu"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder / "tokenizer.model")


@contextlib.contextmanager
def without_pgolf() -> Iterator[None]:
    hidden = {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] == "pgolf"}
    sys.modules["pgolf"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["pgolf"]
        sys.modules.update(hidden)


def recipe_with(*settings: str) -> Recipe:
    sizes = ["model.vocab_size=300", "evaluate.sequence_length=16", "evaluate.stride=8"]
    return load_recipe("seed_456", [*TINY, *PLAIN, *sizes, *settings])


def exported(folder: Path, tokenizer: Tokenizer, recipe: Recipe, form: str = "hf") -> GPT:
    """The network whose export is in ``folder / "out"``."""
    network = randomised(recipe.model).eval()
    save_weights(folder / "model.safetensors", network.state_dict(), recipe, tokenizer.digest)
    export(folder / "model.safetensors", folder / "out", form, tokenizer.path)
    return network


def opened(folder: Path) -> Any:
    with without_pgolf():
        return transformers.AutoModelForCausalLM.from_pretrained(folder / "out", trust_remote_code=True)


def tokens(*shape: int) -> torch.Tensor:
    drawn = torch.randint(300, shape, generator=torch.Generator().manual_seed(0))
    drawn[:, 5::7] = 1  # Documents begin there.
    return drawn


@pytest.mark.parametrize("name", [*EXAMPLES, "many"])
def test_transformers_computes_the_same_logits(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    network = exported(tmp_path, tokenizer, recipe_with(*EXAMPLES.get(name, MANY)))
    theirs, given = opened(tmp_path), tokens(2, 16)
    with torch.inference_mode():
        for length in (16, 9, 1):
            ours = network.project(network.hidden(given[:, :length], 16))
            logits = theirs(given[:, :length]).logits
            assert float((logits - ours).abs().max()) <= 1e-5
            last = theirs(given[:, :length], logits_to_keep=1).logits
            assert float((last - ours[:, -1:]).abs().max()) <= 1e-5


def test_padded_rows_are_read_without_their_padding_and_labels_give_the_loss(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    exported(tmp_path, tokenizer, recipe_with(*MANY))
    theirs, given = opened(tmp_path), tokens(3, 9)
    mask = torch.ones_like(given)
    mask[0, :3] = mask[1, 7:] = 0
    with torch.inference_mode():
        logits = theirs(given, attention_mask=mask).logits
        for row, kept in enumerate((slice(3, 9), slice(0, 7), slice(0, 9))):
            assert torch.equal(logits[row, kept], theirs(given[row : row + 1, kept]).logits[0])
        with pytest.raises(ValueError, match="17 tokens: the model reads at most 16"):
            theirs(tokens(1, 17))
    found = theirs(given, labels=given)
    wanted = torch.nn.functional.cross_entropy(found.logits[:, :-1].flatten(0, 1), given[:, 1:].flatten())
    assert torch.equal(found.loss, wanted)
    found.loss.backward()
    assert all(parameter.grad is not None for parameter in theirs.network.layers.parameters())


def test_it_writes_what_pgolf_writes_past_the_window_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    recipe = recipe_with(*MANY)
    exported(tmp_path, tokenizer, recipe)
    stream = Model(tmp_path / "model.safetensors", tokenizer.path).stream(
        "word7", max_tokens=40, temperature=0, past_document=True
    )
    list(stream)
    with without_pgolf():
        own = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    given = own("word7", return_tensors="pt")
    written = opened(tmp_path).generate(**given, max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert written[0, given.input_ids.size(1) :].tolist() == stream.tokens
    # A batch whose shorter row is padded at its beginning.
    several = own(["word7", "word7 is number"], return_tensors="pt", padding=True)
    together = opened(tmp_path).generate(**several, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert together[0, -4:].tolist() == stream.tokens[:4]


def test_it_can_be_saved_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    exported(tmp_path, tokenizer, recipe_with())
    theirs = opened(tmp_path)
    with without_pgolf():
        own = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
        (tmp_path / "again").mkdir()
        theirs.save_pretrained(tmp_path / "again" / "out")
        own.save_pretrained(tmp_path / "again" / "out")
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again/out", trust_remote_code=True)
    assert again(TEXTS[0]).input_ids == own(TEXTS[0]).input_ids
    with torch.inference_mode():
        assert torch.equal(opened(tmp_path / "again")(tokens(1, 9)).logits, theirs(tokens(1, 9)).logits)


KINDS = ("sentencepiece", "caseops", "byte level", "encoding", "wordpiece")


@pytest.mark.parametrize("kind", KINDS)
def test_its_tokenizer_gives_the_same_tokens(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    if kind == "sentencepiece":
        write_tokenizer(tmp_path)
    elif kind == "caseops":
        train_tokenizer((f"the word{n} is number {n}" for n in range(300)), 320, path, "caseops")
    else:
        foreign = pytest.importorskip("tests.unit.foreign_tokenizers")
        path.write_text(foreign.KINDS[kind](), encoding="utf-8")
    tokenizer = Tokenizer.load(path)
    recipe = recipe_with(f"model.vocab_size={tokenizer.vocab_size}")
    exported(tmp_path, tokenizer, recipe)
    with without_pgolf():
        own = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
        found = [(own(text).input_ids, own.tokenize(text)) for text in TEXTS]
        assert len(own) == tokenizer.vocab_size == len(own.get_vocab())
    for text, (ids, pieces) in zip(TEXTS, found, strict=True):
        assert ids == [tokenizer.bos_id, *tokenizer.encode(text)]
        assert own.convert_tokens_to_ids(pieces) == ids[1:]
        assert own.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids[1:])
    source = (tmp_path / "out" / "tokenization_pgolf.py").read_text()
    needed = {"encoding": "tiktoken", "byte level": "tokenizers", "wordpiece": "tokenizers"}
    for package in ("sentencepiece", "tokenizers", "tiktoken"):
        assert (f"import {package}\n" in source) == (package == needed.get(kind, "sentencepiece"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"begins with token {tokenizer.bos_id} (BOS)" in card
    assert ("Capital letters are operators" in card) == (kind == "caseops")


FEW = ["model.layers=1", "model.bigram.buckets=32", "model.document_mask=true"]


@pytest.mark.parametrize("settings", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_onnxruntime_computes_the_same_logits(
    settings: list[str], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    import onnxruntime

    network = exported(tmp_path, tokenizer, recipe_with(*settings), "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for shape in ((1, 16), (3, 7), (2, 1)):
        (logits,) = session.run(["logits"], {"input_ids": tokens(*shape).numpy()})
        with torch.inference_mode():
            ours = network.project(network.hidden(tokens(*shape), 16)).numpy()
        assert logits.dtype == np.float32 and np.abs(logits - ours).max() <= 1e-4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "model.onnx",
        "tokenizer.model",
    }


def test_mistakes_leave_nothing(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PgolfError, match="--format gguf: unknown; use hf, onnx"):
        exported(tmp_path, tokenizer, recipe_with(), "gguf")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PgolfError, match=r"--format onnx: needs the package onnxscript.*pgolf\[export\]"):
        exported(tmp_path, tokenizer, recipe_with(), "onnx")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(PgolfError, match="out: already exists"):
        exported(tmp_path, tokenizer, recipe_with())
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "out"}
