"""`pgolf submit`: a folder for the public challenge, made of finished runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from pgolf.cli.app import AsJson, DataFolder, DeviceName, TokenizerFile, verb
from pgolf.cli.tables import print_columns, print_json, say

if TYPE_CHECKING:
    from pgolf.submit.folder import Submission


@verb(
    "submit",
    "pgolf submit runs/s1 runs/s2 runs/s3 -o submission --author NAME --github-id ID",
    "pgolf submit runs/first -o submission --track unlimited --repack --author NAME --github-id ID",
    "pgolf submit runs/first -o draft --no-audit --force --json",
)
def submit_verb(
    runs: Annotated[list[Path], Argument(help="Finished runs of one recipe, one per seed.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder to write; must not exist.")],
    author: Annotated[str | None, Option(help="Your name.")] = None,
    github_id: Annotated[str | None, Option(help="Your GitHub ID.")] = None,
    name: Annotated[str | None, Option(help="Title; default: the recipe's name.")] = None,
    blurb: Annotated[str | None, Option(help="One line; default: the recipe's description.")] = None,
    track: Annotated[str, Option(help="10min (records) or unlimited.")] = "10min",
    mode: Annotated[str, Option(help="The evaluation that counts: ttt or sliding.")] = "ttt",
    repack: Annotated[
        bool, Option("--repack", help="Pack again so that artifact and script use the cap, and score again.")
    ] = False,
    audit: Annotated[
        Path | None, Option(help="What `pgolf audit --json` printed; default: audit now.")
    ] = None,
    no_audit: Annotated[bool, Option("--no-audit", help="Do not audit; the checklist says so.")] = False,
    force: Annotated[bool, Option("--force", help="Write also if a rule is broken, marked as such.")] = False,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Make a folder for the challenge: one self-contained script, logs, numbers, and the rules with evidence.

    The script holds the parts of pgolf that the recipe uses and gives the same numbers. If a rule of the
    track is broken nothing is written, and the command exits with status 1 and the reasons.
    """
    from pgolf.runtime.device import pick_device
    from pgolf.runtime.processes import handling
    from pgolf.runtime.progress import working
    from pgolf.submit.folder import Request, submit

    request = Request(
        runs=tuple(runs),
        out=out,
        author=author,
        github_id=github_id,
        name=name,
        blurb=blurb,
        track=track,
        mode=mode,
        data=data,
        tokenizer=tokenizer,
        audit=audit,
        no_audit=no_audit,
        repack=repack,
        force=force,
    )
    # A process that is told to stop leaves no half-written folder.
    stopping = handling(lambda *_: sys.exit(128 + signal.SIGTERM), signal.SIGTERM)
    with stopping, working("submission") as note:
        found = submit(request, pick_device(device), note)
    if as_json:
        print_json(found.to_json())
    else:
        _print_checklist(found, out)
    if not found.written:
        raise typer.Exit(1)


def _print_checklist(found: Submission, out: Path) -> None:
    broken = sum(not item.ok for item in found.items)
    state = "every rule is kept" if found.ok else f"{broken} rule{'s are' if broken > 1 else ' is'} broken"
    rows = [("ok" if item.ok else "NO", item.rule, item.evidence) for item in found.items]
    texts = ("rule", "evidence")
    print_columns(("", *texts), rows, f"{out}: {state}", left=texts, fold=texts)
    end = "written" if found.ok else "written as NON-COMPLIANT"
    end = end if found.ok or found.written else "not written (--force would)"
    bits, code = f"{found.figures['val_bpb']:.5f} bits per byte", f"{found.code_bytes:,} code"
    say(f"{bits}, {found.total_bytes:,} bytes ({code}); {out} {end}")
    if not found.complete:
        say("the rules that take long to check (audit, the script runs) were not looked at")
