"""The command `pgolf`: its verbs in sections, in the order of the job; their help and shared options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer import Option
from typer.core import TyperGroup

from pgolf.errors import PgolfError
from pgolf.recipe.files import nearest
from pgolf.runtime.paths import path_error

SECTIONS: Mapping[str, Sequence[str]] = {
    "Data": ("data",),
    "The job": ("recipes", "train", "pack", "eval", "run"),
    "Proof": ("audit", "verify-ledger", "significance"),
    "Look and compare": ("watch", "report", "runs", "diff", "inspect"),
    "Use a model": ("generate", "serve", "compress", "decompress", "import", "export"),
    "Studies and submissions": ("study", "launch", "submit"),
    "Machine": ("doctor", "bench", "help"),
}
"""The verbs of `pgolf`."""
Function = TypeVar("Function", bound=Callable[..., None])


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
        return [name for section in self.sections.values() for name in section] or list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a list for each section."""
        width = max(map(len, self.commands))
        for title, names in (self.sections or {"Commands": self.list_commands(ctx)}).items():
            with formatter.section(title):
                rows = [(name.ljust(width), self.commands[name].get_short_help_str(1000)) for name in names]
                formatter.write_dl(rows)


class AllVerbs(Verbs):
    """Those of `pgolf` itself."""

    sections = SECTIONS


def epilog(*examples: str) -> str:
    """The examples at the end of a command's help."""
    # \b keeps click from re-flowing the lines.
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)


app = typer.Typer(
    name="pgolf",
    help="Byte-budgeted language models: train, pack under a byte cap, score in bits per byte.",
    cls=AllVerbs,
    epilog=epilog("pgolf run quickstart", "pgolf help data prepare", "pgolf --install-completion bash"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def group(name: str, text: str, *examples: str) -> typer.Typer:
    """A verb that has verbs of its own."""
    shown = epilog(*examples) if examples else None
    made = typer.Typer(help=text, cls=Verbs, no_args_is_help=True, rich_markup_mode=None, epilog=shown)
    app.add_typer(made, name=name)
    return made


def verb(name: str, *examples: str, of: typer.Typer = app) -> Callable[[Function], Function]:
    """Make a function a verb, of `pgolf` or of a group: its docstring and the examples are the help."""
    return of.command(name, epilog=epilog(*examples))


@verb("help", "pgolf help", "pgolf help train", "pgolf help data prepare")
def help_verb(
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
            above, near = place.command_path, nearest(word, list(known))
            raise PgolfError(f"{above} {word}: no such command{near}; `{above} --help` says what there is")
        place = type(context)(known[word], info_name=word, parent=place)
    print(place.get_help())


Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe; repeatable.")
]
DataFolder = Annotated[
    Path | None, Option(help="Prepared folder, or a bare folder of *_train_*.bin and *_val_*.bin.")
]
TextFiles = Annotated[
    list[Path] | None,
    Option("--text", help="Instead of data: text files or folders, as `pgolf data prepare` takes them."),
]
ValTextFiles = Annotated[
    list[Path] | None,
    Option("--val-text", help="Validation text beside --text; default: a part of it is held out."),
]
TokenizerFile = Annotated[Path | None, Option(help="Tokenizer file, where the data folder holds none.")]
DeviceName = Annotated[str | None, Option(help="cpu, cuda, cuda:N or mps; default: CUDA if there.")]
TrustCode = Annotated[
    bool,
    Option("--trust-remote-code", help="Run code that a folder of a transformers model brings along."),
]
JsonFile = Annotated[Path | None, Option("--out", "-o", help="Also write the JSON here.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object on standard output.")]


@contextmanager
def paths_are_mistakes() -> Iterator[None]:
    """Inside, what the system says about a path, and a name or text that is no UTF-8, is a ``PgolfError``."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if (mistake := path_error(error)) is None:
            raise
        raise mistake from error


def check_data_paths(data: Path | None, tokenizer: Path | None) -> None:
    """For jobs that may not open what they are given: a ``PgolfError`` if it is not there."""
    from pgolf.data.dataset import check_folder
    from pgolf.data.tokenizer import check_model

    if data is not None:
        check_folder(data)
    if tokenizer is not None:
        check_model(tokenizer)
