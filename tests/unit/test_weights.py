"""Weights files: they carry their recipe, and nothing damaged or foreign gets in."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pgolf.compress.container import encode_artifact
from pgolf.compress.weights import load_tensors, load_weights, save_tensors, save_weights
from pgolf.errors import PgolfError
from pgolf.model.gpt import build_model
from pgolf.model.load import model_from, parameter_shapes
from pgolf.recipe.recipe import load_recipe

TINY = ["model.layers=2", "model.width=32", "model.heads=2", "model.kv_heads=1", "model.mlp_hidden=32"]
RECIPE = load_recipe(
    "quickstart", [*TINY, "model.xsa_last=2", "model.vocab_size=64", "model.bigram.buckets=16"]
)


def test_weights_carry_their_recipe(tmp_path: Path) -> None:
    state = build_model(RECIPE.model, 0).state_dict()
    save_weights(tmp_path / "model.safetensors", state, RECIPE, "abc")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        weights = load_weights(source)
        assert weights.recipe == RECIPE
        assert weights.tokenizer_digest == "abc"
        assert all(torch.equal(weights.state[name], value) for name, value in state.items())
        assert all(
            torch.equal(a, b) for a, b in zip(weights.model().parameters(), state.values(), strict=True)
        )


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
        loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)
        for name, value in tensors.items()
    )


SAVING = """
import sys, torch
from pathlib import Path
from pgolf.recipe.recipe import load_recipe
from pgolf.compress.weights import save_tensors, save_weights
torch.manual_seed(0)
recipe = load_recipe("tiny")
state = {"b": torch.rand(3), "a": torch.rand(5, 2)}
save_weights(Path(sys.argv[1]), state, recipe, "abc")
kinds = (torch.bool, torch.int8, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8)
tensors = {str(kind): torch.arange(3).to(kind) for kind in (*kinds, torch.int16)}
tensors |= {"none": torch.zeros(0, 4), "one": torch.tensor(7)}
save_tensors(Path(sys.argv[2]), tensors, {"z": 1, "a": {"y": 2, "x": [3]}, "m": None})
"""


def test_equal_weights_give_equal_files_in_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    # In this process and in one that orders sets and dictionaries of hashes in another way.
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    for place in ("here", "there"):
        paths = [tmp_path / f"{place}.{name}.safetensors" for name in ("weights", "tensors")]
        words = ["-c", *map(str, paths)]
        if place == "here":
            monkeypatch.setattr(sys, "argv", words)
            exec(SAVING, {})
        else:
            environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
            subprocess.run([sys.executable, words[0], SAVING, *words[1:]], check=True, env=environment)
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])
    assert digests[0] == digests[1]
    # The library reads them, metadata and all.
    found = safetensors.torch.load_file(paths[1])
    for name, value in found.items():
        expected = {"none": torch.zeros(0, 4), "one": torch.tensor(7)}.get(
            name, torch.arange(3).to(value.dtype)
        )
        assert torch.equal(value, expected), name
        assert str(value.dtype) == name or name in ("none", "one")
    with safetensors.safe_open(paths[1], framework="pt") as file:
        assert {"z", "a", "m", "content"} == set(file.metadata())
    content = paths[1].read_bytes()
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0, "data begin aligned"
    assert load_tensors(paths[1])[1] == {"z": 1, "a": {"y": 2, "x": [3]}, "m": None}


def test_a_model_is_filled_without_being_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = RECIPE.with_overrides(["model.unique_layers=1", "model.xsa_last=1", "model.layers=3"])
    network = build_model(shared.model, 0)
    tokens = torch.randint(0, 64, (2, 16))
    network(tokens, tokens).mean().backward()

    def never(*given: object) -> None:
        raise AssertionError("an initialisation for nothing")

    monkeypatch.setattr(torch.nn.init, "orthogonal_", never)
    before = torch.random.get_rng_state()
    other = model_from(shared.model, network.state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {name: p.shape for name, p in other.named_parameters()} == parameter_shapes(shared.model)
    other(tokens, tokens).mean().backward()
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.data_ptr() != two.data_ptr()
        assert torch.equal(one.grad, two.grad)  # type: ignore[arg-type]
    # What fake quantization needs is there too.
    other.train().fake_quant.active = other.fake_quant.soft_round = True
    assert other(tokens, tokens).isfinite().all()


HUGE = ["model.width=1048576", "model.heads=2", "model.kv_heads=1", "model.mlp_hidden=1048576"]


@pytest.fixture
def little_memory() -> object:
    """8 GiB of addresses beyond what is taken: what asks for terabytes or tens of gigabytes fails."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory")
def test_a_small_file_asks_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    save_weights(path, {"token_embedding.weight": torch.zeros(2, 2)}, RECIPE.with_overrides(HUGE), "")
    with pytest.raises(
        PgolfError, match=r"token_embedding\.weight has shape \(2, 2\); the recipe wants \(64, 1048576\)"
    ):
        load_weights(path).model()
    artifact = tmp_path / "big.pgolf"
    artifact.write_bytes(
        encode_artifact({"smear.gate": torch.zeros(2)}, RECIPE.with_overrides(HUGE), "", "none", 1)
    )
    with pytest.raises(PgolfError, match=r"token_embedding\.weight is missing"):
        load_weights(artifact).model()
    # Metadata may say anything.
    recipe = RECIPE.model_dump(mode="json")
    layers = recipe | {"model": recipe["model"] | {"layers": 10**8}}
    for metadata, message in (
        (
            {"format": "pgolf-weights-1", "recipe": layers, "tokenizer": ""},
            "model.layers must be at most 256",
        ),
        ({"format": "pgolf-weights-1", "tokenizer": ""}, "not what pgolf writes"),
        ({"format": "pgolf-weights-1", "recipe": [1], "tokenizer": ""}, "big.safetensors"),
        ({"format": "pgolf-weights-1", "recipe": recipe}, "not what pgolf writes"),
        (
            {"format": "pgolf-weights-1", "recipe": recipe, "tokenizer": "", "grid": 3},
            "not what pgolf writes",
        ),
        ({"format": "pgolf-checkpoint-1", "recipe": recipe, "tokenizer": ""}, "not what pgolf writes"),
    ):
        save_tensors(path, {"w": torch.zeros(2)}, metadata)
        with pytest.raises(PgolfError, match=message):
            load_weights(path)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]},
        {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    ],
)
def test_a_header_that_claims_too_much_is_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    path = tmp_path / "w.safetensors"
    text = json.dumps({"__metadata__": {"content": "0" * 64}, "w": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(PgolfError, match=r"w\.safetensors: "):
        load_tensors(path)
    path.write_bytes((1 << 40).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(PgolfError, match=r"w\.safetensors: "):
        load_tensors(path)
