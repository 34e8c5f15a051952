"""The recipe: one frozen, typed description of a whole run, from text to score.

A recipe is a TOML file with the sections below, whose keys are in ``sections.py``. ``extends = "NAME"``
starts from another recipe; ``--set section.key=value`` changes single keys (``recipe/files.py`` reads both).
Every key is checked before any work starts, and all problems are reported together.

    data      where the text comes from
    model     the architecture
    train     how long, in which batches, with which schedule
    optim     learning rates, momentum, weight decay
    average   which weights are kept: EMA, SWA or the last ones
    qat       fake quantization late in training
    compress  how the weights become bytes, and how many are allowed
    evaluate  windows of the sliding evaluation
    ttt       legal test-time training
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic
import tomli_w

from pgolf.errors import PgolfError
from pgolf.recipe.checks import contradictions
from pgolf.recipe.files import load_tree, nearest, parse_setting, set_in_tree
from pgolf.recipe.sections import AdamDecay, ClipStd, Sections
from pgolf.runtime.section import Section


class Recipe(Sections):
    """A whole run."""

    def __repr__(self) -> str:
        return f"<pgolf.Recipe {self.name}: {self.description}>"

    __str__ = __repr__

    def digest(self) -> str:
        """SHA-256 of what the recipe says beyond the defaults, in canonical JSON, as 64 hexadecimal digits.

        So a key that a later version of pgolf adds does not change it; the default of a known key must stay.
        """
        canonical = json.dumps(
            self.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_toml(self) -> str:
        """The whole recipe as a TOML file that loads to the same recipe."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def with_overrides(self, overrides: Sequence[str], sections: Iterable[str] = ()) -> Recipe:
        """A copy with ``section.key=value`` settings applied.

        Args:
            overrides: settings; the value is TOML, a bare word is a string.
            sections: if given, only keys of these sections may be set.

        Raises:
            PgolfError: a setting is malformed, unknown, not allowed or does not fit the others.
        """
        allowed = tuple(sections)
        settings = [parse_setting(text) for text in overrides]
        for path, _ in settings:
            if allowed and path[0] not in allowed:
                raise PgolfError(
                    f"--set {'.'.join(path)}: only keys of {', '.join(allowed)} can be changed here, "
                    "because the weights were made with the rest"
                )
        tree = self.model_dump(mode="json")
        for path, value in settings:
            set_in_tree(tree, path, value)
        return _validated(tree, "--set")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by the name of a shipped one or the path of a TOML file, and apply settings.

    Raises:
        PgolfError: the recipe is unknown, malformed or contradictory; every problem is listed.
    """
    tree = load_tree(name)
    recipe = _validated(tree, name)
    return recipe.with_overrides(overrides) if overrides else recipe


def recipe_from_tree(tree: Mapping[str, Any], where: str) -> Recipe:
    """Check a nested mapping (as stored in a checkpoint) and make it a recipe.

    Raises:
        PgolfError: keys or values do not fit; ``where`` names the source in the message.
    """
    return _validated(dict(tree), where)


def _validated(tree: dict[str, Any], where: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(tree)
    except pydantic.ValidationError as error:
        problems = [*map(_describe, error.errors()), *_other_problems(tree, error)]
        raise _refused(where, problems) from error
    if problems := contradictions(recipe):
        raise _refused(where, problems)
    return recipe


def _refused(where: str, problems: Sequence[str]) -> PgolfError:
    return PgolfError(f"recipe {where}:", problems)


def _other_problems(tree: dict[str, Any], error: pydantic.ValidationError) -> list[str]:
    """What cannot work together in the rest of a tree, the keys that are in error left out of it."""
    rest, keys = copy.deepcopy(tree), [_path(entry) for entry in error.errors()]
    for path in keys:
        inside: Any = rest
        for part in path:
            if not isinstance(inside.get(part), dict) or part == path[-1]:
                inside.pop(part, None)
                break
            inside = inside[part]
    try:
        problems = contradictions(Recipe.model_validate(rest))
    except pydantic.ValidationError:
        return []
    # Whatever names one of these keys says it of the default.
    return [line for line in problems if not any(".".join(path[:2]) in line for path in keys)]


def _path(entry: Any) -> list[str]:
    # What is in a table by group is "table" to pydantic, and one number "number".
    return [str(part) for part in entry["loc"] if part not in ("table", "number")]


def _describe(entry: Any) -> str:
    key = ".".join(_path(entry))
    if entry["type"] == "extra_forbidden":
        tables: dict[str, type[Section]] = {
            "optim.adam_weight_decay": AdamDecay,
            "compress.clip_std": ClipStd,
        }
        inside = [f"{table}.{group}" for table, kind in tables.items() for group in kind.model_fields]
        return f"unknown key {key}{nearest(key, [*recipe_keys(), *inside])}"
    try:
        given = repr(entry["input"])
    except ValueError:  # Python does not spell numbers of thousands of digits.
        given = "a number of thousands of digits"
    return f"{key}: {entry['msg'][0].lower()}{entry['msg'][1:]} (got {given})"


def recipe_keys() -> list[str]:
    """Every key of a recipe, dotted, in the order of the sections."""
    return [key for key, _ in _walk(Recipe, "")]


def describe_keys() -> dict[str, str]:
    """The one-line description of every key."""
    return dict(_walk(Recipe, ""))


def _walk(section: type[Section], prefix: str) -> Iterable[tuple[str, str]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", " ".join((field.description or "").split())
