"""Entry point of the command `pgolf`: which verbs there are, and how a mistake ends."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from typing import Annotated, Any

import typer

# They add their verbs by themselves.
from pgolf.cli import data, job, launch, machine, model, proof, report, study, submit  # noqa: F401
from pgolf.cli.app import app, paths_are_mistakes
from pgolf.cli.tables import print_mistake
from pgolf.errors import Interrupted, PgolfError
from pgolf.runtime.environment import VERSION
from pgolf.runtime.processes import let_threads_wait
from pgolf.runtime.terminal import output, patient_streams, plain

# What click raises for a wrong command line. Newer versions of typer carry a click of their own.
ClickException: Any = typer.BadParameter.__mro__[2]
_LIST_OPTIONS = ("--text", "--val-text", "--against")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"pgolf {VERSION}")
        raise typer.Exit
    if "WORLD_SIZE" in os.environ:
        from pgolf.cli.team import refuse_ranks

        refuse_ranks(context.invoked_subcommand or "")


def main() -> None:
    """Do what the command line says; a mistake is printed as one line and exits with status 2."""
    let_threads_wait()  # No line above has imported torch.
    # Imports make hundreds of thousands of objects that stay: by default Python looks through them again and
    # again for garbage, a twentieth of a start.
    gc.set_threshold(10_000)
    with patient_streams():
        status = _run(repeat_list_options(sys.argv[1:]))
        sys.stdout.flush()
        if output.problem is not None:
            print_mistake(output.problem)
            status = 2
    sys.exit(status)


def _run(words: list[str]) -> int:
    """Do what the command line says; the exit status."""
    try:
        # Outside standalone mode click raises what it would print, and returns an exit status.
        with paths_are_mistakes():
            status = app(args=words, prog_name="pgolf", standalone_mode=False)
        if status == 130:
            raise KeyboardInterrupt  # Newer versions of typer return it, without a word.
    except PgolfError as error:
        print_mistake(*error.lines)
        return 2
    except ClickException as error:
        # A wrong command line is wrong on every rank, and noticed before they know of each other.
        if os.environ.get("RANK", "0") == "0":
            print_mistake(error.format_message())
        return 2
    except Interrupted as stop:
        print(f"pgolf: {plain(str(stop))}", file=sys.stderr)
        return 130
    except (KeyboardInterrupt, typer.Abort):
        print("pgolf: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:
        if not _is_of_numba(error):
            raise
        print_mistake(
            f"numba, which compiles coder and memory, fails here ({error}); reinstall it: "
            "pip install --force-reinstall numba"
        )
        return 2
    return status if isinstance(status, int) else 0


def _is_of_numba(error: Exception) -> bool:
    """Whether numba cannot be imported, or could not compile."""
    names = [getattr(error, "name", None), type(error).__module__]
    names += [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    return any(str(name).partition(".")[0] in ("numba", "llvmlite") for name in names)


def repeat_list_options(words: list[str]) -> list[str]:
    """Write ``--text a b`` as ``--text a --text b``, so that patterns which a shell expands work."""
    repeated: list[str] = []
    option = ""
    for word in words:
        if word.startswith("-"):
            option = word if word in _LIST_OPTIONS else ""
        elif option and repeated[-1] != option:
            repeated.append(option)
        repeated.append(word)
    return repeated
