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
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Form = Literal["power law", "saturation"]
FORMS: tuple[Form, ...] = ("power law", "saturation")

FEWEST = 4
"""Different x that a fit of three parameters needs: one more than it would go through exactly."""
COVERAGE = 0.95
_GRID = 601
_LINE_POINTS = 60
# Exponents outside are no power laws that a study could tell from a logarithm or from a step.
_EXPONENTS = (0.01, 20.0)
# Time constants from a small part of the smallest gap to many times the range, where the curve is straight.
_CONSTANTS = (0.05, 50.0)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Parameter:
    """A fitted number and its 95 % interval."""

    value: float
    low: float | None
    """None: no lower bound could be found."""
    high: float | None


@dataclass(frozen=True)
class Fit:
    """A curve ``y = a + b * x**-shape`` (power law) or ``y = a + b * exp(-x / shape)`` (saturation)."""

    form: Form
    a: Parameter
    """What y comes to for endless x, in the unit of y."""
    b: Parameter
    shape: Parameter
    """Exponent, or constant in the unit of x after which 1/e of the distance to ``a`` is left."""
    residual: float
    """Standard deviation of the points around the curve, n - 3 degrees of freedom."""
    leave_one_out: float
    """Root mean square error of predicting the points of each x from a fit to all others."""
    line: Sequence[tuple[float, float, float, float]]
    """(x, y, low, high) over the range of the points; an interval of the curve, not of new points."""

    def at(self, x: float) -> float:
        """The curve's value."""
        return self.a.value + self.b.value * _basis(self.form, x, self.shape.value)

    @property
    def formula(self) -> str:
        """The curve in one line."""
        sign, b = ("+" if self.b.value >= 0 else "-"), abs(self.b.value)
        if self.form == "power law":
            return f"y = {self.a.value:.5g} {sign} {b:.4g} * x^-{self.shape.value:.4g}"
        return f"y = {self.a.value:.5g} {sign} {b:.4g} * exp(-x / {self.shape.value:.4g})"


@dataclass(frozen=True)
class NoFit:
    """Why there is no curve."""

    form: Form
    reason: str


def fit(points: Sequence[tuple[float, float]], form: Form) -> Fit | NoFit:
    """Fit one form to points (x, y), x positive; several points may share an x (seeds).

    Returns:
        A curve, or why none can be given: too few different x, or points that do not have this form.
    """
    x, y = (np.array([point[side] for point in points], dtype=np.float64) for side in (0, 1))
    different = len(set(x.tolist()))
    if different < FEWEST:
        return NoFit(
            form, f"too few points: {different} different x, three parameters need at least {FEWEST}"
        )
    if x.min() <= 0:
        return NoFit(form, "x has to be positive")
    if np.ptp(y) <= 1e-12 * np.abs(y).max():
        return NoFit(form, "all y are equal")
    shapes = _shapes(form, x)
    best, at_edge = _best_shape(form, x, y, shapes)
    if at_edge:
        what = "exponent" if form == "power law" else "constant"
        return NoFit(
            form, f"the points do not bend like a {form}: its best {what} has no finite value above 0"
        )
    profile = _Profile(form, x, y, shapes, best)
    residual = math.sqrt(profile.least / (len(x) - 3))
    left_out = _left_out_error(form, x, y)
    return Fit(form, profile.level(), profile.factor(), profile.shape(), residual, left_out, profile.line())


def _shapes(form: Form, x: Array) -> Array:
    """Candidates of the shape parameter, evenly spaced in their logarithm."""
    if form == "power law":
        return np.geomspace(*_EXPONENTS, _GRID)
    return np.geomspace(_CONSTANTS[0] * np.diff(np.unique(x)).min(), _CONSTANTS[1] * np.ptp(x), _GRID)


def _basis(form: Form, x: float, shape: float) -> float:
    return float(x**-shape) if form == "power law" else math.exp(-x / shape)


def _scaled(form: Form, x: Array, first: float, shapes: Array) -> Array:
    """(S, N): the basis divided by its value at ``first``; so tiny numbers do not lose the least squares."""
    if form == "power law":
        return np.asarray((x / first) ** -shapes[:, None])
    return np.exp((first - x) / shapes[:, None])


@dataclass(frozen=True)
class _Lines:
    """Least squares of ``y = a + f * g`` for each of S shapes, g being the scaled basis."""

    a: Array
    f: Array
    g_mean: Array
    g_square: Array
    """Sum of squares of g around its mean."""
    sums: Array
    """Sums of squares that are left."""


def _lines(form: Form, x: Array, y: Array, shapes: Array) -> _Lines:
    g = _scaled(form, x, float(x.min()), shapes)
    g_mean = g.mean(axis=1)
    centred = g - g_mean[:, None]
    g_square = np.maximum((centred**2).sum(axis=1), np.finfo(np.float64).tiny)
    f = (centred @ (y - y.mean())) / g_square
    rest = (y - y.mean()) - f[:, None] * centred
    return _Lines(y.mean() - f * g_mean, f, g_mean, g_square, (rest**2).sum(axis=1))


def _sum_of_squares(form: Form, x: Array, y: Array, log_shape: float) -> float:
    return float(_lines(form, x, y, np.array([math.exp(log_shape)])).sums[0])


def _best_shape(form: Form, x: Array, y: Array, shapes: Array) -> tuple[float, bool]:
    """The shape of least squares, and whether it is at the edge of what is searched."""
    from scipy import optimize

    least = int(np.argmin(_lines(form, x, y, shapes).sums))
    if least in (0, len(shapes) - 1):
        return float(shapes[least]), True
    found = optimize.minimize_scalar(
        lambda log: _sum_of_squares(form, x, y, log),
        bounds=(math.log(shapes[least - 1]), math.log(shapes[least + 1])),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return math.exp(float(found.x)), False


def _left_out_error(form: Form, x: Array, y: Array) -> float:
    """Root mean square error of predicting the points of each x from all others.

    Others that do not bend predict with the limit of the form: a straight line, or one in log x.
    """
    squares: list[float] = []
    for place in np.unique(x):
        kept = x != place
        shape, _ = _best_shape(form, x[kept], y[kept], _shapes(form, x[kept]))
        line = _lines(form, x[kept], y[kept], np.array([shape]))
        g = _scaled(form, np.array([place]), float(x[kept].min()), np.array([shape]))[0, 0]
        squares += [float(value) ** 2 for value in y[~kept] - (line.a[0] + line.f[0] * g)]
    return math.sqrt(math.fsum(squares) / len(squares))


class _Profile:
    """The sum of squares along the shape, and the intervals that follow from it."""

    def __init__(self, form: Form, x: Array, y: Array, shapes: Array, best: float) -> None:
        from scipy import special

        self.form, self.x, self.y, self.best = form, x, y, best
        self.least = _sum_of_squares(form, x, y, math.log(best))
        freedom = len(x) - 3
        self.most = self.least * (1 + float(special.fdtri(1, freedom, COVERAGE)) / freedom)
        inside = _lines(form, x, y, shapes).sums <= self.most
        self.open = bool(inside[0]), bool(inside[-1])
        low, high = self._edge(shapes, inside, -1), self._edge(shapes, inside, 1)
        # The best one comes first.
        self.allowed = np.concatenate([[best], np.geomspace(low, high, _GRID)])
        self.lines = _lines(form, x, y, self.allowed)

    def _edge(self, shapes: Array, inside: NDArray[np.bool_], way: Literal[-1, 1]) -> float:
        """Where the profile leaves the interval, or the edge of the search."""
        from scipy import optimize

        if self.open[way > 0]:
            return float(shapes[0 if way < 0 else -1])
        within = np.append(shapes[inside], self.best)
        last = float(within.min() if way < 0 else within.max())
        beyond = shapes[shapes < last] if way < 0 else shapes[shapes > last]
        first_out = float(beyond.max() if way < 0 else beyond.min())

        def above(log: float) -> float:
            return _sum_of_squares(self.form, self.x, self.y, log) - self.most

        if above(math.log(last)) >= 0:
            return last
        return math.exp(float(optimize.brentq(above, math.log(last), math.log(first_out))))

    def shape(self) -> Parameter:
        """The shape parameter; a side that reaches the edge of the search is open."""
        low, high = self.open
        return Parameter(
            self.best, None if low else float(self.allowed[1]), None if high else float(self.allowed[-1])
        )

    def level(self) -> Parameter:
        """``a``."""
        return self._bounded(1.0, np.zeros_like(self.allowed))

    def factor(self) -> Parameter:
        """``b``: the scaled factor divided by the basis at the smallest x."""
        units = np.array([_basis(self.form, float(self.x.min()), float(shape)) for shape in self.allowed])
        if units.min() < 1e-300:
            return Parameter(float(self.lines.f[0] / units[0]), None, None)
        return self._bounded(0.0, 1 / units)

    def line(self) -> list[tuple[float, float, float, float]]:
        """The curve and its interval over the range of the points."""
        line = []
        for place in map(float, np.geomspace(self.x.min(), self.x.max(), _LINE_POINTS)):
            basis = _scaled(self.form, np.array([place]), float(self.x.min()), self.allowed)[:, 0]
            values, reach = self._combination(1.0, basis)
            line.append(
                (place, float(values[0]), float((values - reach).min()), float((values + reach).max()))
            )
        return line

    def _bounded(self, of_a: float, of_f: Array) -> Parameter:
        """A combination's interval; a bound that is reached at an open edge of the search is none."""
        values, reach = self._combination(of_a, of_f)
        lows, highs = values - reach, values + reach
        edges = [index for index, is_open in zip((1, -1), self.open, strict=True) if is_open]
        return Parameter(
            float(values[0]),
            None if any(lows[edge] <= lows.min() for edge in edges) else float(lows.min()),
            None if any(highs[edge] >= highs.max() for edge in edges) else float(highs.max()),
        )

    def _combination(self, of_a: float, of_f: Array) -> tuple[Array, Array]:
        """``of_a * a + of_f * f`` at every allowed shape, and how far it may go from there."""
        lines = self.lines
        size = of_a**2 / len(self.x) + (of_f - of_a * lines.g_mean) ** 2 / lines.g_square
        room = np.maximum(0.0, self.most - lines.sums)
        return of_a * lines.a + of_f * lines.f, np.sqrt(size * room)
