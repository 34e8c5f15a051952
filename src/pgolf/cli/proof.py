"""Is a score valid? `pgolf audit` and `pgolf verify-ledger`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from pgolf.cli.app import verb
from pgolf.cli.common import AsJson, DataFolder, DeviceName, Overrides, TokenizerFile
from pgolf.cli.tables import flat_rows, print_columns, print_json, print_result, say

if TYPE_CHECKING:
    from pgolf.audit.report import Report


@verb(
    "audit",
    "pgolf audit model.pgolf --data data/books --mode ttt --seed 7",
    "pgolf audit weights.pt --data data/books --scorer plugin.py:make --limit-seconds 600 --json",
    "pgolf audit model.pgolf --data data/books --mode ttt --by-decoding --targets 100",
)
def audit_verb(
    artifact: Annotated[Path, Argument(help="Artifact; with --scorer any file that the plug-in loads.")],
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    scorer: Annotated[
        str | None, Option(help="Plug-in: MODULE:FACTORY or FILE.py:FACTORY; default: pgolf's own.")
    ] = None,
    mode: Annotated[
        str | None, Option(help="pgolf's own scorer: standard, sliding (default) or ttt.")
    ] = None,
    seed: Annotated[int, Option(min=0, help="Chooses what is changed where.")] = 0,
    targets: Annotated[
        int | None, Option(min=2, help="Take the first ones; default: a few windows or chunks.")
    ] = None,
    limit_seconds: Annotated[
        float | None, Option(help="Time that the whole evaluation may take (the track: 600).")
    ] = None,
    by_decoding: Annotated[
        bool,
        Option("--by-decoding", help="Instead encode the targets with one scorer, decode with another."),
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
        ok = proof.problem is None
        result = {"subject": job.name, "ok": ok, **proof.to_json()}
        print_result(result, as_json, flat_rows(result), title=f"{artifact}: decoded again")
    else:
        with working("auditing") as note:
            report = job.audit(Settings(seed=seed, limit_seconds=limit_seconds), targets, note)
        ok = report.ok
        if as_json:
            print_json({"artifact": str(artifact), **report.to_json()})
        else:
            _print_audit(report, artifact)
    if not ok:
        raise typer.Exit(1)


def _print_audit(report: Report, artifact: Path) -> None:
    verdict = f"violates {', '.join(report.violated)}" if report.violated else "no violation found"
    title = f"{artifact}, {report.subject} on {report.targets:,} targets, seed {report.seed}: {verdict}"
    header = ("condition", "test", "verdict", "evidence")
    rows = [
        (test.condition, test.test, test.verdict if test.passed else test.verdict.upper(), test.evidence)
        for test in report.findings
    ]
    print_columns(header, rows, title, left=header, fold=("evidence",))
    for note in report.notes:
        say(f"note: {note}")
    say(f"{report.val_bpb:.4f} bits per byte on these targets; the audit took {report.seconds:.1f} s")


@verb("verify-ledger", "pgolf verify-ledger ttt.jsonl --data data/books --artifact model.pgolf")
def verify_ledger_verb(
    ledger: Annotated[Path, Argument(help="Ledger that `pgolf eval --ledger` wrote.")],
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    artifact: Annotated[Path | None, Option(help="Artifact or weights file that it must be of.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute a ledger: chain, coverage, order, totals; with --data text and bytes;
    with --artifact its digest.

    Exits with status 1 and names the first bad entry if anything is wrong.
    """
    from pgolf.runs.pipeline import verify_job

    found = verify_job(ledger, data, tokenizer, artifact)
    wrong = [] if found.problem is None else [("WRONG", found.problem)]
    title = f"{ledger}: {'not valid' if wrong else 'valid'}"
    print_result(found.to_json(), as_json, [*found.checks, *wrong], title)
    if wrong:
        raise typer.Exit(1)
