"""Two measurements of the same work: which is faster, as far as their repeats can show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json
from pgolf.runtime.run_files import flattened

# With fewer repeats resampling them says little; the ranges are compared instead.
_ENOUGH_REPEATS = 5
_RESAMPLES = 10_000
# Figures of the same work differ by number formats, as on a CPU and a GPU; other work gives other figures.
_FIGURE_TOLERANCE = 0.02
FASTER, SLOWER, SAME = "faster", "slower", "no difference that the repeats can show"
UNKNOWN = "unknown: a file holds no single repeats; measure again"


@dataclass(frozen=True)
class Comparison:
    """The second measurement beside the first."""

    bench: str
    recipe: str
    scope: str
    milliseconds: tuple[float, float]
    """Medians of both."""
    ratio: float
    """First median / second median: above 1 the second is faster."""
    interval: tuple[float, float] | None
    """Where the ratio may be; None where a file holds no single repeats."""
    method: str
    verdict: str
    """What the second is: FASTER, SLOWER, SAME or UNKNOWN."""
    environment: dict[str, tuple[Any, Any]]
    """What differs."""

    def rows(self) -> list[tuple[str, str]]:
        """Labelled lines."""
        found = self.interval
        spread = "" if found is None else f" ({found[0]:.3f} to {found[1]:.3f}, {self.method})"
        differs = [
            (f"differs: {name.replace('_', ' ')}", f"{one} -> {two}")
            for name, (one, two) in self.environment.items()
        ]
        return [
            ("work", f"{self.bench}, {self.recipe}: {self.scope}"),
            ("medians", f"{self.milliseconds[0]:,.3f} ms and {self.milliseconds[1]:,.3f} ms"),
            ("ratio", f"{self.ratio:.3f}{spread}"),
            ("the second is", self.verdict),
            *(differs or [("environment", "the same")]),
        ]


def compare_benches(first: Path, second: Path) -> Comparison:
    """Compare two files of ``pgolf bench ... --out``; PgolfError where one is none, or the work differs."""
    a, b = _read(first), _read(second)
    _check_same_work(a, b, f"{first} and {second}")
    medians = float(a["milliseconds"]), float(b["milliseconds"])
    interval, method = _interval(a.get("milliseconds_repeats", []), b.get("milliseconds_repeats", []))
    verdict = UNKNOWN
    if interval is not None:
        verdict = FASTER if interval[0] > 1 else SLOWER if interval[1] < 1 else SAME
    here, there = a.get("environment", {}), b.get("environment", {})
    environments = {name: (here.get(name), there.get(name)) for name in here | there}
    differing = {name: pair for name, pair in environments.items() if pair[0] != pair[1]}
    ratio, work = medians[0] / medians[1], (a["bench"], a["recipe"], a["scope"])
    return Comparison(*work, medians, ratio, interval, method, verdict, differing)


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    needed = ("bench", "recipe", "scope", "milliseconds", "figure")
    if not isinstance(found, dict) or not all(name in found for name in needed):
        remedy = "give a file of `pgolf bench train|eval|ttt|pack --out`"
        raise PgolfError(f"{path}: no measurement of speed; {remedy}")
    return found


def _check_same_work(a: Mapping[str, Any], b: Mapping[str, Any], where: str) -> None:
    named = [(name, a[name], b[name]) for name in ("bench", "recipe", "scope")]
    # A key that only one version of pgolf knew says nothing.
    ours, theirs = flattened(a.get("settings", {})), flattened(b.get("settings", {}))
    named += [(name, ours[name], theirs[name]) for name in ours if name in theirs]
    if abs(a["figure"] - b["figure"]) > _FIGURE_TOLERANCE * abs(a["figure"]):
        named.append(("the computed figure", f"{a['figure']:.6g}", f"{b['figure']:.6g}"))
    for what, one, two in named:
        if one != two:
            different = f"measured different work ({what}: {one} and {two})"
            raise PgolfError(f"{where}: {different}; measure the same to compare")


def _interval(first: list[float], second: list[float]) -> tuple[tuple[float, float] | None, str]:
    """Where the ratio of the medians may be, given the repeats (milliseconds)."""
    if not first or not second:
        return None, ""
    if min(len(first), len(second)) < _ENOUGH_REPEATS:
        return (min(first) / max(second), max(first) / min(second)), "fastest and slowest repeats"
    generator = np.random.default_rng(0)
    drawn = [generator.choice(np.asarray(times), size=(_RESAMPLES, len(times))) for times in (first, second)]
    low, high = np.quantile(np.median(drawn[0], axis=1) / np.median(drawn[1], axis=1), [0.025, 0.975])
    return (float(low), float(high)), "95 % of resampled repeats"
