"""Help: the verbs in sections, in the order of the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pgolf.errors import PgolfError
from pgolf.recipe.files import nearest

HELP_EXAMPLES = ("pgolf help", "pgolf help train", "pgolf help data prepare")
SECTIONS: Mapping[str, Sequence[str]] = {
    "Data": ("data",),
    "The job": ("recipes", "train", "pack", "eval", "run"),
    "Proof": ("audit", "verify-ledger", "significance"),
    "Look and compare": ("report", "runs", "diff", "inspect"),
    "Use a model": ("generate", "compress", "decompress", "import"),
    "Studies and submissions": ("study", "launch", "submit"),
    "Machine": ("doctor", "bench", "help"),
}
"""The verbs of `pgolf`."""


class Verbs(TyperGroup):
    """Commands that print their help when none is named; each is described by a whole sentence."""

    sections: Mapping[str, Sequence[str]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help where nothing else is asked for: that is no mistake."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            print(ctx.get_help())
            raise typer.Exit
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the sections."""
        names = [name for section in self.sections.values() for name in section]
        return [*names, *(name for name in self.commands if name not in names)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a list for each section."""
        width = max(map(len, self.commands))
        for title, names in (self.sections or {"Commands": self.list_commands(ctx)}).items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(width), self.commands[name].get_short_help_str(1000)) for name in names]
                )


class AllVerbs(Verbs):
    """Those of `pgolf` itself."""

    sections = SECTIONS


def help_command(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[VERB]...", help="Such as: data prepare.")
    ] = None,
) -> None:
    """Show the help of a verb, or of all."""
    place: Any = context.find_root()
    for word in words or []:
        known = place.command.commands if isinstance(place.command, TyperGroup) else {}
        if word not in known:
            above = place.command_path
            raise PgolfError(
                f"{above} {word}: no such command{nearest(word, list(known))}; `{above} --help` says what there is"
            )
        place = type(context)(known[word], info_name=word, parent=place)
    print(place.get_help())
