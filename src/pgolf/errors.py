"""The one error type for everything a user can get wrong."""

from __future__ import annotations

from collections.abc import Sequence


class PgolfError(Exception):
    """A mistake in what the user gave us: one line that names the place and the remedy.

    The command line prints the message after ``pgolf: error:`` and exits with status 2.
    Anything else that escapes is a bug in pgolf.

    Args:
        message: the line, or its beginning.
        problems: what follows it, where there may be several; the command line prints them on lines of
            their own.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(" ".join((message, "; ".join(problems))) if problems else message)
        self.lines = [message, *problems] if len(problems) > 1 else [str(self)]


class Interrupted(Exception):
    """The user stopped a long job; what was finished is saved, and the message says how to go on."""
