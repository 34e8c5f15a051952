"""The one error type for everything a user can get wrong."""

from __future__ import annotations


class PgolfError(Exception):
    """A mistake in what the user gave us: one line that names the place and the remedy.

    The command line prints the message after ``pgolf: error:`` and exits with status 2.
    Anything else that escapes is a bug in pgolf.
    """


class Interrupted(Exception):
    """The user stopped a long job; what was finished is saved, and the message says how to go on."""
