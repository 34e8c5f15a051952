"""Curves through few points: a power law and a saturation, with honest intervals.

Both have the form ``y = a + b * g(x)`` with one shape parameter in ``g``. For a fixed shape, a and b are
linear least squares; so the sum of squares is a function of the shape alone (variable projection, Golub and
Pereyra 1973), which is searched from end to end. Intervals are of the profile likelihood (Bates and Watts
1988, section 6.1): all values with which the other parameters still reach a sum of squares up to ``S * (1 + F
/ (n - 3))``, F being the 95 % point of F(1, n - 3). Unlike a covariance they stay true for four points and
say so where a parameter is not determined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Form = Literal["power law", "saturation"]
FORMS: tuple[Form, ...] = ("power law", "saturation")

FEWEST = 4
"""Different x that a fit of three parameters needs: one more than it would go through exactly."""
COVERAGE = 0.95
_GRID, _LINE_POINTS = 601, 60
# Exponents outside are no power laws that a study could tell from a logarithm or from a step.
_EXPONENTS = (0.01, 20.0)
# Time constants from a small part of the smallest gap to many times the range, where the curve is straight.
_CONSTANTS = (0.05, 50.0)

Array = NDArray[np.float64]


class Parameter(NamedTuple):
    """A fitted number and its 95 % interval; None where no bound could be found."""

    value: float
    low: float | None
    high: float | None


class Fit(NamedTuple):
    """A curve ``y = a + b * x**-shape`` (power law) or ``y = a + b * exp(-x / shape)`` (saturation)."""

    form: Form
    a: Parameter
    """What y comes to for endless x, in the unit of y."""
    b: float
    shape: Parameter
    """Exponent, or constant in the unit of x after which 1/e of the distance to ``a`` is left."""
    leave_one_out: float
    """Root mean square error of predicting the points of each x from a fit to all others."""
    line: Sequence[tuple[float, float, float, float]]
    """(x, y, low, high) over the range of the points; an interval of the curve, not of new points."""

    @property
    def formula(self) -> str:
        """The curve in one line."""
        shape = f"{self.shape.value:.4g}"
        basis = f"x^-{shape}" if self.form == "power law" else f"exp(-x / {shape})"
        return f"y = {self.a.value:.5g} {'+' if self.b >= 0 else '-'} {abs(self.b):.4g} * {basis}"


class NoFit(NamedTuple):
    """Why there is no curve."""

    form: Form
    reason: str


def fit(points: Sequence[tuple[float, float]], form: Form) -> Fit | NoFit:
    """Fit one form to points (x, y), x positive; several may share an x (seeds). Or why there is no curve."""
    x, y = (np.array([point[side] for point in points], dtype=np.float64) for side in (0, 1))
    if (different := len(np.unique(x))) < FEWEST:
        needed = f"three parameters need at least {FEWEST}"
        return NoFit(form, f"too few points: {different} different x, {needed}")
    if x.min() <= 0:
        return NoFit(form, "x has to be positive")
    if np.ptp(y) <= 1e-12 * np.abs(y).max():
        return NoFit(form, "all y are equal")
    squares = _Squares(form, x, y)
    best, at_edge = squares.best()
    if at_edge:
        what = "exponent" if form == "power law" else "constant"
        never = f"its best {what} has no finite value above 0"
        return NoFit(form, f"the points do not bend like a {form}: {never}")
    profile = _Profile(squares, best)
    first = x.min() ** -best if form == "power law" else np.exp(-x.min() / best)
    b, line = float(profile.lines.f[0] / first), profile.line(np.geomspace(x.min(), x.max(), _LINE_POINTS))
    return Fit(form, profile.level(), b, profile.shape(), _left_out_error(form, x, y), line)


class _Lines(NamedTuple):
    """Least squares of ``y = a + f * g`` for each of S shapes, g being the scaled basis; all (S,).

    ``g_square`` is the sum of squares of g around its mean, ``sums`` the sum of squares that is left.
    """

    a: Array
    f: Array
    g_mean: Array
    g_square: Array
    sums: Array


class _Squares:
    """The sum of squares of a form through points, by its shape."""

    def __init__(self, form: Form, x: Array, y: Array) -> None:
        self.form, self.x, self.y, self.first = form, x, y, float(x.min())
        gap, reach = np.diff(np.unique(x)).min(), np.ptp(x)
        constants = (_CONSTANTS[0] * float(gap), _CONSTANTS[1] * float(reach))
        self.shapes = np.geomspace(*(_EXPONENTS if form == "power law" else constants), _GRID)

    def scaled(self, x: Array, shapes: Array) -> Array:
        """(S, N): the basis divided by its value at the first x, so that tiny numbers lose no digits."""
        if self.form == "power law":
            return np.asarray((x / self.first) ** -shapes[:, None])
        return np.exp((self.first - x) / shapes[:, None])

    def lines(self, shapes: Array) -> _Lines:
        """The best line for each shape."""
        g, mean = self.scaled(self.x, shapes), self.y.mean()
        g_mean = g.mean(axis=1)
        centred = g - g_mean[:, None]
        g_square = np.maximum((centred**2).sum(axis=1), np.finfo(np.float64).tiny)
        f = (centred @ (self.y - mean)) / g_square
        rest = (self.y - mean) - f[:, None] * centred
        return _Lines(mean - f * g_mean, f, g_mean, g_square, (rest**2).sum(axis=1))

    def at(self, log_shape: float) -> float:
        return float(self.lines(np.array([math.exp(log_shape)])).sums[0])

    def best(self) -> tuple[float, bool]:
        """The shape of least squares, and whether it is at the edge of what is searched."""
        from scipy import optimize

        least = int(np.argmin(self.lines(self.shapes).sums))
        if least in (0, _GRID - 1):
            return float(self.shapes[least]), True
        bounds = np.log(self.shapes[[least - 1, least + 1]])
        found = optimize.minimize_scalar(self.at, bounds=bounds, method="bounded", options={"xatol": 1e-10})
        return math.exp(float(found.x)), False


def _left_out_error(form: Form, x: Array, y: Array) -> float:
    # Others that do not bend predict with the limit of the form: a straight line, or one in log x.
    errors: list[float] = []
    for place in np.unique(x):
        others = _Squares(form, x[x != place], y[x != place])
        shape = np.array([others.best()[0]])
        line = others.lines(shape)
        predicted = line.a[0] + line.f[0] * others.scaled(np.array([place]), shape)[0, 0]
        errors += (y[x == place] - predicted).tolist()
    return math.sqrt(math.fsum(error**2 for error in errors) / len(errors))


class _Profile:
    """The sum of squares along the shape, and the intervals that follow from it."""

    def __init__(self, squares: _Squares, best: float) -> None:
        from scipy import special

        self.squares, self.best = squares, best
        least, freedom = squares.at(math.log(best)), len(squares.x) - 3
        self.most = least * (1 + float(special.fdtri(1, freedom, COVERAGE)) / freedom)
        inside = squares.lines(squares.shapes).sums <= self.most
        self.open = bool(inside[0]), bool(inside[-1])
        within = np.append(squares.shapes[inside], best)
        low, high = self._edge(float(within.min()), -1), self._edge(float(within.max()), 1)
        # The best one comes first.
        self.allowed = np.concatenate([[best], np.geomspace(low, high, _GRID)])
        self.lines = squares.lines(self.allowed)

    def _edge(self, last: float, way: Literal[-1, 1]) -> float:
        """Where the profile leaves the interval after the last shape inside, or the edge of the search."""
        from scipy import optimize

        def above(log: float) -> float:
            return self.squares.at(log) - self.most

        if self.open[way > 0] or above(math.log(last)) >= 0:
            return last
        shapes = self.squares.shapes
        beyond = shapes[shapes < last].max() if way < 0 else shapes[shapes > last].min()
        return math.exp(float(optimize.brentq(above, math.log(last), math.log(beyond))))

    def shape(self) -> Parameter:
        """The shape parameter; a side that reaches the edge of the search is open."""
        low, high = float(self.allowed[1]), float(self.allowed[-1])
        return Parameter(self.best, None if self.open[0] else low, None if self.open[1] else high)

    def level(self) -> Parameter:
        """``a``; a bound that is reached at an open edge of the search is none."""
        values, reach = self._reach(np.zeros_like(self.allowed))
        lows, highs = values - reach, values + reach
        edges = [index for index, is_open in zip((1, -1), self.open, strict=True) if is_open]
        low = None if any(lows[edge] <= lows.min() for edge in edges) else float(lows.min())
        high = None if any(highs[edge] >= highs.max() for edge in edges) else float(highs.max())
        return Parameter(float(values[0]), low, high)

    def line(self, places: Array) -> list[tuple[float, float, float, float]]:
        """The curve and its interval at some x."""
        line = []
        for place, basis in zip(places, self.squares.scaled(places, self.allowed).T, strict=True):
            values, reach = self._reach(basis)
            ends = float((values - reach).min()), float((values + reach).max())
            line.append((float(place), float(values[0]), *ends))
        return line

    def _reach(self, basis: Array) -> tuple[Array, Array]:
        """``a + f * basis`` at every allowed shape, and how far it may go from there."""
        lines = self.lines
        size = 1 / len(self.squares.x) + (basis - lines.g_mean) ** 2 / lines.g_square
        room = np.maximum(0.0, self.most - lines.sums)
        return lines.a + lines.f * basis, np.sqrt(size * room)
