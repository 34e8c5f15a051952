"""`pgolf doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pgolf.cli.common import AsJson, TokenizerFile, print_json
from pgolf.cli.tables import print_columns

DOCTOR_EXAMPLES = ("pgolf doctor", "pgolf doctor --data data/web --json")


def doctor_command(
    data: Annotated[Path | None, typer.Option("--data", help="A data folder to check as well.")] = None,
    tokenizer: TokenizerFile = None,
    compile_seconds: Annotated[
        int,
        typer.Option("--compile-seconds", min=0, help="How long torch.compile may take; 0: do not try it."),
    ] = 180,
    as_json: AsJson = False,
) -> None:
    """Check this machine: device, torch, attention, memory, disk, compiler, threads, data, packages.

    The exit status is 1 if something essential is broken; a warning says what could be better.
    """
    from pgolf.data.inspect import examine_data
    from pgolf.runtime.doctor import examine, is_usable

    more = {} if data is None else {"data": lambda: examine_data(data, tokenizer)}
    checks = examine(more, compile_seconds)
    usable = is_usable(checks)
    if as_json:
        print_json({"usable": usable, "checks": [asdict(check) for check in checks]})
    else:
        header = ("check", "state", "found", "what to do")
        rows = [(check.name, check.state, check.found, check.remedy) for check in checks]
        title = "this machine is fit for pgolf" if usable else "something essential is broken"
        print_columns(header, rows, title=title, left=header, fold=header[2:])
    if not usable:
        raise typer.Exit(1)
