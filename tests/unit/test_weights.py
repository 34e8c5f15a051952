"""Weights files: they carry their recipe, and nothing damaged or foreign gets in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pgolf.errors import PgolfError
from pgolf.model.gpt import build_model
from pgolf.recipe import load_recipe
from pgolf.weights import load_tensors, load_weights, save_tensors, save_weights

TINY = ["model.layers=2", "model.width=32", "model.heads=2", "model.kv_heads=1", "model.mlp_hidden=32"]
RECIPE = load_recipe("quickstart", [*TINY, "model.xsa_last=2", "model.vocab_size=64", "model.bigram.buckets=16"])


def test_weights_carry_their_recipe(tmp_path: Path) -> None:
    state = build_model(RECIPE.model, 0).state_dict()
    save_weights(tmp_path / "model.safetensors", state, RECIPE, "abc")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        weights = load_weights(source)
        assert weights.recipe == RECIPE
        assert weights.tokenizer_digest == "abc"
        assert all(torch.equal(weights.state[name], value) for name, value in state.items())
        assert all(torch.equal(a, b) for a, b in zip(weights.model().parameters(), state.values(), strict=True))


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, {"w": torch.arange(8.0)}, RECIPE, "abc")
    whole = path.read_bytes()
    for position in (len(whole) - 3, len(whole) - 20, *range(0, len(whole), 97)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(PgolfError, match=str(path)):
            load_weights(path)
    path.write_bytes(whole[:-7])
    with pytest.raises(PgolfError, match="not a readable safetensors file"):
        load_weights(path)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(PgolfError, match="pgolf import"):
        load_weights(tmp_path / "foreign.safetensors")
    with pytest.raises(PgolfError, match="no such file"):
        load_weights(tmp_path / "missing.safetensors")
    with pytest.raises(PgolfError, match="holds no run"):
        load_weights(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE.to_toml())
    with pytest.raises(PgolfError, match="has not finished"):
        load_weights(tmp_path)
    save_tensors(tmp_path / "other.safetensors", {"w": torch.zeros(2)}, {"format": "pgolf-weights-99"})
    with pytest.raises(PgolfError, match="does not know"):
        load_weights(tmp_path / "other.safetensors")


def test_tensors_that_do_not_fit_the_recipe_are_named(tmp_path: Path) -> None:
    state = build_model(RECIPE.model, 0).state_dict()
    path = tmp_path / "model.safetensors"
    for change, message in (
        ({"smear.gate": torch.zeros(5)}, r"smear\.gate has shape \(5,\); the recipe wants \(32,\)"),
        ({"smear.extra": torch.zeros(5)}, r"smear\.extra is not part"),
    ):
        save_weights(path, {**state, **change}, RECIPE, "")
        with pytest.raises(PgolfError, match=message):
            load_weights(path).model()
    del state["smear.gate"]
    save_weights(path, state, RECIPE, "")
    with pytest.raises(PgolfError, match=r"smear\.gate is missing"):
        load_weights(path).model()


def test_types_and_metadata_survive(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.tensor(7), "empty": torch.zeros(0, 4)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"clock": {"step": 3}})
    loaded, metadata = load_tensors(tmp_path / "t.safetensors")
    assert metadata == json.loads('{"clock": {"step": 3}}')
    assert all(
        loaded[name].dtype == value.dtype and torch.equal(loaded[name], value) for name, value in tensors.items()
    )
