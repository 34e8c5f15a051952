"""How much an audit tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Numbers of an audit; the defaults are what `pgolf audit` uses."""

    seed: int = 0
    """Chooses edges, targets and replacements."""
    edges: int = 2
    """Edges of each kind (chunk, window, document, random) at which the future is changed."""
    probes: int = 6
    """Requests of a scorer that are examined closely."""
    swaps: int = 4
    """Other targets that are tried at a place."""
    places: int = 8
    """Targets of an evaluator whose own token is replaced."""
    substitutions: int = 1024
    """At most so many other tokens are tried at a place where an evaluator offers no distributions."""
    substituted_targets: int = 1 << 18
    """And so many targets are scored for that, all runs together; at least one place is examined."""
    tolerance: float = 1e-4
    """Largest difference, in nats, that counts as none."""
    rounding: float = 1e-4
    """The same for runs whose blocks have other sizes, where numbers are rounded in another order."""
    limit_seconds: float | None = None
    """Time that the whole evaluation may take."""

    sum_tolerance: float = 1e-3
    """How far the probabilities of all targets, each from a run of its own, may be from adding up to 1."""
