"""Which cells of a study make a series: the same recipe but for one number."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pgolf.runtime.files import read_text
from pgolf.runtime.run_files import RECIPE
from pgolf.study.cells import Cell
from pgolf.study.statements import Series

Measured = tuple[Sequence[Cell], Mapping[int, float]]
"""Cells that differ in the seed alone, and a value of theirs by seed."""

FEWEST = 3
"""Different values of a key that make a series: two are a comparison."""


def groups_series(groups: Sequence[Measured], quantity: str, digits: int = 4) -> list[Series]:
    """Every series of at least three values of a numeric key, all other changes being equal.

    A cell that leaves a key as it is takes part with the value in its run's recipe. Where that gives none,
    but several numeric keys rise or fall together, they make one series named after the first and the others.
    """
    keys = list(dict.fromkeys(key for cells, _ in groups for key in cells[0].changes))
    settings = [{key: _value(cells[0], key) for key in keys} for cells, _ in groups]
    found = []
    for key in keys:
        alike: dict[str, list[tuple[float, Mapping[int, float]]]] = {}
        for setting, (_, values) in zip(settings, groups, strict=True):
            if _is_number(setting[key]):
                rest = ", ".join(f"{other}={value}" for other, value in setting.items() if other != key)
                alike.setdefault(rest, []).append((float(setting[key]), values))
        several = sum(len(levels) >= FEWEST for levels in alike.values()) > 1
        for rest, levels in alike.items():
            found += _series(levels, quantity, f"{key} at {rest}" if several else key, digits)
    if not found and len(keys) > 1 and _move_together(settings):
        first, *others = keys
        levels = [
            (float(setting[first]), values) for setting, (_, values) in zip(settings, groups, strict=True)
        ]
        found = _series(levels, quantity, f"{first} (with {', '.join(others)})", digits)
    return found


def _move_together(settings: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all keys are numbers that only rise, or only fall, with the first."""
    rows = [list(setting.values()) for setting in settings]
    if not all(_is_number(value) for row in rows for value in row):
        return False
    columns = list(zip(*sorted(rows), strict=True))
    return all(list(column) in (sorted(column), sorted(column, reverse=True)) for column in columns)


def _series(
    levels: Sequence[tuple[float, Mapping[int, float]]], quantity: str, x_name: str, digits: int
) -> list[Series]:
    ordered = sorted((level for level in levels if level[1]), key=lambda level: level[0])
    if len({x for x, _ in ordered}) < max(FEWEST, len(ordered)):
        return []
    # Moments ("step") are of the same runs; everything else is of runs of its own.
    return [Series(quantity, x_name, ordered, digits, within_runs=x_name.split()[0] == "step")]


def _value(cell: Cell, key: str) -> Any:
    """A key's value in a cell; what it does not change is looked up in its recipe. None if that is not there."""
    if key in cell.changes:
        return cell.changes[key]
    path = cell.folder / RECIPE
    if not path.is_file():
        return None
    tree: Any = tomllib.loads(read_text(path))
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
