"""Logarithm and logistic function by tables, equal on every machine; see ``kernels/compiled.py``."""

from __future__ import annotations

import math

import numpy as np

from pgolf.kernels.compiled import compiled

_STEPS = 4096
_FINE = 1 << 20


def _exact(values: list[float]) -> np.ndarray:
    # Rounded far more coarsely than libraries differ.
    return (np.round(np.array(values) * _FINE) / _FINE).astype(np.float32)


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


_LN = _exact([math.log(max(step, 1) / _STEPS) for step in range(_STEPS + 2)])
_RARE = 1 / 4096
_ODDS = _exact([_log_odds(max(step, 1) / (2 * _STEPS)) for step in range(_STEPS + 2)])
_RARE_ODDS = _exact([_log_odds(max(step, 1) / _STEPS * 64 * _RARE) for step in range(_STEPS + 2)])
_PER_UNIT, _LIMIT = 128, 12
_LOGISTIC = _exact([1 / (1 + math.exp(-step / _PER_UNIT)) for step in range(-1536, 1538)])
_LN_64 = float(_exact([math.log(64)])[0])
SMALLEST = 1e-6
"""Probabilities of a bit stay this far from 0 and 1."""


@compiled
def ln(value):
    """Natural logarithm of a number in (0, 1], to about 3e-5."""
    shift = 0.0
    while value < 0.015625:
        value *= 64.0
        shift -= _LN_64
    place = value * _STEPS
    step = int(place)
    return shift + _LN[step] + (_LN[step + 1] - _LN[step]) * (place - step)


@compiled
def stretch(probability):
    """Log odds, within 14, of a probability that is kept ``SMALLEST`` from 0 and 1."""
    if probability > 0.5:
        return -_odds(1.0 - probability)
    return _odds(probability)


@compiled
def _odds(probability):
    probability = max(probability, SMALLEST)
    if probability < _RARE:
        return ln(probability)
    table, place = _ODDS, probability * (2 * _STEPS)
    if probability < 64 * _RARE:
        table, place = _RARE_ODDS, probability * (_STEPS / (64 * _RARE))
    step = int(place)
    return table[step] + (table[step + 1] - table[step]) * (place - step)


@compiled
def logistic(odds):
    """Probability of log odds, which are cut off at 12."""
    place = (min(max(odds, -11.999), 11.999) + _LIMIT) * _PER_UNIT
    step = int(place)
    return _LOGISTIC[step] + (_LOGISTIC[step + 1] - _LOGISTIC[step]) * (place - step)
