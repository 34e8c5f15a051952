"""The processes that work on one job together: here a team of one, for which all questions are simple.

``runtime/ranks.py`` has the team of many, with the same methods: whoever is given a team needs no ``if``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Team:
    """Ranks 0 to size - 1. Every rank must call the same methods in the same order.

    Only the first rank (0) writes files and speaks to the user.
    """

    rank = 0
    size = 1
    restarted = False
    """Whether an earlier attempt at this job failed, so that it has to go on from what is on the disk."""

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` things in a row are this rank's: next to each other, as evenly as can be."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, added in float32; shapes are equal on every rank."""

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first rank's."""

    def collect(self, own: Tensor) -> Callable[[], Tensor]:
        """Begin to put the ranks' tensors (n, ...) of one shape behind each other.

        Returns:
            What waits for the result, (size * n, ...) in the order of the ranks; work done before calling it
            overlaps with the transfer.
        """
        return lambda: own

    def totals(self, values: Sequence[float]) -> list[float]:
        """The sum over the ranks of each number, in float64."""
        return list(values)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, a JSON value, in the order of the ranks."""
        return [value]

    def first(self, work: Callable[[], T]) -> T | None:
        """Have the first rank do something, and wait for it however long it takes; None on the other ranks.

        If it raises a ``PgolfError``, every rank does.
        """
        return work()

    def bytes_of_first(self, content: bytes | None) -> bytes:
        """The first rank's bytes; the others give None."""
        assert content is not None
        return content

    def meet(self) -> None:
        """Wait until every rank has come here, however long it takes."""


SOLO = Team()
