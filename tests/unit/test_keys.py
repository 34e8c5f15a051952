"""docs/keys.md says what the recipe's sections say: ``python -m tests.unit.test_keys`` writes it."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe, describe_keys, recipe_from_tree, recipe_keys
from pgolf.recipe.sections import Section

PAGE = Path(__file__).parents[2] / "docs" / "keys.md"
BEGINNING = """# Keys of a recipe

A recipe is a TOML file with these sections; `--set section.key=value` on the command line changes single
keys. A key that a recipe does not name has its default. This page is made from the sections' docstrings:
after a change run `python -m tests.unit.test_keys`.
"""
NAMES = {int: "whole number", float: "number", str: "text"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def page() -> str:
    """The whole page."""
    meanings = describe_keys()
    parts = [BEGINNING]
    for name, about, fields in sections(Recipe, ""):
        rows = "".join(
            f"| `{key}` | {values(field)} | {value_of(field)} | {plain(meanings[key])} |\n"
            for key, field in fields
        )
        title = f"## {name or 'The recipe itself'}\n\n{plain(about)}\n\n"
        parts.append(f"{title}| key | values | default | meaning |\n| --- | --- | --- | --- |\n{rows}")
    return "\n".join(parts)


def sections(section: type[Section], prefix: str) -> Iterator[tuple[str, str, list[tuple[str, FieldInfo]]]]:
    """Each section with its name, its docstring's first paragraph and its own keys, the outer ones first."""
    inside = {name: field for name, field in section.model_fields.items() if is_section(field.annotation)}
    own = [(f"{prefix}{name}", field) for name, field in section.model_fields.items() if name not in inside]
    yield prefix.rstrip("."), (section.__doc__ or "").split("\n\n")[0], own
    for name, field in inside.items():
        assert isinstance(field.annotation, type)
        yield from sections(field.annotation, f"{prefix}{name}.")


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def values(field: FieldInfo) -> str:
    """What a key may be."""
    return f"{kind(field.annotation)} {bounds(field.metadata)}".strip()


def bounds(limits: Iterable[Any]) -> str:
    return " and ".join(
        f"{words} {code(getattr(bound, name))}"
        for bound in limits
        for name, words in BOUNDS.items()
        if hasattr(bound, name)
    )


def kind(annotation: Any) -> str:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(code(choice) for choice in inside)
    if origin is tuple:
        return f"list of: {kind(inside[0])}" if ... in inside else f"[{', '.join(map(kind, inside))}]"
    if origin is typing.Annotated:
        limits = [entry for part in inside[1:] for entry in getattr(part, "metadata", ())]
        return f"{kind(inside[0])} {bounds(limits)}".strip()
    if is_section(annotation):
        return f"table of {', '.join(map(code, annotation.model_fields))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(part) for part in inside if part is not type(None))
    return "`true`, `false`" if annotation is bool else NAMES[annotation]


def value_of(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    return code(list(default) if isinstance(default, tuple) else default)


def code(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def plain(text: str) -> str:
    """One line of Markdown that shows the text as it is."""
    line = " ".join(text.split())
    for sign in "\\*|<":
        line = line.replace(sign, f"\\{sign}")
    return line


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.unit.test_keys"


def test_the_page_has_every_key() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not [key for key in recipe_keys() if f"| `{key}` |" not in text]


def test_the_documents_name_only_keys_that_are_there() -> None:
    known = {
        ".".join(parts[:count]) for key in recipe_keys() for parts in [key.split(".")] for count in (1, 2, 3)
    }
    sections = "|".join({key.split(".")[0] for key in recipe_keys() if "." in key})
    unknown = set()
    for page in (PAGE.parents[1] / "README.md", *PAGE.parent.rglob("*.md")):
        text = re.sub(r"```python.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        found = re.findall(rf"(?<=[` ])((?:{sections})(?:\.[a-z_0-9]+)+)(?=[`= ])", text)
        # What else has such a name is a file, or is written before its extension.
        kinds = "md|py|toml|jsonl?|zst|safetensors|pgolf|txt|onnx"
        files = {name for name in found if re.search(rf"\.({kinds})$", name)}
        unknown |= {f"{page.name}: {name}" for name in set(found) - files - known}
    assert not unknown


def test_stored_recipes_may_name_keys_that_are_gone_by_their_only_value() -> None:
    former: dict[str, Any] = {"vector_mantissa": 10, "prune_above": 65536}
    recipe = recipe_from_tree({"compress": former | {"cap": 1000}}, "an old run")
    assert recipe == recipe_from_tree({"compress": {"cap": 1000}}, "a new run")
    for key in former:
        with pytest.raises(PgolfError, match=rf"unknown key compress\.{key}"):
            recipe_from_tree({"compress": former | {key: 9}}, "an old run")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
