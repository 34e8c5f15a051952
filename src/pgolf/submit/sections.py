"""The recipe's sections in a single file: plain frozen classes, checked when the file was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


def _as_lists(value: Any) -> Any:
    return [_as_lists(entry) for entry in value] if isinstance(value, tuple) else value


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Section:
    """A part of the recipe."""

    def model_dump(self, mode: str = "json", exclude_defaults: bool = False) -> dict[str, Any]:
        """The values as JSON values, those that are defaults left out if asked for."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if exclude_defaults and value == field.default:
                continue
            if isinstance(value, Section):
                value = value.model_dump(mode, exclude_defaults)
            found[field.name] = _as_lists(value)
        return found

    @classmethod
    def model_validate(cls, tree: Mapping[str, Any]) -> Any:
        """The section of JSON values, as ``model_dump`` gives them; defaults for what is left out."""
        given = {}
        for field in fields(cls):
            if field.name in tree:
                value = tree[field.name]
                usual: Any = field.default
                inner = isinstance(usual, Section)
                given[field.name] = usual.model_validate(value) if inner else _as_tuples(value)
        return cls(**given)

    def model_copy(self, update: Mapping[str, Any]) -> Any:
        """A copy with some values changed."""
        return replace(self, **update)
