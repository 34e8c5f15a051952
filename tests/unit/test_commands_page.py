"""docs/commands.md is the commands' help: ``python -m tests.unit.test_commands_page`` writes it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from pgolf.cli.app import SECTIONS
from pgolf.cli.main import app
from tests.unit.test_keys import plain

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
KINDS = {
    **dict.fromkeys(("<path>", "<list[Path]>"), "PATH"),
    **dict.fromkeys(
        ("<int>", "<int range>", "<list[int]>", "<list[float]>", "<float>", "<float range>"), "NUMBER"
    ),
    **dict.fromkeys(("<str>", "<list[str]>"), "TEXT"),
}
BEGINNING = """# Commands

All verbs of `pgolf`, in the order of `pgolf --help`, with their options. `pgolf help VERB` prints the same.
What has no default and is not required may be left out. `-h` or `--help` shows the help of any verb, and
`pgolf --version` the version. A mistake ends a command with status 2 and one line that says where it is.

`--out` (`-o`) names what is written. Where it may be left out, the place is clear: a run is `runs/NAME`, a
study `studies/NAME`, and what is made of a run goes into the run's folder. `--mode` has one rule too: without
it `eval`, `audit` and `report` take `ttt`, or `sliding` where the recipe learns nothing from scored text.
This page is made from the commands themselves: after a change run `python -m tests.unit.test_commands_page`.
"""


def page() -> str:
    """The whole page."""
    parts = [BEGINNING]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [part for name in names for part in verbs(typer.main.get_command(app), name, "pgolf")]
    return "\n".join(parts)


def verbs(above: Any, name: str, path: str) -> Iterator[str]:
    """What there is to say of a verb, and of those that it has itself."""
    command, path = above.commands[name], f"{path} {name}"
    about = (command.help or "").split("\n\n")
    inside = getattr(command, "commands", {})
    if not inside:
        yield "\n".join([f"### `{path}`\n", *map(prose, about), *body(command, path)])
        return
    # A group is a sentence above its verbs.
    yield "\n".join(map(prose, [f"`{path}`: {about[0]}", *about[1:]]))
    for below in inside:
        yield from verbs(command, below, path)


def prose(paragraph: str) -> str:
    """A paragraph in lines of at most 110 characters."""
    return textwrap.fill(plain(paragraph), 110, break_long_words=False, break_on_hyphens=False) + "\n"


def body(command: Any, path: str) -> Iterator[str]:
    """Table of arguments and options; the examples."""
    context = typer.Context(command, info_name=path)
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [row(*record) for record in records if record is not None and record[0] != "-h, --help"]
    if rows:
        yield "| option | default, limits | meaning |\n| --- | --- | --- |\n" + "".join(rows)
    if command.epilog:
        lines = [line.strip() for line in command.epilog.splitlines()[2:]]
        yield "\n".join(["```", *lines, "```", ""])


def row(names: str, text: str) -> str:
    """One argument or option: its names, what it is if left out and may be, what it means."""
    meaning, notes = re.fullmatch(r"(.*?)\s*(?:\[([^[]*)\])?", text, re.DOTALL).groups("")  # type: ignore[union-attr]
    names = re.sub("<[^>]*>", lambda kind: KINDS[kind[0]], names)
    bounds = re.sub(r"x>=(\d+)\S*", r"at least \1", notes.removeprefix("default: "))
    bounds = re.sub(r"(\S+)<=x<=(\S+)", r"\1 to \2", bounds).replace("; ", ", ")
    return f"| `{names}` | {plain(bounds)} | {plain(meaning)} |\n"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.unit.test_commands_page"


def test_the_page_has_every_option_and_example() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "### `pgolf data prepare`" in text and "pgolf run quickstart" in text
    assert "| `--stride NUMBER` | at least 1 | Targets scored per window. |" in text
    assert "| `--temperature NUMBER` | 0.8 | 0 always takes the likeliest token. |" in text
    assert "| `weights PATH` | required | Run folder or weights file. |" in text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
