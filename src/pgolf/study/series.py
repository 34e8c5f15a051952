"""Which cells of a study make a series: the same recipe but for one number."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pgolf.study.cells import Cell
from pgolf.study.statements import Series

Measured = tuple[Sequence[Cell], Mapping[int, float]]
"""Cells that differ in the seed alone, and a value of theirs by seed."""

FEWEST = 3
"""Different values of a key that make a series: two are a comparison."""


def groups_series(groups: Sequence[Measured], quantity: str, digits: int = 4) -> list[Series]:
    """Every series of at least three values of a numeric key, all other changes being equal.

    A cell that leaves a key as it is takes part with the value in its run's recipe. Where several keys change together,
    one value of each for every value of the first, they make one series named after all of them.
    """
    keys = list(dict.fromkeys(key for cells, _ in groups for key in cells[0].changes))
    settings = [{key: _value(cells[0], key) for key in keys} for cells, _ in groups]
    numeric = [key for key in keys if all(_is_number(setting[key]) for setting in settings)]
    found = []
    for key in numeric:
        alike: dict[str, list[tuple[float, Mapping[int, float]]]] = {}
        for setting, (_, values) in zip(settings, groups, strict=True):
            rest = {other: value for other, value in setting.items() if other != key}
            alike.setdefault(repr(rest), []).append((float(setting[key]), values))
        for rest_text, levels in alike.items():
            where = _where(rest_text, key, settings, levels, len(alike))
            found += _series(levels, quantity, f"{key}{where}", digits)
    if not found and numeric:
        levels = [(float(setting[numeric[0]]), values) for setting, (_, values) in zip(settings, groups, strict=True)]
        with_others = f" (with {', '.join(key for key in keys if key != numeric[0])})" if len(keys) > 1 else ""
        found = _series(levels, quantity, f"{numeric[0]}{with_others}", digits)
    return found


def _series(
    levels: Sequence[tuple[float, Mapping[int, float]]], quantity: str, x_name: str, digits: int
) -> list[Series]:
    ordered = sorted((level for level in levels if level[1]), key=lambda level: level[0])
    if len({x for x, _ in ordered}) < max(FEWEST, len(ordered)):
        return []
    return [Series(quantity, x_name, ordered, digits)]


def _where(rest: str, key: str, settings: Sequence[Mapping[str, Any]], levels: Sequence[object], kinds: int) -> str:
    """The other changes of a series, where there is more than one series of the key."""
    if kinds == 1 or len(levels) < FEWEST:
        return ""
    for setting in settings:
        others = {other: value for other, value in setting.items() if other != key}
        if repr(others) == rest:
            return " at " + ", ".join(f"{other}={value}" for other, value in others.items())
    return ""


def _value(cell: Cell, key: str) -> Any:
    """A key's value in a cell; what it does not change is looked up in its recipe. None if that is not there."""
    if key in cell.changes:
        return cell.changes[key]
    path = cell.folder / "recipe.toml"
    if not path.is_file():
        return None
    tree: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
