"""Two measurements of the same work: which is faster, as far as their repeats can show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json

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
    """How the interval was found."""
    verdict: str
    """What the second is: FASTER, SLOWER, SAME or UNKNOWN."""
    environment: dict[str, tuple[Any, Any]]
    """What differs."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()
        }

    def rows(self) -> list[tuple[str, str]]:
        """Labelled lines."""
        spread = (
            ""
            if self.interval is None
            else f" ({self.interval[0]:.3f} to {self.interval[1]:.3f}, {self.method})"
        )
        differs = [(f"differs: {name}", f"{one} -> {two}") for name, (one, two) in self.environment.items()]
        return [
            ("work", f"{self.bench}, {self.recipe}: {self.scope}"),
            ("medians", f"{self.milliseconds[0]:,.3f} ms and {self.milliseconds[1]:,.3f} ms"),
            ("ratio", f"{self.ratio:.3f}{spread}"),
            ("the second is", self.verdict),
            *(differs or [("environment", "the same")]),
        ]


def compare_benches(first: Path, second: Path) -> Comparison:
    """Compare two files that ``pgolf bench train|eval|ttt|pack --out`` wrote.

    Raises:
        PgolfError: a file is no such measurement, or they measured different work.
    """
    a, b = _read(first), _read(second)
    _check_same_work(a, b, f"{first} and {second}")
    medians = float(a["milliseconds"]), float(b["milliseconds"])
    interval, method = _interval(a.get("milliseconds_repeats", []), b.get("milliseconds_repeats", []))
    verdict = UNKNOWN
    if interval is not None:
        verdict = FASTER if interval[0] > 1 else SLOWER if interval[1] < 1 else SAME
    here, there = a.get("environment", {}), b.get("environment", {})
    names = [name for name in here | there if here.get(name) != there.get(name)]
    return Comparison(
        bench=a["bench"],
        recipe=a["recipe"],
        scope=a["scope"],
        milliseconds=medians,
        ratio=medians[0] / medians[1],
        interval=interval,
        method=method,
        verdict=verdict,
        environment={name: (here.get(name), there.get(name)) for name in names},
    )


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    needed = ("bench", "recipe", "scope", "milliseconds", "figure")
    if not isinstance(found, dict) or not all(name in found for name in needed):
        raise PgolfError(
            f"{path}: no measurement of speed; give a file of `pgolf bench train|eval|ttt|pack --out`"
        )
    return found


def _check_same_work(a: Mapping[str, Any], b: Mapping[str, Any], where: str) -> None:
    def differ(what: str, one: object, two: object) -> PgolfError:
        return PgolfError(
            f"{where}: measured different work ({what}: {one} and {two}); measure the same to compare"
        )

    for name in ("bench", "recipe", "scope"):
        if a[name] != b[name]:
            raise differ(name, a[name], b[name])
    # A key that only one version of pgolf knew says nothing.
    ours, theirs = dict(_flat(a.get("settings", {}))), dict(_flat(b.get("settings", {})))
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            raise differ(name, ours[name], theirs[name])
    if abs(a["figure"] - b["figure"]) > _FIGURE_TOLERANCE * abs(a["figure"]):
        raise differ("the computed figure", f"{a['figure']:.6g}", f"{b['figure']:.6g}")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _interval(first: list[float], second: list[float]) -> tuple[tuple[float, float] | None, str]:
    """Where the ratio of the medians may be, given the repeats (milliseconds)."""
    if not first or not second:
        return None, ""
    if min(len(first), len(second)) < _ENOUGH_REPEATS:
        return (min(first) / max(second), max(first) / min(second)), "fastest and slowest repeats"
    generator = np.random.default_rng(0)
    medians = [
        np.median(generator.choice(np.asarray(times), size=(_RESAMPLES, len(times))), axis=1)
        for times in (first, second)
    ]
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return (float(low), float(high)), "95 % of resampled repeats"
