"""One process, or one team of them, at a time writes into a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pgolf.runtime.locks import LOCK, held, holder_of
from pgolf.runtime.progress import tell
from pgolf.runtime.team import SOLO, Team


@contextlib.contextmanager
def working_in(folder: Path, team: Team = SOLO) -> Iterator[None]:
    """Keep other processes from writing into a run folder, which is made. A team is one; may be nested.

    If another one works on this run, or the folder cannot be written, every rank gets a ``PgolfError``.
    """
    with contextlib.ExitStack() as stack:
        team.first(lambda: stack.enter_context(held(folder / LOCK, "run", tell)))
        yield


def is_worked_on(folder: Path) -> bool:
    """Whether a process works in a run folder, as far as its lock says; one that was killed here does not."""
    holder = holder_of(folder / LOCK)
    return holder is not None and not holder.is_gone()
