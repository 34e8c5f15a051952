"""Why the scores of a run can be believed: its ledgers recomputed, and its audit if there is one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pgolf.data.dataset import Dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS
from pgolf.evaluate.ledger import Verification, read_header, verify_ledger
from pgolf.report.content import Block, Card, Prose, Section, Table
from pgolf.runs.records import RunRecord
from pgolf.runtime.files import read_json, sha256_file
from pgolf.runtime.run_files import ARTIFACT

AUDIT = "audit.json"
"""Where a run's folder keeps what `pgolf audit --json` printed."""


class Checked(NamedTuple):
    """A ledger of a run, recomputed."""

    name: str
    verification: Verification
    against: str
    """What it was compared with beside itself."""


class Evidence(NamedTuple):
    """What speaks for a run's scores, or against them."""

    ledgers: list[Checked]
    audit: Mapping[str, Any] | None
    artifact: str
    """SHA-256 of the artifact; empty if there is none."""


def collect_evidence(run: RunRecord, dataset: Dataset | None) -> Evidence:
    """Verify a run's ledgers and read its audit; PgolfError where that file holds something else."""
    artifact, path = run.folder / ARTIFACT, run.folder / AUDIT
    digest = sha256_file(artifact) if artifact.is_file() else ""
    audit = read_json(path) if path.is_file() else None
    needed = {"ok", "findings", "violated", "targets", "seed"}
    if path.is_file() and not (isinstance(audit, dict) and needed <= set(audit)):
        raise PgolfError(f"{path}: no audit; write it with `pgolf audit ... --json > {path}`, or remove it")
    return Evidence(check_ledgers(run.folder, run.evaluations, dataset), audit, digest)


def check_ledgers(folder: Path, evaluations: Mapping[str, Any], dataset: Dataset | None) -> list[Checked]:
    """Verify a run's ledgers: alone, and against its weights, its score, and the data if given."""
    checked, whole = [], None if dataset is None else dataset.validation_text(1)
    for name, evaluation in EVALUATIONS.items():
        path, weights, found = folder / evaluation.ledger, folder / evaluation.file, evaluations.get(name)
        if found is None or not path.is_file():
            continue
        expected = {"artifact": sha256_file(weights)} if weights.is_file() else {}
        against = [f"{weights.name} (SHA-256)"] if expected else []
        text: tuple[Any, Any] = (None, None)
        if dataset is not None and whole is not None:
            text = whole.first(read_header(path)["targets"])
            expected["tokenizer"] = dataset.tokenizer.digest
            against.append("the text and bytes of the data, target by target")
        result = verify_ledger(path, *text, expected)
        score, claimed = result.score, found["val_bpb"]
        same = (score.targets, score.bytes) == (found["targets"], found["bytes"])
        if result.problem is None and not (same and math.isclose(score.bpb, claimed, rel_tol=1e-9)):
            problem = f"its score {score.bpb!r} is not the one in result.json, {claimed!r}"
            result = replace(result, checks=[], problem=problem)
        checked.append(Checked(name, result, " and ".join(against) or "nothing but itself"))
    return checked


def evidence_cards(evidence: Evidence) -> list[Card]:
    """The verdicts in a word each."""
    ledgers, audit = evidence.ledgers, evidence.audit
    bad = [found.name for found in ledgers if found.verification.problem is not None]
    count = f"{len(bad) or len(ledgers)} of {len(ledgers)}"
    if bad:
        first = Card("ledgers", f"{count} wrong", bad[0], mood="bad")
    elif ledgers:
        first = Card("ledgers", f"{count} valid", "recomputed for this report", mood="good")
    else:
        first = Card("ledgers", "none", "no score can be recomputed")
    if audit is None:
        return [first, Card("audit", "not run", "pgolf audit")]
    if not audit["ok"]:
        return [first, Card("audit", "violation", ", ".join(map(str, audit["violated"])), mood="bad")]
    note = f"{audit['targets']:,} targets, seed {audit['seed']}"
    return [first, Card("audit", "no violation", note, mood="good")]


def evidence_section(run: RunRecord, evidence: Evidence) -> Section:
    """The ledgers and the audit in full."""
    blocks: list[Block] = [Prose(f"Artifact SHA-256 {evidence.artifact}.")] if evidence.artifact else []
    rows = []
    for found in evidence.ledgers:
        checks = dict(found.verification.checks)
        state = found.verification.problem or f"valid; {checks.get('coverage and order', '')}"
        rows.append([found.name, state, checks.get("chain", ""), found.against])
    if rows:
        note = "Every target once, in order; bytes and totals added up again; "
        note += "every line's digest covers those before it."
        columns = ("ledger", "verdict", "chain", "held against")
        blocks.append(Table("Ledgers, recomputed", columns, rows, note))
    else:
        blocks.append(Prose("There is no ledger, so no score can be recomputed from its parts."))
    audit = evidence.audit
    if audit is None:
        put = f"`pgolf audit ... --json > {run.folder.name}/{AUDIT}` puts one here."
        return Section("evidence", "Evidence", [*blocks, Prose(f"No audit beside the run. {put}")])
    columns = ("condition", "test", "verdict", "evidence")
    tests = [[str(finding.get(key, "")) for key in columns] for finding in audit["findings"]]
    verdict = "No violation found" if audit["ok"] else f"Violated: {', '.join(map(str, audit['violated']))}"
    where = f"{audit.get('subject', '')} on {audit['targets']:,} targets, seed {audit['seed']}"
    blocks.append(Prose(f"Audit of {where}: {verdict}.", "good" if audit["ok"] else "bad"))
    blocks.append(Table(f"All {len(tests)} tests", columns, tests, folded=True))
    return Section("evidence", "Evidence", blocks)
