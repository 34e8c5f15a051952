"""`pgolf significance`: do these runs beat those by enough, and do their seeds show it?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from pgolf.cli.app import verb
from pgolf.cli.common import AsJson
from pgolf.cli.tables import print_columns, print_json, print_table
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS


@verb(
    "significance",
    "pgolf significance runs/new-* --against runs/old-*",
    "pgolf significance runs/new-1 runs/new-2 runs/new-3 --against 1.88276 1.88157 1.88220",
    "pgolf significance runs/new-* --against runs/old-* --margin 0 --level 0.05",
)
def significance_verb(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders of one recipe, one a seed; or losses in nats."),
    ],
    against: Annotated[
        list[str],
        typer.Option("--against", metavar="RUN...", help="What is to be beaten: run folders, or losses."),
    ],
    evaluation: Annotated[
        str, typer.Option("--evaluation", help=f"Which loss is compared: {', '.join(EVALUATIONS)}.")
    ] = "ttt",
    margin: Annotated[
        float, typer.Option("--margin", min=0.0, help="Nats per target by which the new has to be better.")
    ] = 0.005,
    level: Annotated[float, typer.Option("--level", min=1e-9, max=0.5, help="Level of the tests.")] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Test the claim that runs are better than others by more than a margin: the record rule.

    Without options: more than 0.005 nats per target better at p < 0.01, by one-sided Welch's and, where both
    have the same seeds, paired t-tests. Exits with status 1 if the claim does not hold.
    """
    from pgolf.study.sides import check_comparable, compare_text, ledger_of, read_side
    from pgolf.study.statistics import record_claim

    if evaluation not in EVALUATIONS:
        known = ", ".join(EVALUATIONS)
        raise PgolfError(f"--evaluation {evaluation}: there is no such loss; choose one of {known}")
    new, old = (read_side(texts, evaluation) for texts in (runs, against))
    check_comparable(new, old)
    found = record_claim(new.losses, old.losses, margin, level)
    ledgers = [ledger_of(side, evaluation) for side in (new, old)]
    text = compare_text(ledgers[0], ledgers[1]) if ledgers[0] and ledgers[1] else None
    if as_json:
        print_json({"evaluation": evaluation, **asdict(found), "text": text and text._asdict()})
    else:
        rows = [("new", *row) for row in new.rows()] + [("old", *row) for row in old.rows()]
        title = f"{EVALUATIONS[evaluation].title} loss in nats per target"
        print_columns(("side", "run", "seed", "loss"), rows, title, left=("run",), drop=("seed",))
        print_table(
            _rows(found, text), title="the claim holds" if found.record else "the claim does not hold"
        )
    if not found.record:
        raise typer.Exit(1)


def _rows(found: Any, text: Any) -> list[tuple[str, str]]:
    from pgolf.report.content import p_text, signed

    rows = []
    for name, sample in (("new mean", found.new), ("old mean", found.old)):
        known = sample.deviation is not None
        spread = f"standard deviation {sample.deviation:.5f}" if known else "spread unknown"
        runs = f"{sample.count} run{'s' if sample.count > 1 else ''}"
        rows.append((name, f"{sample.mean:.5f}   {runs}, {spread}"))
    rows.append(("improvement", f"{signed(found.improvement, 5)} nats per target (margin {found.margin:g})"))
    if found.welch is not None:
        # The test's difference is new - old; the improvement is old - new.
        low, high = (signed(-end, 5) for end in (found.welch.high, found.welch.low))
        rows.append(("95 % interval", f"{low} to {high}   Welch, two-sided"))
    common = f"not possible: {found.pairs} seed{'s' * (found.pairs != 1)} in common"
    for name, test, missing in (("Welch", found.welch, "not possible"), ("paired", found.paired, common)):
        said = missing
        if test is not None:
            said = f"{p_text(test.p)}   t = {test.t:.2f}, {test.freedom:.2f} degrees of freedom"
        rows.append((name, said))
    if found.power is not None:
        chance = f"{100 * found.power:.0f} % to show a true improvement as large as this one"
        rows.append(("power", f"{chance} with as many seeds"))
    if found.seeds_needed is not None:
        rows.append(("seeds for 80 %", f"{found.seeds_needed} a side"))
    if text is not None:
        better, low, high = (signed(-value, 5) for value in (text.difference, text.high, text.low))
        shown = (
            f"{better} nats ({low} to {high}), {p_text(text.p)} over {text.stretches} stretches of the text"
        )
        rows.append(("these two artifacts", f"{shown}; other seeds may differ"))
    return [*rows, ("why", found.why)]
