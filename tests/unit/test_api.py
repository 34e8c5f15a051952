"""The library: light to import, what it exports, where it finds a tokenizer, mistakes."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import pgolf
from pgolf.compress.weights import save_weights
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.vocabulary import train_tokenizer
from pgolf.evaluate.evaluate import evaluate
from pgolf.model.gpt import build_model
from pgolf.runtime.wording import in_python
from pgolf.runtime.writing import write_json


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file with its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("model")
    words = (f"hello world and hello world again; it has number {n}." for n in range(300))
    train_tokenizer(words, 320, folder / "tokenizer.model")
    recipe = pgolf.load_recipe("tiny", "model.vocab_size=320")
    digest = Tokenizer.load(folder / "tokenizer.model").digest
    save_weights(folder / "model.safetensors", build_model(recipe.model, 0).state_dict(), recipe, digest)
    return folder / "model.safetensors"


def test_the_import_loads_nothing_heavy() -> None:
    program = (
        "import sys, pgolf; pgolf.train, pgolf.evaluate, pgolf.TrainedRun, dir(pgolf); print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "pydantic", "rich", "typer", "sentencepiece", "safetensors"} & set(loaded)


def test_functions_keep_their_names_whatever_is_imported() -> None:
    packages = ("audit", "compress", "evaluate", "report", "study", "train")
    for name in packages:
        importlib.import_module(f"pgolf.{name}")
    for name in ("load", "load_recipe", "pack", "decompress", *packages):
        function = getattr(pgolf, name)
        assert isinstance(function, types.FunctionType) and function.__doc__
    for name in pgolf.__all__:
        assert name in dir(pgolf) and getattr(pgolf, name).__module__.startswith("pgolf")
    with pytest.raises(AttributeError, match="nothing"):
        _ = pgolf.nothing  # type: ignore[attr-defined]


def test_a_model_says_what_it_is(weights: Path) -> None:
    model = pgolf.load(str(weights))
    assert isinstance(model, pgolf.Model)
    assert model.recipe == pgolf.load_recipe("tiny", "model.vocab_size=320")
    assert model.parameters == sum(
        tensor.numel() for tensor in build_model(model.recipe.model, 0).parameters()
    )
    assert f"{model.parameters:,}" in repr(model)
    assert Path(model) == model.source == weights
    assert model.window == model.recipe.evaluation_length
    assert model.tokenizer.path == weights.parent / "tokenizer.model"
    tokens = model.encode("hello world")
    assert tokens[0] == model.tokenizer.bos_id and model.tokenizer.decode(tokens[1:]) == "hello world"
    logits = model.logits(tokens)
    assert tuple(logits.shape) == (len(tokens), 320) and not logits.requires_grad
    assert model.decode(tokens) == "hello world"
    with pytest.raises(pgolf.PgolfError, match="token 320"):
        model.decode([320])
    assert sum(weight.numel() for weight in model.network.parameters()) == model.parameters


def test_a_text_costs_what_evaluation_says(weights: Path) -> None:
    model = pgolf.load(weights)
    text = "hello world and nothing else, 17 times. " * 20
    score = model.score(text)
    assert score.bytes == len(text.encode()) and score.targets == len(model.encode(text)) - 1
    assert score.targets > 2 * model.window
    assert (model.loss(text), model.bits_per_byte(text)) == (score.val_loss, score.val_bpb)
    standard = model.score(text, mode="standard")
    assert isinstance(standard, pgolf.EvalResult) and standard.val_loss != score.val_loss
    # Within one window it is the mean over the full pass.
    short = "hello world"
    rows = model.logits(model.encode(short)[:-1]).log_softmax(-1)
    costs = [-float(rows[place, token]) for place, token in enumerate(model.encode(short)[1:])]
    assert model.loss(short) == pytest.approx(sum(costs) / len(costs), rel=1e-5)
    with pytest.raises(pgolf.PgolfError, match="nothing to score"):
        model.loss("")
    with pytest.raises(pgolf.PgolfError, match="mode nonsense: unknown"):
        model.score(text, mode="nonsense")
    assert evaluate is not pgolf.evaluate


def test_a_tokenizer_is_found_by_its_digest(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "run" / "model.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(weights.read_bytes())
    monkeypatch.chdir(tmp_path)
    model = pgolf.load(alone)
    assert model.logits([1, 2]).shape == (2, 320)
    with pytest.raises(pgolf.PgolfError, match="its tokenizer is not known; pass tokenizer=MODEL"):
        model.generate("hello")
    assert pgolf.load(alone, weights.parent / "tokenizer.model").generate("hello", max_tokens=1) is not None
    # One of another model lies beside it; the run recorded where its own is.
    train_tokenizer((f"something else {n}" for n in range(300)), 300, alone.parent / "tokenizer.model")
    with pytest.raises(pgolf.PgolfError, match="is not the tokenizer of"):
        pgolf.load(alone).generate("hello")
    write_json(alone.parent / "provenance.json", {"data": {"folder": str(weights.parent)}})
    assert pgolf.load(alone).tokenizer.path == weights.parent / "tokenizer.model"
    with pytest.raises(pgolf.PgolfError, match="no such tokenizer"):
        pgolf.load(weights, tmp_path / "absent.model")


def test_overrides_may_be_a_dictionary(weights: Path) -> None:
    texts = ["train.steps=7", "model.layers=3", 'memory.experts=["word"]', "train.tensorboard=true"]
    nested = {"train": {"steps": 7, "tensorboard": True}, "model.layers": 3, "memory.experts": ("word",)}
    assert pgolf.load_recipe("tiny", nested) == pgolf.load_recipe("tiny", texts)
    with pytest.raises(pgolf.PgolfError, match="give numbers, text, or lists"):
        pgolf.load_recipe("tiny", {"train.steps": object()})
    with pytest.raises(pgolf.PgolfError, match=r"overrides train\.steps: only keys of evaluate"):
        pgolf.evaluate(weights, overrides={"train.steps": 3})


def test_what_is_returned_is_one_line(weights: Path) -> None:
    model = pgolf.load(weights)
    for value in (model.recipe, model, model.score("hello world and hello", mode="ttt")):
        assert len(repr(value)) < 250 and "\n" not in repr(value), repr(value)
    assert repr(model.recipe) == str(model.recipe) and "tiny" in repr(model.recipe)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("x: is not there; pass --data DIR, or --no-score", "x: is not there; pass data=DIR, or score=False"),
        ("--mode slow: unknown", "mode slow: unknown"),
        (
            "add --resume to continue it, or choose another --out",
            "add resume=True to continue it, or choose another out",
        ),
        (
            "use none (--set a.b=none), or `pgolf data prepare --out X`",
            'use none (overrides="a.b=none"), or `pgolf data prepare --out X`',
        ),
        (
            "go on with `pgolf train --resume --out runs/a`",
            'go on with `pgolf.train(resume=True, out="runs/a")`',
        ),
        ("`pgolf eval runs/a` makes them", '`pgolf.evaluate("runs/a")` makes them'),
        ("recipe --set: unknown key", "recipe overrides: unknown key"),
        ("a-b--c -- d", "a-b--c -- d"),
    ],
)
def test_mistakes_name_arguments_in_python_and_options_on_the_command_line(typed: str, said: str) -> None:
    with pytest.raises(pgolf.PgolfError) as caught, in_python():
        raise pgolf.PgolfError(typed)
    assert str(caught.value) == said and caught.value.lines == [typed]


def test_mistakes_are_one_line(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(weights.read_bytes()[:-7])
    for path in (tmp_path / "absent", tmp_path / "damaged", tmp_path):
        with pytest.raises(pgolf.PgolfError, match=str(path)):
            pgolf.load(path)
    model = pgolf.load(weights)
    for tokens, message in (
        ([], "0 tokens"),
        ([0] * (model.window + 1), "1 to"),
        ([320], "token 320"),
        ([-1], "-1"),
    ):
        with pytest.raises(pgolf.PgolfError, match=message):
            model.logits(tokens)
    with pytest.raises(pgolf.PgolfError, match="cap 0"):
        pgolf.pack(weights, tmp_path / "x.pgolf", cap=0)
    with pytest.raises(pgolf.PgolfError, match="stride 0"):
        pgolf.evaluate(weights, stride=0)
    with pytest.raises(pgolf.PgolfError, match="unknown"):
        pgolf.evaluate(weights, mode="nonsense")
    with pytest.raises(pgolf.PgolfError, match="no such data folder"):
        pgolf.train("tiny", tmp_path / "run", tmp_path / "absent")
    with pytest.raises(pgolf.PgolfError, match=r"train\.stepz"):
        pgolf.load_recipe("tiny", "train.stepz=3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]
