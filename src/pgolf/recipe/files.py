"""Recipes as text: TOML files that extend each other, settings, and what a misspelling meant."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError
from pgolf.runtime.files import is_file, read_text


def recipe_names() -> list[str]:
    """Names of the recipes that come with pgolf, sorted."""
    folder = resources.files("pgolf.recipe")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_tree(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's nested mapping, on top of those that it extends; nothing of it is checked but that it is
    TOML.

    Args:
        name: a shipped recipe, or the path of a TOML file.
        seen: what led to this one by way of ``extends``.

    Raises:
        PgolfError: the recipe is unknown, cannot be read, or extends itself.
    """
    # An artifact holds its recipe: scoring reads no such file.
    from pgolf.runtime.terminal import plain

    if name in seen:
        raise PgolfError(f"recipe {name}: extends itself by way of {' -> '.join((*seen, name))}")
    path, text = Path(name), _text_of(name)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PgolfError(f"recipe {name}: not valid TOML ({error})") from error
    parent = tree.pop("extends", None)
    tree.setdefault("name", plain(path.stem))
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise PgolfError(f"recipe {name}: extends must be the name of one recipe, not {parent!r}")
    return _merged(load_tree(_parent(name, parent), (*seen, name)), tree)


def _parent(name: str, extends: str) -> str:
    """The recipe that another one extends: a file lies beside it."""
    return str(Path(name).parent / extends) if extends.endswith(".toml") else extends


def _text_of(name: str) -> str:
    if name.endswith(".toml") or is_file(Path(name)):
        if not is_file(Path(name)):
            raise PgolfError(f"recipe {name}: no such file")
        return read_text(Path(name))
    names = recipe_names()
    if name not in names:
        raise PgolfError(f"recipe {name!r}: unknown{nearest(name, names)}; shipped: {', '.join(names)}")
    return resources.files("pgolf.recipe").joinpath(f"{name}.toml").read_text("utf-8")


def explanations(name: str) -> dict[str, tuple[str, str]]:
    """Values of a recipe's keys with the remarks that stand behind them (``key = value  # remark``), those of
    the recipe that it extends first.

    Raises:
        PgolfError: see ``load_tree``.
    """
    load_tree(name)
    found: dict[str, tuple[str, str]] = {}
    section = ""
    for line in _text_of(name).splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        key, _, rest = line.partition(" = ")
        value, remark, text = rest.partition("  # ")
        if key == "extends":
            found |= explanations(_parent(name, tomllib.loads(line)["extends"]))
        elif remark:
            found[section + key] = value.strip('"'), text
    return found


def _merged(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def parse_setting(text: str) -> tuple[list[str], Any]:
    """Path and value of a ``section.key=value`` setting; the value is TOML, a bare word is a string.

    Raises:
        PgolfError: it is not of this form.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise PgolfError(f"--set {text!r}: write it as section.key=value, for example train.steps=500")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except ValueError:  # A number of thousands of digits is one as well.
        parsed = value.strip()
    return key.strip().split("."), parsed


def set_in_tree(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Change one value of a nested mapping, in place.

    Raises:
        PgolfError: the path leads through a value.
    """
    for part in path[:-1]:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            raise PgolfError(f"--set {'.'.join(path)}: {part} is a single value, not a section")
        tree = child
    tree[path[-1]] = value


def nearest(word: str, known: Sequence[str]) -> str:
    """ " (did you mean X?)" with the known word that is most like an unknown one; empty if none is."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not matches:
        # A key in the wrong section: the last part still says what was meant.
        last = word.rsplit(".", 1)[-1]
        matches = [key for key in known if key.rsplit(".", 1)[-1] == last][:1]
    return f" (did you mean {matches[0]}?)" if matches else ""
