"""`pgolf audit`: is a score valid? Experiments on any scorer, with the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from pgolf.cli.tables import print_columns, say

if TYPE_CHECKING:
    from pgolf.audit.report import Report

AUDIT_EXAMPLES = (
    "pgolf audit model.pgolf --data data/books --mode ttt --seed 7",
    "pgolf audit weights.pt --data data/books --scorer plugin.py:make --limit-seconds 600 --json",
    "pgolf audit model.pgolf --data data/books --mode ttt --by-decoding --targets 100",
)


def audit_command(
    artifact: Annotated[
        Path, typer.Argument(help="Artifact; with --scorer any file that the plug-in loads.")
    ],
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    scorer: Annotated[
        str | None,
        typer.Option("--scorer", help="Plug-in: MODULE:FACTORY or FILE.py:FACTORY; default: pgolf's own."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="pgolf's own scorer: standard, sliding (default) or ttt.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Chooses what is changed where.")] = 0,
    targets: Annotated[
        int | None,
        typer.Option("--targets", min=2, help="Take the first ones; default: a few windows or chunks."),
    ] = None,
    limit_seconds: Annotated[
        float | None,
        typer.Option("--limit-seconds", help="Time that the whole evaluation may take (the track: 600)."),
    ] = None,
    by_decoding: Annotated[
        bool,
        typer.Option(
            "--by-decoding", help="Instead encode the targets with one scorer, decode with another."
        ),
    ] = False,
    overrides: Overrides = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Test whether scores are valid: causality, normalisation, order, bytes, isolation, time; with evidence.

    Exits with status 1 if any condition is violated. What passes is not proved, but with another --seed other
    places are tested; --by-decoding proves the targets that it covers.
    """
    from pgolf.audit.job import audit_job
    from pgolf.audit.settings import Settings
    from pgolf.runtime.device import pick_device
    from pgolf.runtime.progress import counting, working

    job = audit_job(artifact, data, tokenizer, scorer, mode, overrides or [], pick_device(device))
    if by_decoding:
        with counting("decoding") as progress:
            proof = job.decode(targets, progress)
        result = {"subject": job.name, "ok": proof.problem is None, **proof.to_json()}
        print_result(result, as_json, flat_rows(result), title=f"{artifact}: decoded again")
        ok = proof.problem is None
    else:
        with working("auditing") as note:
            report = job.audit(Settings(seed=seed, limit_seconds=limit_seconds), targets, note)
        if as_json:
            print_json({"artifact": str(artifact), **report.to_json()})
        else:
            _print(report, artifact)
        ok = report.ok
    if not ok:
        raise typer.Exit(1)


def _print(report: Report, artifact: Path) -> None:
    verdict = f"violates {', '.join(report.violated)}" if report.violated else "no violation found"
    title = f"{artifact}, {report.subject} on {report.targets:,} targets, seed {report.seed}: {verdict}"
    rows = [
        (
            found.condition,
            found.test,
            found.verdict if found.passed else found.verdict.upper(),
            found.evidence,
        )
        for found in report.findings
    ]
    header = ("condition", "test", "verdict", "evidence")
    print_columns(header, rows, title, left=header, fold=("evidence",))
    for note in report.notes:
        say(f"note: {note}")
    say(f"{report.val_bpb:.4f} bits per byte on these targets; the audit took {report.seconds:.1f} s")
