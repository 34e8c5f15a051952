"""Weights of the reference systems: three layouts, no pickle ever executed, every misfit named."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from pgolf.compress.legacy import REFERENCE_NAMES, import_reference, reference_names
from pgolf.errors import PgolfError
from pgolf.model.gpt import build_model
from pgolf.recipe.recipe import Recipe
from tests.golden.toy import logits_recipe

CASES = [("456", "shared"), ("644", "base"), ("1232", "flow")]


def as_reference(number: str, recipe: Recipe) -> dict[str, Tensor]:
    """A model's weights under the reference's names."""
    found: dict[str, Tensor] = {}
    for name, value in build_model(recipe.model, 0).state_dict().items():
        names = reference_names(name, REFERENCE_NAMES[number], value.shape)
        pieces = [value] if len(names) == 1 else list(value.reshape(-1, 1))
        found.update(zip(names, (piece.clone() for piece in pieces), strict=True))
    return found


def save_ptz(path: Path, value: Any, compress: Any = None) -> None:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes((compress or zstandard.ZstdCompressor().compress)(buffer.getvalue()))


@pytest.mark.parametrize(("number", "variant"), CASES)
def test_plain_weights_in_every_container(tmp_path: Path, number: str, variant: str) -> None:
    recipe = logits_recipe(number, variant)
    reference, expected = as_reference(number, recipe), build_model(recipe.model, 0).state_dict()
    torch.save(reference, tmp_path / "w.pt")
    safetensors.torch.save_file(reference, tmp_path / "w.safetensors")
    save_ptz(tmp_path / "w.ptz", reference)
    save_ptz(tmp_path / "z.ptz", reference, zlib.compress)
    torch.save(reference, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("w.pt", "w.safetensors", "w.ptz", "z.ptz", "old.pt"):
        state = import_reference(tmp_path / name, recipe)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_quantized_layouts(tmp_path: Path) -> None:
    for number, variant in CASES:
        recipe = logits_recipe(number, variant)
        reference = as_reference(number, recipe)
        matrix = "tok_emb.weight"
        codes = torch.randint(-32, 32, reference[matrix].shape, dtype=torch.int8)
        scale = torch.rand(codes.shape[0]).half()
        kept = {name: value.half() for name, value in reference.items() if name != matrix}
        if number == "644":
            value: dict[str, Any] = {
                "quantized": {matrix: codes},
                "scales": {matrix: scale},
                "passthrough": kept,
            }
        else:
            value = {
                "w": kept | {f"{matrix}.q": codes, f"{matrix}.scale": scale},
                "m": {matrix: {"type": "int6"}},
            }
        save_ptz(tmp_path / "a.ptz", value)
        state = import_reference(tmp_path / "a.ptz", recipe)
        assert torch.equal(state["token_embedding.weight"], codes.float() * scale.float()[:, None])
        assert all(tensor.dtype == torch.float32 for tensor in state.values())


@pytest.mark.parametrize(("number", "variant"), CASES)
def test_misfits_name_the_tensor(tmp_path: Path, number: str, variant: str) -> None:
    recipe, path = logits_recipe(number, variant), tmp_path / "w.pt"
    reference = as_reference(number, recipe)
    for name in ("tok_emb.weight", "blocks.2.resid_mix", "skip_weights"):
        torch.save({key: value for key, value in reference.items() if key != name}, path)
        with pytest.raises(PgolfError, match=f"tensor {name} is missing"):
            import_reference(path, recipe)
        torch.save(reference | {name: torch.zeros(3, 5)}, path)
        with pytest.raises(PgolfError, match=rf"tensor {name} has shape \(3, 5\), expected"):
            import_reference(path, recipe)
    torch.save(reference | {"mtp_heads.0.weight": torch.zeros(2)}, path)
    with pytest.raises(PgolfError, match=r"tensor mtp_heads\.0\.weight has no place in recipe"):
        import_reference(path, recipe)


class Malicious:
    """Runs code when it is unpickled the unsafe way."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.witness,))


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    recipe, witness = logits_recipe("456", "base"), tmp_path / "witness"
    torch.save({"tok_emb.weight": Malicious(witness)}, tmp_path / "evil.pt")
    (tmp_path / "evil2.pt").write_bytes(pickle.dumps(Malicious(witness)))
    save_ptz(tmp_path / "evil.ptz", {"w": {"x": Malicious(witness)}, "m": {}})
    for name in ("evil.pt", "evil2.pt", "evil.ptz"):
        with pytest.raises(PgolfError, match=name):
            import_reference(tmp_path / name, recipe)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.ptz", "w.safetensors", "w.txt"])
def test_damaged_and_foreign_files(tmp_path: Path, name: str) -> None:
    recipe, path = logits_recipe("456", "base"), tmp_path / name
    for content in (b"", b"not weights at all", b"\x28\xb5\x2f\xfd broken", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(PgolfError, match=name):
            import_reference(path, recipe)
    with pytest.raises(PgolfError, match="cannot be read"):
        import_reference(tmp_path / "missing.pt", recipe)
    torch.save([1, 2], path)
    with pytest.raises(PgolfError):
        import_reference(path, recipe)
    torch.save({"x": "text"}, tmp_path / "text.pt")
    with pytest.raises(PgolfError, match="entry x is a str"):
        import_reference(tmp_path / "text.pt", recipe)
    torch.save({"w": {"x.q": torch.zeros(2, 2, dtype=torch.int8)}, "m": {}}, tmp_path / "half.pt")
    with pytest.raises(PgolfError, match="scale of tensor x is missing"):
        import_reference(tmp_path / "half.pt", recipe)


CODES = torch.zeros(2, 2, dtype=torch.int8)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1: torch.zeros(2)}, "entry 1 is not named by text"),
        ({"w": {1: torch.zeros(2)}, "m": {}}, "entry 1 is not named by text"),
        ({"quantized": {"a": 3}, "scales": {}, "passthrough": {}}, "entry a is a int"),
        ({"quantized": {"a": CODES}, "scales": 3, "passthrough": {}}, "scale of tensor a is missing"),
        (
            {"w": {"a.q": CODES, "a.scale": torch.zeros(3)}, "m": {}},
            "scale of tensor a is missing or does not fit",
        ),
        (
            {"w": {"a.q": CODES[0], "a.scale": torch.zeros(2)}, "m": {}},
            "scale of tensor a is missing or does not fit",
        ),
        ({"w": {"a.q": torch.zeros(4, 3, 5), "a.scale": torch.zeros(4)}, "m": {}}, "does not fit its"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "tensor a is not a plain array"),
        ({"a": torch.zeros(2).to_sparse()}, "tensor a is not a plain array"),
        ({}, "is missing"),
    ],
)
def test_odd_dictionaries_are_named(tmp_path: Path, value: Any, message: str) -> None:
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(PgolfError, match=message):
        import_reference(tmp_path / "w.pt", logits_recipe("456", "base"))


def test_flipped_bytes_never_end_in_anything_but_one_line(tmp_path: Path) -> None:
    recipe, path, chance = logits_recipe("456", "base"), tmp_path / "w.pt", random.Random(0)
    buffer = io.BytesIO()
    # The old format: its pickle fills the file, so most changes reach the unpickler.
    torch.save({"tok_emb.weight": torch.zeros(2, 3)}, buffer, _use_new_zipfile_serialization=False)
    for _ in range(150):
        damaged = bytearray(buffer.getvalue())
        for _ in range(chance.choice([1, 2, 5])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(PgolfError, match=r"w\.pt: .") as caught:
            import_reference(path, recipe)
        assert "\n" not in str(caught.value)


def hostile(kind: str) -> bytes:
    """A file of some kilobytes that asks for gigabytes or more."""
    buffer, old = io.BytesIO(), kind.startswith("old")
    wide = torch.zeros(1, dtype=torch.int8).expand(1 << 20, 1 << 20)
    value: Any = {"tok_emb.weight": wide}
    if kind.endswith("codes"):
        scale = torch.zeros(1, dtype=torch.float16).expand(1 << 20)
        value = {"w": {"tok_emb.weight.q": wide, "tok_emb.weight.scale": scale}, "m": {}}
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["new", "new codes", "old", "old codes"])
def test_a_small_file_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    recipe = logits_recipe("456", "base")
    monkeypatch.setattr(Tensor, "float", lambda self: pytest.fail("converted before it was checked"))
    for name, content in (("w.pt", hostile(kind)), ("w.ptz", zlib.compress(hostile(kind)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            PgolfError, match=rf"{name}: tensor tok_emb\.weight has shape \(1048576, 1048576\)"
        ):
            import_reference(tmp_path / name, recipe)
    # A whole model, one of whose tensors shows a single number again and again.
    shape = (recipe.model.vocab_size, recipe.model.width)
    whole = as_reference("456", recipe) | {"tok_emb.weight": torch.zeros(1).expand(shape)}
    torch.save(whole, tmp_path / "w.pt", _use_new_zipfile_serialization=not kind.startswith("old"))
    with pytest.raises(PgolfError, match=r"tok_emb\.weight claims more numbers than are stored of it"):
        import_reference(tmp_path / "w.pt", recipe)


def test_a_storage_that_is_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    recipe, buffer = logits_recipe("456", "base"), io.BytesIO()
    reference = as_reference("456", recipe)
    torch.save(reference, buffer)
    # As the pickle has them: 2^30 numbers instead of those that are there.
    count, claimed = (
        b"J" + number.to_bytes(4, "little") for number in (reference["tok_emb.weight"].numel(), 1 << 30)
    )
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        changed = io.BytesIO()
        with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(changed, "w", compression) as target:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename.endswith("data.pkl"):
                    assert content.count(count) == 1
                    content = content.replace(count, claimed)
                target.writestr(entry.filename, content)
        (tmp_path / "w.pt").write_bytes(changed.getvalue())
        with pytest.raises(
            PgolfError, match=r"w\.pt: claims more numbers than its [\d,]+ bytes can hold; refused"
        ):
            import_reference(tmp_path / "w.pt", recipe)


@pytest.mark.parametrize("compress", [zstandard.ZstdCompressor().compress, zlib.compress])
def test_a_bomb_is_not_expanded(tmp_path: Path, compress: Any) -> None:
    recipe, path = logits_recipe("456", "base"), tmp_path / "w.ptz"
    path.write_bytes(compress(bytes(100 << 20)))
    assert path.stat().st_size < 300_000
    with pytest.raises(PgolfError, match=r"w\.ptz: expands to more than [\d,]+ bytes"):
        import_reference(path, recipe)


def test_a_piece_of_a_wrong_shape_is_named(tmp_path: Path) -> None:
    recipe, path = logits_recipe("644", "base"), tmp_path / "w.pt"
    reference = as_reference("644", recipe)
    pieces = [name for name in reference if name.startswith("ve_layer_scales.")]
    assert len(pieces) > 1
    torch.save(reference | {pieces[0]: torch.tensor(1.0)}, path)
    import_reference(path, recipe)  # a number without a dimension is one too
    torch.save(reference | {pieces[1]: torch.zeros(3)}, path)
    with pytest.raises(PgolfError, match=rf"tensor {pieces[1]} has shape \(3,\), expected \(1,\)"):
        import_reference(path, recipe)
