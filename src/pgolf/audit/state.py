"""A fingerprint of everything that an object holds, part by part, so that it can be said what has changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from pgolf.evaluate.protocol import Scorer

_DEEPEST = 12
_MOST_PARTS = 200_000
_LONG = 32  # A list of so many whole numbers is one part.
# What every module has, beside its parts: parameters, which are taken with the weights, and hooks.
_OF_MODULES = frozenset(nn.Module().__dict__) - {"_modules", "_buffers"}
_OF_FUNCTIONS = ("__code__", "__func__", "__self__")


def digest_parts(thing: Any) -> dict[str, str]:
    """Fingerprints of the parts of an object, by their path.

    Looks through attributes, containers, modules and optimizers; functions, classes and what C code hides are
    left out. Paths of parameters, buffers that are saved, and optimizers begin with "weights:".
    """
    return {path: _digest(value) for path, value in _parts(thing).items()}


def scorer_parts(scorer: Scorer) -> dict[str, str]:
    """Fingerprints of what a scorer holds, and of its snapshot: all that its results depend on.

    What the scorer calls recomputable is looked at in the snapshot only, if it is there.
    """
    # A path begins with the name of an attribute, after "weights:" if it is one of those.
    names = "|".join(map(re.escape, scorer.recomputable)) or "$^"
    skipped = re.compile(rf"(weights:)?({names})($|[.\[])")
    kept = {path: value for path, value in digest_parts(scorer).items() if not skipped.match(path)}
    return kept | digest_parts({"snapshot": scorer.snapshot()})


def integers(thing: Any) -> dict[str, NDArray[np.integer[Any]]]:
    """Whole numbers that an object holds (n,), by their path: arrays, tensors, lists; bytes as uint16."""
    found = {}
    for path, value in _parts(thing).items():
        if isinstance(value, Tensor):
            value = value.detach().cpu().numpy() if not value.is_floating_point() else None
        elif isinstance(value, bytes):
            value = np.frombuffer(value[: len(value) // 2 * 2], "<u2")
        elif isinstance(value, tuple):
            value = np.array(value)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            found[path] = value.reshape(-1)
    return found


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Paths whose content differs or that only one of two fingerprints has, sorted."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def learned(paths: list[str]) -> list[str]:
    """Those of some paths that belong to weights or optimizers."""
    return [path for path in paths if path.startswith("weights:")]


def _parts(thing: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    _walk(thing, "", parts, set(), 0)
    return parts


def _walk(thing: Any, path: str, parts: dict[str, Any], seen: set[int], depth: int) -> None:
    if len(parts) >= _MOST_PARTS or depth > _DEEPEST:
        return
    if isinstance(thing, (type(None), bool, int, float, complex, str, bytes)):
        parts[path] = thing
        return
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, (Tensor, np.ndarray, np.generic, set, frozenset)):
        parts[path] = thing
    elif isinstance(thing, np.random.Generator):
        parts[path] = repr(thing.bit_generator.state)
    elif isinstance(thing, torch.Generator):
        parts[path] = thing.get_state()
    elif (
        isinstance(thing, (list, tuple)) and len(thing) >= _LONG and all(type(each) is int for each in thing)
    ):
        parts[path] = tuple(thing)
    else:
        _walk_inside(thing, path, parts, seen, depth)


def _walk_inside(thing: Any, path: str, parts: dict[str, Any], seen: set[int], depth: int) -> None:
    if isinstance(thing, nn.Module):
        for name, tensor in thing.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                parts[f"weights:{path}.{name}"] = tensor
        parts[f"{path}.training"] = thing.training
    if isinstance(thing, Optimizer):
        inside: dict[str, Any] = {}
        _walk(thing.state_dict(), path, inside, seen, depth + 1)
        parts.update({f"weights:{name}": value for name, value in inside.items()})
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            _walk(value, f"{path}[{key!r:.40}]", parts, seen, depth + 1)
    elif isinstance(thing, (list, tuple)):
        parts[f"{path}.length"] = len(thing)
        for index, value in enumerate(thing):
            _walk(value, f"{path}[{index}]", parts, seen, depth + 1)
    elif not _is_code(thing):
        _walk_attributes(thing, path, parts, seen, depth)


def _walk_attributes(thing: Any, path: str, parts: dict[str, Any], seen: set[int], depth: int) -> None:
    skipped = _OF_MODULES if isinstance(thing, nn.Module) else frozenset()
    slots = [name for kind in type(thing).__mro__ for name in _slots_of(kind)]
    values = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
    for name, value in (values | dict(getattr(thing, "__dict__", {}))).items():
        if name not in skipped:
            _walk(value, f"{path}.{name}" if path else name, parts, seen, depth + 1)


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_code(thing: Any) -> bool:
    # Functions, methods and builtins too; an object that merely can be called is looked into.
    return isinstance(thing, (type, ModuleType)) or any(hasattr(thing, name) for name in _OF_FUNCTIONS)


def _digest(value: Any) -> str:
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, np.ndarray):
        content = value.tobytes() if value.dtype != object else repr(value.tolist()).encode()
        return f"{value.dtype}{value.shape}{_hash(content)}"
    text = repr(sorted(map(repr, value))) if isinstance(value, (set, frozenset)) else repr(value)
    return text if len(text) < 80 else _hash(text.encode())


def tensor_digest(tensor: Tensor) -> str:
    """A fingerprint of a tensor: type, shape and bits."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{tensor.dtype}{tuple(tensor.shape)}{_hash(plain.view(torch.uint8).numpy().tobytes())}"


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
