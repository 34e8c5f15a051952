"""A study file: which runs answer a question. Everything in it is checked before any work starts.

docs/studies.md shows one with all of its tables. Tables of recipe keys may be nested or dotted.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic
import tomli_w

from pgolf.errors import PgolfError
from pgolf.recipe.files import nearest, set_in_tree
from pgolf.recipe.recipe import Recipe, load_recipe, recipe_from_tree, recipe_keys
from pgolf.runtime.files import read_text
from pgolf.runtime.run_files import flattened
from pgolf.study.cells import label_of, words_of

Score = Literal["float", "packed", "sliding", "ttt", "memory"]
_LONGEST_NAME = 100


class StudyFile(pydantic.BaseModel):
    """The keys of a study file."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    title: str
    question: str = ""
    recipe: str
    """Shipped recipe or .toml file that all cells start from."""
    seeds: tuple[int, ...]
    """Values of train.seed; every cell is run with each."""
    scores: tuple[Score, ...] = ("float", "packed", "sliding", "ttt", "memory")
    """Evaluations to make; that of a memory only where a cell's recipe has one."""
    base: dict[str, Any] = {}
    """Recipe keys for all cells."""
    cells: tuple[dict[str, Any], ...] = ()
    """Those of each; none: one cell without changes. ``recipe`` in one starts it from another recipe."""
    grid: dict[str, Any] = {}
    """Recipe keys with a list of values each; their combinations are made for every cell."""
    at_steps: tuple[int, ...] = ()
    """Steps after which each run is packed and scored as if it ended there; its end is always one of them."""


@dataclass(frozen=True)
class Planned:
    """One run that a study asks for."""

    name: str
    """Of its folder; says what it changes, so it stays the same when the study grows."""
    changes: Mapping[str, Any]
    """What differs from the study's base; "step" is a step before the run's end."""
    seed: int
    recipe: Recipe
    step: int | None = None
    """Finished steps of the run at which it is looked at; None for its end."""

    @property
    def label(self) -> str:
        """As ``cells.Cell.label``."""
        return label_of(self.changes)


class Study(NamedTuple):
    """A checked study."""

    file: StudyFile
    cells: tuple[Planned, ...]

    def to_toml(self) -> str:
        """A study file of the very same cells."""
        return tomli_w.dumps(self.file.model_dump(mode="json"))


def study_titles() -> dict[str, str]:
    """The studies that come with pgolf, sorted by name, with their titles."""
    files = [entry for entry in resources.files("pgolf.study").iterdir() if entry.name.endswith(".toml")]
    titles = {file.name[:-5]: tomllib.loads(file.read_text("utf-8"))["title"] for file in files}
    return dict(sorted(titles.items()))


def usual_folder(name: str, small: bool) -> Path:
    """Where a study goes if nobody says where."""
    return Path("studies") / f"{Path(name).stem}{'-small' if small else ''}"


def load_study(name: str, small: bool = False) -> Study:
    """Read and check a shipped study, or a TOML file; ``small``: with the keys of its ``[small]`` table.

    PgolfError where it, or the recipe of any cell, is malformed or contradictory; every problem is listed.
    """
    tree = _load_tree(name)
    smaller = tree.pop("small", None)
    if small:
        if not isinstance(smaller, dict):
            raise PgolfError(f"study {name}: has no [small] table; run it without --small")
        tree |= smaller
    try:
        file = StudyFile.model_validate(tree)
    except pydantic.ValidationError as error:
        raise PgolfError(f"study {name}: {'; '.join(map(_describe, error.errors()))}") from error
    cells, problems = _plan(file)
    if problems:
        raise PgolfError(f"study {name}: {'; '.join(dict.fromkeys(problems))}")
    return Study(file, tuple(cells))


def _load_tree(name: str) -> dict[str, Any]:
    path, folder = Path(name), Path()
    if path.is_dir():
        raise PgolfError(f"study {name}: is a folder; name the study's .toml file (its --out is the folder)")
    if name.endswith(".toml") and not path.exists():
        raise PgolfError(f"study {name}: no such file")
    if name.endswith(".toml") or path.is_file():
        text, folder = read_text(path), path.parent
    else:
        names = list(study_titles())
        if name not in names:
            raise PgolfError(f"study {name!r}: unknown{nearest(name, names)}; shipped: {', '.join(names)}")
        text = (resources.files("pgolf.study") / f"{name}.toml").read_text("utf-8")
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PgolfError(f"study {name}: not valid TOML ({error})") from error
    if "recipe" not in tree and ("model" in tree or "extends" in tree):
        raise PgolfError(f"study {name}: is a recipe, not a study; run it with `pgolf run {name}`")
    parts = [part for part in (tree, tree.get("small")) if isinstance(part, dict)]
    for table in (*parts, *(cell for part in parts for cell in part.get("cells", ()))):
        # A recipe's file lies beside the study.
        recipe = table.get("recipe") if isinstance(table, dict) else None
        if isinstance(recipe, str) and recipe.endswith(".toml"):
            table["recipe"] = str((folder / recipe).absolute())
    return tree


def _describe(entry: Any) -> str:
    key = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "missing":
        return f"{key} is missing"
    if entry["type"] != "extra_forbidden":
        return f"{key}: {entry['msg'][0].lower()}{entry['msg'][1:]} (got {entry['input']!r})"
    hint = nearest(key, [*StudyFile.model_fields, "small"])
    if not hint and key in {known.partition(".")[0] for known in recipe_keys()}:
        hint = "; recipe keys belong into [base], [grid] or [[cells]]"
    return f"unknown key {key}{hint}"


def _plan(file: StudyFile) -> tuple[list[Planned], list[str]]:
    """All cells, and everything that is wrong with the study."""
    base, grid = flattened(file.base), flattened(file.grid)
    entries = [flattened(entry) for entry in file.cells] or [{}]
    problems = []
    for what, values in (("seeds", file.seeds), ("scores", file.scores)):
        problems += [] if values else [f"{what} is empty"]
        problems += [f"{what} names {value!r} twice" for value in _twice(values)]
    known = recipe_keys()
    plain = [{key: value for key, value in entry.items() if key != "recipe"} for entry in entries]
    for where, keys in (("[base]", base), ("[grid]", grid), *(("[[cells]]", entry) for entry in plain)):
        problems += [f"{where} {key}: seeds are listed under seeds" for key in keys if key == "train.seed"]
        problems += [f"{where} unknown key {key}{nearest(key, known)}" for key in keys if key not in known]
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            problems.append(f"[grid] {key}: give a list of values (got {values!r})")
        if any(key in entry for entry in entries):
            problems.append(f"{key} is in [[cells]] and in [grid]")
    names = {file.recipe, *(entry.get("recipe", file.recipe) for entry in entries)}
    roots = {name: load_recipe(name).model_dump(mode="json") for name in sorted(names)}
    if problems:
        return [], problems
    grids = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    choices = [entry | chosen for entry in entries for chosen in grids]
    cells: list[Planned] = []
    wrong: dict[str, list[str]] = {}
    for changes, seed in itertools.product(choices, file.seeds):
        try:
            keys = base | changes | {"train.seed": seed}
            tree = copy.deepcopy(roots[keys.pop("recipe", file.recipe)])
            for key, value in keys.items():
                set_in_tree(tree, key.split("."), value)
            recipe = recipe_from_tree(tree, "")
        except PgolfError as error:
            wrong.setdefault(str(error).removeprefix("recipe : "), []).append(label_of(changes))
            continue
        cells += _at_steps(file, changes, seed, recipe, problems)
    for message, labels in wrong.items():
        others = f" (and {len(labels) - 1} more)" if len(labels) > 1 else ""
        problems.append(f"cell {labels[0]}{others}: {message}")
    # All seeds of one choice of keys next to each other, otherwise in the given order.
    order = list(dict.fromkeys(cell.label for cell in cells))
    return _named(sorted(cells, key=lambda cell: order.index(cell.label)), problems), problems


def _at_steps(
    file: StudyFile, changes: dict[str, Any], seed: int, recipe: Recipe, problems: list[str]
) -> list[Planned]:
    if not file.at_steps:
        return [Planned("", changes, seed, recipe)]
    end = recipe.train.steps
    if outside := [step for step in file.at_steps if not 0 < step <= end]:
        problems.append(f"at_steps {outside} are not between 1 and train.steps {end}")
    if recipe.train.wallclock_seconds:
        problems.append("at_steps needs runs of a known number of steps; set train.wallclock_seconds to 0")
    every = [(step, None if step == end else step) for step in sorted({*file.at_steps, end})]
    return [Planned("", changes | {"step": step}, seed, recipe, at) for step, at in every]


def _named(cells: Sequence[Planned], problems: list[str]) -> list[Planned]:
    seen: dict[tuple[str, int | None], str] = {}
    for cell in cells:
        other = seen.setdefault((cell.recipe.digest(), cell.step), cell.label)
        if other != cell.label:
            problems.append(f"cells {other!r} and {cell.label!r} are the same run; take one out")
    for label in _twice(f"{cell.label}, seed {cell.seed}" for cell in cells):
        problems.append(f"cell {label!r} is listed twice")
    names = [_name(cell) for cell in cells]
    common = Counter(name.lower() for name in names)
    ends = [f"_{_short_digest(cell)}" if common[_name(cell).lower()] > 1 else "" for cell in cells]
    return [replace(cell, name=name + end) for cell, name, end in zip(cells, names, ends, strict=True)]


def _name(cell: Planned) -> str:
    parts = words_of(cell.changes, "-") or ["base"]
    words = [re.sub(r"[^A-Za-z0-9.+-]+", "-", part).strip("-") for part in [*parts, f"seed-{cell.seed}"]]
    name = "_".join(words)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 9]}_{_short_digest(cell)}"


def _short_digest(cell: Planned) -> str:
    return hashlib.sha256(json.dumps([dict(cell.changes), cell.seed]).encode()).hexdigest()[:8]


def _twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]
