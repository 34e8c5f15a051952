"""Import of the reference systems' own weights: #456, #644 and #1232, quantized or not.

An artifact (``.ptz``) is zstd or zlib over ``torch.save``; a checkpoint (``.pt``, ``.safetensors``) is a plain
dictionary of tensors. Pickles are only ever read with ``weights_only=True``, which builds tensors and runs no
code. The layout is recognised by the tensors' names.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.files import read_bytes
from pgolf.model.gpt import GPT
from pgolf.recipe import Recipe

_MAX_RAW = 4 << 30

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
    names = {f"cores.{{i}}.attention.{ours}": f"{prefix}.{{i}}.attn.{theirs}" for ours, theirs in _ATTENTION.items()}
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

    Raises:
        PgolfError: unreadable, not one of the three layouts, or a tensor is missing, unknown or of another shape.
    """
    found = _dequantized(_read(path), path)
    names = REFERENCE_NAMES[_family(found)]
    with torch.device("meta"):
        wanted = {name: parameter.shape for name, parameter in GPT(recipe.model).named_parameters()}
    state, used = {}, set()
    for name, shape in wanted.items():
        theirs = reference_names(name, names, shape)
        used.update(theirs)
        state[name] = _fetch(found, name, theirs, shape, path)
    if unknown := sorted(set(found) - used):
        raise PgolfError(
            f"{path}: tensor {unknown[0]} has no place in recipe {recipe.name}; choose the recipe it was made with, "
            "or adapt it with --set model.KEY=VALUE"
        )
    return state


def reference_names(name: str, names: Mapping[str, str], shape: torch.Size) -> list[str]:
    """The names that one of our tensors has in a reference (several where it is stored in pieces)."""
    numbers = re.findall(r"\.(\d+)\.", name)
    template = names.get(re.sub(r"\.\d+\.", ".{i}.", name, count=1), name)
    if "{n}" in template:
        return [template.replace("{n}", str(n)) for n in range(shape[0])]
    return [template.replace("{i}", numbers[0] if numbers else "")]


def _fetch(found: Mapping[str, Tensor], name: str, theirs: list[str], shape: torch.Size, path: Path) -> Tensor:
    for piece in theirs:
        if piece not in found:
            raise PgolfError(f"{path}: tensor {piece} is missing (it becomes {name}, shape {tuple(shape)})")
    tensor = found[theirs[0]] if len(theirs) == 1 else torch.cat([found[piece].reshape(1) for piece in theirs])
    # A single value embedding layer has one piece of shape (1,), which is already ours.
    if tensor.shape != shape:
        raise PgolfError(f"{path}: tensor {theirs[0]} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    return tensor.float()


def _family(found: Mapping[str, Tensor]) -> str:
    if any(name.startswith("cores.") for name in found):
        return "456"
    return "644" if any(".mlp.up_proj." in name or name.startswith("bigram_emb.") for name in found) else "1232"


def _read(path: Path) -> Any:
    content = read_bytes(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        if path.suffix == ".ptz":
            content = _decompressed(content)
        with warnings.catch_warnings():
            # A damaged pickle makes torch warn over many lines before it fails.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (zlib.error, zstandard.ZstdError, safetensors.SafetensorError) as error:
        raise PgolfError(f"{path}: damaged, or not a {path.suffix} file ({error})") from error
    except Exception as error:
        # On a damaged file torch raises whatever its parser stumbles over; its message runs over many lines and
        # may recommend trusting the file, which is never right here.
        raise PgolfError(f"{path}: not a dictionary of tensors saved by torch, or not safe to load") from error


def _decompressed(content: bytes) -> bytes:
    if content[:4] == b"\x28\xb5\x2f\xfd":
        with zstandard.ZstdDecompressor().stream_reader(content) as reader:
            raw = reader.read(_MAX_RAW)
    else:
        raw = zlib.decompressobj().decompress(content, _MAX_RAW)
    return raw


def _dequantized(value: Any, path: Path) -> dict[str, Tensor]:
    """Float tensors by name from any of the layouts."""
    if not isinstance(value, dict):
        raise PgolfError(f"{path}: holds a {type(value).__name__}, not a dictionary of tensors")
    if isinstance(value.get("w"), dict) and isinstance(value.get("m"), dict):
        return _from_mixed(value["w"], path)
    if isinstance(value.get("quantized"), dict) and isinstance(value.get("passthrough"), dict):
        scales = value.get("scales")
        scales = scales if isinstance(scales, dict) else {}
        codes = _only_tensors(value["quantized"], path)
        tensors = {name: _scaled(code, scales.get(name), name, path) for name, code in codes.items()}
        return tensors | _only_tensors(value["passthrough"], path)
    return _only_tensors(value, path)


def _from_mixed(stored: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    tensors = {}
    for name, value in _only_tensors(stored, path).items():
        if name.endswith(".q"):
            tensors[name[:-2]] = _scaled(value, stored.get(f"{name[:-2]}.scale"), name[:-2], path)
        elif not (name.endswith(".scale") and f"{name[:-6]}.q" in stored):
            tensors[name] = value
    return tensors


def _scaled(codes: Tensor, scale: Any, name: str, path: Path) -> Tensor:
    rows = codes.shape[:1] if codes.ndim == 2 else None
    if not isinstance(scale, Tensor) or (scale.ndim and scale.shape != rows):
        raise PgolfError(
            f"{path}: the scale of tensor {name} is missing or does not fit its {tuple(codes.shape)} codes"
        )
    return codes.float() * (scale.float()[:, None] if scale.ndim else scale.float())


def _only_tensors(value: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    for name, entry in value.items():
        if not isinstance(name, str):
            raise PgolfError(f"{path}: entry {name!r} is not named by text; expected a dictionary of named tensors")
        if not isinstance(entry, Tensor):
            raise PgolfError(f"{path}: entry {name} is a {type(entry).__name__}, not a tensor")
        if entry.layout is not torch.strided or entry.is_complex() or entry.is_quantized or entry.is_meta:
            raise PgolfError(f"{path}: tensor {name} is not a plain array of real numbers; save it as one")
    return dict(value)
