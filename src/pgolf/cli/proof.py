"""Is a score valid, and is it a record? `pgolf audit`, `verify-ledger` and `significance`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pgolf.cli.app import AsJson, DataFolder, DeviceName, Overrides, TokenizerFile, TrustCode, verb
from pgolf.cli.tables import lines, print_columns, print_json, print_result, print_table, say
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS

if TYPE_CHECKING:
    from pgolf.audit.report import Report


_DECODED = {
    "scorer": "{subject}",
    "targets": "{targets:,}",
    "problem": "{problem}",
    "code": "{coded_bits:,} bits, {token_bits:,.1f} of them for targets",
    "score": "{ledger_bits:,.1f} bits one by one, {block_bits:,.1f} in blocks",
    "time": "{seconds:.1f} s",
}


@verb(
    "audit",
    "pgolf audit runs/first --seed 7",
    "pgolf audit weights.pt --data data/books --scorer plugin.py:make --limit-seconds 600 --json",
    "pgolf audit model.pgolf --data data/books --by-decoding --targets 100",
)
def audit_verb(
    artifact: Annotated[
        Path,
        Argument(
            help="Run folder, artifact, or folder of a transformers model; with --scorer any file that the "
            "plug-in loads."
        ),
    ],
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    scorer: Annotated[
        str | None, Option(help="Plug-in: MODULE:FACTORY or FILE.py:FACTORY; default: pgolf's own.")
    ] = None,
    mode: Annotated[
        str | None,
        Option(help="pgolf's own scorer: standard, sliding or ttt; default: ttt where the recipe learns."),
    ] = None,
    seed: Annotated[int, Option(min=0, help="Chooses what is changed where.")] = 0,
    targets: Annotated[
        int | None, Option(min=2, help="Take the first ones; default: a few windows or chunks.")
    ] = None,
    limit_seconds: Annotated[
        float | None, Option(help="Time that the whole evaluation may take (the track: 600).")
    ] = None,
    by_decoding: Annotated[
        bool, Option("--by-decoding", help="Instead encode the targets with one scorer, decode with another.")
    ] = False,
    trust: TrustCode = False,
    overrides: Overrides = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Test whether scores are valid: causality, normalisation, order, bytes, isolation, time; with evidence.

    The data of a run is found by its folder, which keeps what the audit of its artifact finds as audit.json.
    Exits with status 1 if any condition is violated. What passes is not proved, but with another --seed other
    places are tested; --by-decoding proves the targets that it covers.
    """
    from pgolf.audit.audit import audit_job
    from pgolf.audit.runs import Settings
    from pgolf.runtime.device import pick_device
    from pgolf.runtime.progress import counting, working

    job = audit_job(artifact, data, tokenizer, scorer, mode, overrides or [], pick_device(device), trust)
    if by_decoding:
        with counting("decoding") as progress:
            proof = job.decode(targets, progress)
        ok = proof.problem is None
        result = {"subject": job.name, "ok": ok, **proof.to_json()}
        verdict = "decoded again" if ok else "NOT VALID"
        print_result(result, as_json, lines(result, _DECODED), title=f"{artifact}: {verdict}")
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
    from pgolf.runs.verify import verify_job

    found = verify_job(ledger, data, tokenizer, artifact)
    wrong = [] if found.problem is None else [("WRONG", found.problem)]
    title = f"{ledger}: {'not valid' if wrong else 'valid'}"
    print_result(found.to_json(), as_json, [*found.checks, *wrong], title)
    if wrong:
        raise typer.Exit(1)


@verb(
    "significance",
    "pgolf significance runs/new-* --against runs/old-*",
    "pgolf significance runs/new-1 runs/new-2 runs/new-3 --against 1.88276 1.88157 1.88220",
    "pgolf significance runs/new-* --against runs/old-* --margin 0 --level 0.05",
)
def significance_verb(
    runs: Annotated[
        list[str],
        Argument(metavar="RUN...", help="Run folders of one recipe, one a seed; or losses in nats."),
    ],
    against: Annotated[
        list[str], Option(metavar="RUN...", help="What is to be beaten: run folders, or losses.")
    ],
    evaluation: Annotated[str, Option(help=f"Which loss is compared: {', '.join(EVALUATIONS)}.")] = "ttt",
    margin: Annotated[
        float, Option(min=0.0, help="Nats per target by which the new has to be better.")
    ] = 0.005,
    level: Annotated[float, Option(min=1e-9, max=0.5, help="Level of the tests.")] = 0.01,
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
    claim = f"the claim: below {signed(-found.margin, 5)}"
    rows.append(("new minus old", f"{signed(-found.improvement, 5)} nats per target ({claim})"))
    if found.welch is not None:
        low, high = (signed(end, 5) for end in (found.welch.low, found.welch.high))
        rows.append(("95 % interval", f"{low} to {high}   Welch, two-sided"))
    common = f"not possible: {found.pairs} seed{'s' * (found.pairs != 1)} in common"
    for name, test, missing in (("Welch", found.welch, "not possible"), ("paired", found.paired, common)):
        said = missing
        if test is not None:
            said = f"{p_text(test.p)}   t = {test.t:.2f}, {test.freedom:.2f} degrees of freedom"
        rows.append((name, said))
    if found.power is not None:
        chance = f"{100 * found.power:.0f} % to show a true difference as large as this one"
        rows.append(("power", f"{chance} with as many seeds"))
    if found.seeds_needed is not None:
        rows.append(("seeds for 80 %", f"{found.seeds_needed} a side"))
    if text is not None:
        difference, low, high = (signed(value, 5) for value in (text.difference, text.low, text.high))
        size = f"{difference} nats ({low} to {high}), {p_text(text.p)}"
        scope = f"over {text.stretches} stretches of the text; other seeds may differ"
        rows.append(("these two artifacts", f"{size} {scope}"))
    return [*rows, ("why", found.why)]
