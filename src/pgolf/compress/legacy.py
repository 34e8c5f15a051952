"""Import of the reference systems' own weights: #456, #644 and #1232, quantized or not.

An artifact (``.ptz``) is zstd or zlib over ``torch.save``; a checkpoint (``.pt``, ``.safetensors``) is a
plain dictionary of tensors. Pickles are only ever read with ``weights_only=True``, which builds tensors and
runs no code. The layout is recognised by the tensors' names.

A file of a few kilobytes can claim terabytes. So a pickle is read twice: first without its numbers, as fake
tensors, which have shapes and storages but no memory. Only when the recipe has a place for every tensor, and
the file is large enough for every storage, are the numbers read and converted.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pgolf.compress.coders import bounded_zstd
from pgolf.errors import PgolfError
from pgolf.model.load import parameter_shapes
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.files import read_bytes

# What a compressed file may expand to: so many bytes for each parameter of the recipe, and some for names and
# the like. Float64 beside float16 would be the most that anybody saves.
_BYTES_PER_PARAMETER, _FREE_BYTES = 10, 64 << 20

# Our name, then the name in each reference; {i} is the number of a layer or core.
_COMMON = {
    "token_embedding.weight": "tok_emb.weight",
    "layers.{i}.residual_mix": "blocks.{i}.resid_mix",
    "layers.{i}.attention_scale": "blocks.{i}.attn_scale",
    "layers.{i}.mlp_scale": "blocks.{i}.mlp_scale",
    "skips.weight": "skip_weights",
}
_ATTENTION = {
    "query.weight": "c_q.weight",
    "key.weight": "c_k.weight",
    "value.weight": "c_v.weight",
    "output.weight": "proj.weight",
    "query_gain": "q_gain",
    "value_mix": "vr_lambda",
    "gate.weight": "attn_gate.weight",
    "gate.bias": "attn_gate.bias",
}
_BIGRAM = {
    "bigram.table.weight": "bigram.embed.weight",
    "bigram.project.weight": "bigram.proj.weight",
    "bigram.scale": "bigram.scale",
    "smear.gate": "smear.gate",
}
_REFINER = {
    "refiner.gate": "flow_refiner.gate",
    "refiner.down.weight": "flow_refiner.down_proj.weight",
    "refiner.hidden.weight": "flow_refiner.velocity_net.0.weight",
    "refiner.hidden.bias": "flow_refiner.velocity_net.0.bias",
    "refiner.velocity.weight": "flow_refiner.velocity_net.2.weight",
    "refiner.velocity.bias": "flow_refiner.velocity_net.2.bias",
    "refiner.up.weight": "flow_refiner.up_proj.weight",
}


def _core_names(prefix: str, up: str, down: str) -> dict[str, str]:
    names = {
        f"cores.{{i}}.attention.{ours}": f"{prefix}.{{i}}.attn.{theirs}"
        for ours, theirs in _ATTENTION.items()
    }
    mlp = {"up.weight": f"{up}.weight", "down.weight": f"{down}.weight", "scale": "scale", "bias": "bias"}
    return names | {f"cores.{{i}}.mlp.{ours}": f"{prefix}.{{i}}.mlp.{theirs}" for ours, theirs in mlp.items()}


REFERENCE_NAMES: dict[str, dict[str, str]] = {
    "456": _COMMON | _BIGRAM | _core_names("cores", "fc", "proj"),
    "644": _COMMON
    | _core_names("blocks", "up_proj", "down_proj")
    | {
        "bigram.table.weight": "bigram_emb.embed.weight",
        "bigram.project.weight": "bigram_emb.proj.weight",
        "bigram.scale": "bigram_emb.scale",
        "smear.gate": "smear_gate.gate",
        "skips.gate": "skip_gates",
        "value_embedding.table.weight": "ve_shared.embed.weight",
        "value_embedding.project.weight": "ve_shared.proj.weight",
        "value_embedding.scale": "ve_shared.scale",
        # One tensor of one entry per layer there; {n} counts them.
        "value_embedding.layer_scales": "ve_layer_scales.{n}",
    },
    "1232": _COMMON | _BIGRAM | _REFINER | _core_names("blocks", "fc", "proj"),
}


def import_reference(path: Path, recipe: Recipe) -> dict[str, Tensor]:
    """Read a reference's artifact or checkpoint as float32 tensors under our names.

    Args:
        path: ``.ptz``, ``.pt`` or ``.safetensors``.
        recipe: describes the model; its shapes are what the file must hold.

    PgolfError where it is unreadable, of another layout, or a tensor is missing, unknown or of another shape.
    """
    # Takes a second to import, and few commands need it.
    from torch._subclasses.fake_tensor import FakeTensorMode

    wanted = parameter_shapes(recipe.model)
    limit = _FREE_BYTES + _BYTES_PER_PARAMETER * sum(shape.numel() for shape in wanted.values())
    content = _content(path, limit)
    # The safetensors library has compared sizes with the file before it builds a tensor.
    with contextlib.nullcontext() if path.suffix == ".safetensors" else FakeTensorMode():
        described = _read(content, path)
        _assigned(described, wanted, recipe, path)
        _check_storages(described, content, path)
    state = _assigned(_read(content, path), wanted, recipe, path)
    return {name: tensor.float() for name, tensor in state.items()}


def _assigned(value: Any, wanted: Mapping[str, torch.Size], recipe: Recipe, path: Path) -> dict[str, Tensor]:
    """Our tensors by our names, whatever the layout; with fake tensors in, fake ones out."""
    parts = _parts(value, path)
    names = REFERENCE_NAMES[_family(parts)]
    state, used = {}, set()
    for name, shape in wanted.items():
        theirs = reference_names(name, names, shape)
        used.update(theirs)
        state[name] = _fetch(parts, name, theirs, shape, path)
    if unknown := sorted(set(parts) - used):
        raise PgolfError(
            f"{path}: tensor {unknown[0]} has no place in recipe {recipe.name}; choose the recipe it was "
            "made with, or adapt it with --set model.KEY=VALUE"
        )
    return state


def reference_names(name: str, names: Mapping[str, str], shape: torch.Size) -> list[str]:
    """The names that one of our tensors has in a reference (several where it is stored in pieces)."""
    numbers = re.findall(r"\.(\d+)\.", name)
    template = names.get(re.sub(r"\.\d+\.", ".{i}.", name, count=1), name)
    if "{n}" in template:
        return [template.replace("{n}", str(n)) for n in range(shape[0])]
    return [template.replace("{i}", numbers[0] if numbers else "")]


def _fetch(found: Mapping[str, _Part], name: str, theirs: list[str], shape: torch.Size, path: Path) -> Tensor:
    # A single value embedding layer has one piece of shape (1,), which is already ours.
    expected = shape if len(theirs) == 1 else torch.Size([1])
    for piece in theirs:
        if piece not in found:
            raise PgolfError(f"{path}: tensor {piece} is missing (it becomes {name}, shape {tuple(shape)})")
        given = found[piece].codes.shape
        if given != expected and (len(theirs) == 1 or given.numel() != 1):
            raise PgolfError(f"{path}: tensor {piece} has shape {tuple(given)}, expected {tuple(expected)}")
    pieces = [found[piece].tensor() for piece in theirs]
    return pieces[0] if len(pieces) == 1 else torch.cat([piece.reshape(1) for piece in pieces])


def _family(found: Mapping[str, _Part]) -> str:
    if any(name.startswith("cores.") for name in found):
        return "456"
    is_644 = any(".mlp.up_proj." in name or name.startswith("bigram_emb.") for name in found)
    return "644" if is_644 else "1232"


def _content(path: Path, limit: int) -> bytes:
    """What ``_read`` reads: the file, expanded if it is compressed."""
    content = read_bytes(path)
    if path.suffix != ".ptz":
        return content
    try:
        if content[:4] == b"\x28\xb5\x2f\xfd":
            raw = bounded_zstd(content, limit)
        else:
            raw = zlib.decompressobj().decompress(content, limit + 1)
    except (zlib.error, ValueError) as error:
        raise PgolfError(f"{path}: damaged, or not a {path.suffix} file ({error})") from error
    if len(raw) > limit:
        raise PgolfError(
            f"{path}: expands to more than {limit:,} bytes, too many for the recipe's parameters; choose the "
            "recipe it was made with"
        )
    return raw


def _read(content: bytes, path: Path) -> Any:
    """The dictionary in a file; under ``FakeTensorMode`` without its numbers."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        with warnings.catch_warnings():
            # A damaged pickle makes torch warn over many lines before it fails.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise PgolfError(f"{path}: damaged, or not a {path.suffix} file ({error})") from error
    except Exception as error:
        # On a damaged file torch raises whatever its parser stumbles over; its message runs over many lines
        # and may recommend trusting the file, which is never right here.
        what = "not a dictionary of tensors saved by torch, or not safe to load"
        raise PgolfError(f"{path}: {what}") from error


def _check_storages(value: Any, content: bytes, path: Path) -> None:
    """PgolfError where the file cannot have the numbers of all tensors, of which ``value`` holds fake ones,
    or a tensor shows numbers more than once.
    """
    storages: dict[int, int] = {}
    for name, part in _parts(value, path).items():
        for tensor in (part.codes, *([] if part.scale is None else [part.scale])):
            size = tensor.untyped_storage().nbytes()
            storages[tensor.untyped_storage()._cdata] = size
            if tensor.numel() * tensor.element_size() > size:
                raise PgolfError(
                    f"{path}: tensor {name} claims more numbers than are stored of it; save a plain copy"
                )
    expanded = 0
    if path.suffix != ".safetensors" and zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            expanded = sum(entry.file_size for entry in archive.infolist())
    if max(sum(storages.values()), expanded) > len(content):
        raise PgolfError(f"{path}: claims more numbers than its {len(content):,} bytes can hold; refused")


@dataclass(frozen=True)
class _Part:
    """A tensor as it is stored: numbers, or codes and the size of their steps."""

    codes: Tensor
    scale: Tensor | None = None

    def tensor(self) -> Tensor:
        if self.scale is None:
            return self.codes
        scale = self.scale.float()
        return self.codes.float() * (scale[:, None] if scale.ndim else scale)


def _parts(value: Any, path: Path) -> dict[str, _Part]:
    """What is stored of each tensor, by its name, from any of the layouts."""
    if not isinstance(value, dict):
        raise PgolfError(f"{path}: holds a {type(value).__name__}, not a dictionary of tensors")
    if isinstance(value.get("w"), dict) and isinstance(value.get("m"), dict):
        return _from_mixed(value["w"], path)
    if isinstance(value.get("quantized"), dict) and isinstance(value.get("passthrough"), dict):
        scales = value.get("scales")
        scales = scales if isinstance(scales, dict) else {}
        codes = _only_tensors(value["quantized"], path)
        tensors = {name: _scaled(code, scales.get(name), name, path) for name, code in codes.items()}
        return tensors | _plain(value["passthrough"], path)
    return _plain(value, path)


def _plain(value: Mapping[str, Any], path: Path) -> dict[str, _Part]:
    return {name: _Part(tensor) for name, tensor in _only_tensors(value, path).items()}


def _from_mixed(stored: Mapping[str, Any], path: Path) -> dict[str, _Part]:
    tensors = {}
    for name, value in _only_tensors(stored, path).items():
        if name.endswith(".q"):
            tensors[name[:-2]] = _scaled(value, stored.get(f"{name[:-2]}.scale"), name[:-2], path)
        elif not (name.endswith(".scale") and f"{name[:-6]}.q" in stored):
            tensors[name] = _Part(value)
    return tensors


def _scaled(codes: Tensor, scale: Any, name: str, path: Path) -> _Part:
    rows = codes.shape[:1] if codes.ndim == 2 else None
    if not isinstance(scale, Tensor) or (scale.ndim and scale.shape != rows):
        raise PgolfError(
            f"{path}: the scale of tensor {name} is missing or does not fit its {tuple(codes.shape)} codes"
        )
    return _Part(codes, scale)


def _only_tensors(value: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    from torch._subclasses.fake_tensor import FakeTensor

    for name, entry in value.items():
        if not isinstance(name, str):
            raise PgolfError(
                f"{path}: entry {name!r} is not named by text; expected a dictionary of named tensors"
            )
        if not isinstance(entry, Tensor):
            raise PgolfError(f"{path}: entry {name} is a {type(entry).__name__}, not a tensor")
        # Fake tensors of the old format are on the meta device too.
        without_values = entry.is_meta and not isinstance(entry, FakeTensor)
        if entry.layout is not torch.strided or entry.is_complex() or entry.is_quantized or without_values:
            raise PgolfError(f"{path}: tensor {name} is not a plain array of real numbers; save it as one")
    return dict(value)
