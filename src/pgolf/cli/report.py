"""`pgolf watch`, `report`, `runs` and `diff`: look at runs from their folders."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from pgolf.cli.app import AsJson, DataFolder, DeviceName, TokenizerFile, verb
from pgolf.cli.tables import (
    in_words,
    lines,
    print_columns,
    print_json,
    print_mistake,
    print_result,
    say,
    stdout,
)
from pgolf.report.content import shown, signed

if TYPE_CHECKING:
    from pgolf.runs.records import Diff, Value

# Columns of `pgolf runs` that may be left out where there is little room, the least important first.
_RUNS_DROP = ("date", "raw", "float", "recipe", "packed", "steps", "bytes", "sliding", "ttt", "state")
# Decimal places of a number in `pgolf diff`, by a word of its name.
_DIGITS = {"BPB": 4, "loss": 4, "second": 1}


@verb("watch", "pgolf watch runs/quickstart", "pgolf watch runs/quickstart --json")
def watch_verb(
    folder: Annotated[Path, Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    as_json: AsJson = False,
) -> None:
    """Show a run's losses as a curve of plain characters, on a terminal until the run or Ctrl-C ends it.

    A file or a pipe gets the curve as it is now. It only reads, so any number may watch.
    """
    from rich.live import Live
    from rich.text import Text

    from pgolf.report.watch import frames
    from pgolf.runs.records import read_run

    if as_json:
        run = read_run(folder)
        print_json(run.to_json() | {"last": dict(run.metrics[-1]) if run.metrics else None})
        return
    shown = frames(folder, lambda: (stdout.width, stdout.height))
    if not stdout.is_terminal:
        print("\n".join(next(shown)))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=stdout, auto_refresh=False) as live:
        for lines in shown:
            live.update(Text("\n".join(lines)), refresh=True)


@verb(
    "report",
    "pgolf report runs/quickstart",
    "pgolf report runs/quickstart -o report.html --mode sliding --targets 4096",
    "pgolf report runs/quickstart -o report.md --format md --no-score",
)
def report_verb(
    source: Annotated[Path, Argument(metavar="RUN|STUDY", help="Folder of a run or of a study.")],
    out: Annotated[
        Path | None, Option("--out", "-o", help="File to write; default: report.html in the folder.")
    ] = None,
    form: Annotated[
        str | None, Option("--format", help="html or md; default: by the file's name, else html.")
    ] = None,
    mode: Annotated[
        str | None,
        Option(
            help="How to score the text for what each target costs: standard, sliding or ttt; "
            "default: ttt where the recipe learns from it."
        ),
    ] = None,
    targets: Annotated[
        int | None, Option(min=1, help="Look at no more than the first targets; default: 32,768.")
    ] = None,
    no_score: Annotated[
        bool, Option("--no-score", help="Score and generate nothing: only what the folder holds.")
    ] = False,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Write a report as one page that loads nothing: scores, evidence, curves, bytes, text, provenance.

    The ledgers are verified. What each target costs comes from scoring the text again, which must meet the
    ledger.
    """
    from pgolf.report.job import TARGETS, Wanted, page_of, report_job, write_page
    from pgolf.study.cells import CELLS

    wanted = Wanted(not no_score, mode, targets or TARGETS, data, tokenizer)
    out, chosen = page_of(source, out, form)
    if (source / CELLS).is_dir():
        from pgolf.study.analysis import study_page

        result = write_page("study", lambda: study_page(source), out, chosen)
    elif no_score:
        result = report_job(source, out, chosen, wanted)
    else:
        from pgolf.runtime.device import pick_device

        result = report_job(source, out, chosen, wanted, pick_device(device))
    print_result(
        result, as_json, lines(result, {"report": "{report}", "size": "{bytes:,} bytes"}), str(source)
    )


@verb(
    "runs",
    "pgolf runs",
    "pgolf runs runs --where 'recipe=quickstart' --where 'ttt<1.8' --sort ttt",
    "pgolf runs --where 'model.layers>=9' --sort -date --json",
)
def runs_verb(
    folder: Annotated[Path, Argument(metavar="DIR", help="Where to look, at any depth.")] = Path("runs"),
    where: Annotated[
        list[str] | None,
        Option(metavar="CONDITION", help="Only these: KEY=VALUE, !=, <, <=, >, >=; repeatable."),
    ] = None,
    sort: Annotated[str | None, Option(metavar="KEY", help="Smallest first; -KEY: largest first.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder with their state and scores (bits per byte).

    A KEY is a column (name, recipe, steps, state, raw, float, packed, sliding, ttt, memory, bytes, date) or
    a recipe key such as train.seed. Words may have the patterns * and ?.
    """
    from pgolf.runs.records import FIELDS, find_runs, parse_condition, select

    conditions = [parse_condition(text) for text in where or []]
    found, problems = find_runs(folder)
    kept = select(found, conditions, sort)
    for problem in problems:
        print_mistake(problem)
    if as_json:
        print_json([run.to_json() for run in kept])
        return
    asked = list(dict.fromkeys([*(c.key for c in conditions), (sort or "name").removeprefix("-")]))
    extra = [key for key in asked if key not in FIELDS]
    some = any(run.field("memory") is not None for run in kept)
    fields = [key for key in [*FIELDS[1:], *extra] if key != "memory" or some]
    columns = ["run", *fields]
    rows = [[str(run.folder), *(_cell(key, run.field(key)) for key in fields)] for run in kept]
    count = f"{len(found):,} run{'s' if len(found) != 1 else ''} in {folder}"
    title = f"{len(kept):,} of {count}" if conditions else count
    title += "; scores in bits per byte" if kept else ""
    # What was asked about stays.
    drop = [key for key in _RUNS_DROP if key not in asked]
    print_columns(columns, rows, title, left=("recipe", "state", "date"), drop=drop)


def _cell(key: str, value: Value) -> str:
    if key == "date" and value is not None:
        return str(value)[:16].replace("T", " ")
    # A recipe's numbers stand as they are written there.
    return str(value) if "." in key and isinstance(value, float) else shown(value, 4)


@verb("diff", "pgolf diff runs/first runs/second", "pgolf diff runs/first runs/second --json")
def diff_verb(
    a: Annotated[Path, Argument(help="Run folder.")],
    b: Annotated[Path, Argument(help="Run folder to compare with it.")],
    as_json: AsJson = False,
) -> None:
    """Compare two runs, finished or not: recipe, code, data, and the numbers side by side."""
    from pgolf.runs.records import diff_runs, read_run

    found = diff_runs(read_run(a), read_run(b))
    if as_json:
        print_json(found.to_json())
    else:
        _print_diff(found)


def _print_diff(found: Diff) -> None:
    for name, differences in (
        ("recipe", found.recipe),
        ("code and machine", found.code),
        ("data", found.data),
    ):
        if differences:
            # A recipe's keys stand as they are written there.
            say_key = str if name == "recipe" else in_words
            rows = [(say_key(entry.key), _short(entry.a), _short(entry.b)) for entry in differences]
            print_columns((name, "A", "B"), rows, f"{name}: what differs", left=("A", "B"), fold=("A", "B"))
        else:
            say(f"{name}: the same")
    numbers: list[tuple[str, ...]] = []
    for metric in found.metrics:
        digits = next((count for word, count in _DIGITS.items() if word in metric.key), 0)
        change = "-" if metric.change is None else signed(metric.change, digits)
        numbers.append((metric.key, *(shown(value, digits) for value in (metric.a, metric.b)), change))
    print_columns(("", "A", "B", "B - A"), numbers, f"A = {found.a}, B = {found.b}", drop=("B - A",))
    for note in found.notes:
        say(f"note: {note}")


def _short(value: object) -> str:
    if value is None:
        return "-"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # Of a digest the beginning says enough.
    return f"{text[:16]}..." if len(text) == 64 and text.isalnum() else text
