"""Commands that several processes run together: every rank does its part, one of them speaks to the user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pgolf.cli.app import paths_are_mistakes
from pgolf.cli.tables import print_mistake, stdout
from pgolf.errors import Interrupted, PgolfError
from pgolf.runtime.progress import stderr
from pgolf.runtime.ranks import LostContact, Ranks, join, launched
from pgolf.runtime.team import Team

RANKED = ("train", "run", "eval")
"""Commands that share their work among ranks."""


def refuse_ranks(command: str) -> None:
    """See to it that no command but ``RANKED`` is started several times to do the same thing several times.

    The first rank says so for all, as a ``PgolfError``; the others just exit, with status 2.
    """
    if command not in RANKED and (ranks := launched("WORLD_SIZE", 1)) > 1:
        if launched("RANK") != 0:
            sys.exit(2)
        raise PgolfError(
            f"pgolf {command}: works alone, and {ranks} ranks were started; start it without torchrun "
            f"({', '.join(RANKED)} are the commands that share their work)"
        )


@contextmanager
def joined(device_name: str | None) -> Iterator[tuple[torch.device, Team]]:
    """The device and the team of this process, which is alone unless a launcher started others with it.

    Inside, ranks but the first show no progress. What ends one rank ends all of them: a mistake is printed by
    one rank, and those that hear of it exit with status 2; a rank that loses contact says so and exits with
    status 1. What else comes through (a bug, a lack of memory) the launcher reports as that rank's reason.
    """
    device, team = join(device_name)
    if not isinstance(team, Ranks):
        yield device, team
        return
    stderr.quiet = stdout.quiet = not team.is_first
    try:
        with paths_are_mistakes():
            yield device, team
        team.leave()
    except PgolfError as error:
        message = str(error)
        team.say_once(lambda: print_mistake(message))
        sys.exit(2)
    except Interrupted:
        team.leave()
        if team.is_first:
            raise
        sys.exit(130)
    except LostContact as lost:
        if team.was_said():
            sys.exit(2)
        print(f"pgolf: {lost}", file=sys.stderr, flush=True)
        sys.exit(1)
