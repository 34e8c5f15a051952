"""`pgolf eval` and `pgolf verify-ledger`: scores, and the record that shows how they came about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgolf.cli.common import (
    AsJson,
    DataFolder,
    DeviceName,
    Overrides,
    TokenizerFile,
    flat_rows,
    print_json,
    print_result,
)
from pgolf.cli.tables import print_table

EVAL_EXAMPLES = (
    "pgolf eval model.pgolf --data data/books --mode ttt --json",
    "pgolf eval runs/first --data data/books --mode sliding --stride 32 --limit-targets 100000",
    "pgolf eval model.pgolf --data data/books --mode ttt --ledger ttt.jsonl",
)
VERIFY_EXAMPLES = ("pgolf verify-ledger ttt.jsonl --data data/books --artifact model.pgolf",)


def eval_command(
    weights: Annotated[Path, typer.Argument(help="Artifact, weights file or run folder.")],
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    mode: Annotated[str, typer.Option("--mode", help="standard, sliding or ttt.")] = "sliding",
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="Targets scored per window.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit-targets", min=1, help="Score only the first targets.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option("--ledger", help="Write what every range of targets cost (JSON lines).")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Reveal one target at a time; slow.")] = False,
    overrides: Overrides = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Score weights in bits per byte on the validation split."""
    from pgolf.cli.team import joined
    from pgolf.runs.pipeline import eval_job

    settings = (mode, stride, limit, overrides or [])
    with joined(device) as (chosen, team):
        scored = eval_job(
            weights, data, tokenizer, *settings, chosen, ledger=ledger, strict=strict, team=team
        )
        result = scored.to_json() | ({} if ledger is None else {"ledger": str(ledger)})
        if team.is_first:
            shown = {key: value for key, value in result.items() if key != "chunks"}
            print_result(result, as_json, flat_rows(shown), title=f"{weights} ({mode})")


def verify_command(
    ledger: Annotated[Path, typer.Argument(help="Ledger that `pgolf eval --ledger` wrote.")],
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    artifact: Annotated[
        Path | None, typer.Option("--artifact", help="Artifact or weights file that it must be of.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute a ledger: chain, coverage, order, totals; with --data text and bytes; with --artifact its
    digest.

    Exits with status 1 and names the first bad entry if anything is wrong.
    """
    from pgolf.runs.pipeline import verify_job

    found = verify_job(ledger, data, tokenizer, artifact)
    if as_json:
        print_json(found.to_json())
    else:
        bad = [("WRONG", found.problem)] if found.problem is not None else []
        print_table([*found.checks, *bad], title=f"{ledger}: {'not valid' if bad else 'valid'}")
    if found.problem is not None:
        raise typer.Exit(1)
