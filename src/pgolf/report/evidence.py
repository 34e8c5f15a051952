"""Why the scores of a run can be believed: its ledgers recomputed, and its audit if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.data.dataset import Dataset
from pgolf.errors import PgolfError
from pgolf.report.content import Block, Card, Prose, Section, Sheet
from pgolf.report.findings import Table
from pgolf.report.ledgers import Checked, check_ledgers
from pgolf.runs.records import RunRecord
from pgolf.runtime.files import read_json, sha256_file
from pgolf.runtime.run_files import ARTIFACT

AUDIT = "audit.json"
"""Where a run's folder keeps what `pgolf audit --json` printed."""


@dataclass(frozen=True)
class Evidence:
    """What speaks for a run's scores, or against them."""

    ledgers: list[Checked]
    audit: Mapping[str, Any] | None
    artifact: str
    """SHA-256 of the artifact; empty if there is none."""


def collect_evidence(run: RunRecord, dataset: Dataset | None) -> Evidence:
    """Verify the ledgers and read the audit in a run's folder.

    Raises:
        PgolfError: the audit's file is none.
    """
    artifact = run.folder / ARTIFACT
    digest = sha256_file(artifact) if artifact.is_file() else ""
    return Evidence(check_ledgers(run.folder, run.evaluations, dataset), _audit(run.folder / AUDIT), digest)


def _audit(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not {"ok", "findings", "violated", "targets", "seed"} <= set(found):
        raise PgolfError(f"{path}: no audit; write it with `pgolf audit ... --json > {path}`, or remove it")
    return found


def evidence_cards(evidence: Evidence) -> list[Card]:
    """The verdicts in a word each."""
    cards = []
    ledgers, bad = (
        evidence.ledgers,
        [found for found in evidence.ledgers if found.verification.problem is not None],
    )
    if bad:
        cards.append(Card("ledgers", f"{len(bad)} of {len(ledgers)} wrong", bad[0].name, mood="bad"))
    elif ledgers:
        cards.append(
            Card(
                "ledgers",
                f"{len(ledgers)} of {len(ledgers)} valid",
                "recomputed for this report",
                mood="good",
            )
        )
    else:
        cards.append(Card("ledgers", "none", "no score can be recomputed"))
    audit = evidence.audit
    if audit is None:
        cards.append(Card("audit", "not run", "pgolf audit"))
    elif audit["ok"]:
        cards.append(
            Card("audit", "no violation", f"{audit['targets']:,} targets, seed {audit['seed']}", mood="good")
        )
    else:
        cards.append(Card("audit", "violation", ", ".join(map(str, audit["violated"])), mood="bad"))
    return cards


def evidence_section(run: RunRecord, evidence: Evidence) -> Section:
    """The ledgers and the audit in full."""
    blocks: list[Block] = []
    if evidence.artifact:
        blocks.append(Prose(f"Artifact SHA-256 {evidence.artifact}."))
    rows = []
    for found in evidence.ledgers:
        checks = dict(found.verification.checks)
        state = found.verification.problem or f"valid; {checks.get('coverage and order', '')}"
        rows.append([found.name, state, checks.get("chain", ""), found.against])
    if rows:
        columns = ("ledger", "verdict", "chain", "held against")
        note = "Every target once, in order; bytes and totals added up again; every line's digest covers those before it."
        blocks.append(Sheet(Table("Ledgers, recomputed", columns, rows, note)))
    else:
        blocks.append(Prose("There is no ledger, so no score can be recomputed from its parts."))
    blocks += _audit_blocks(run, evidence.audit)
    return Section("evidence", "Evidence", blocks)


def _audit_blocks(run: RunRecord, audit: Mapping[str, Any] | None) -> list[Block]:
    if audit is None:
        return [
            Prose(
                f"No audit beside the run. `pgolf audit ... --json > {run.folder.name}/{AUDIT}` puts one here."
            )
        ]
    rows = [
        [str(finding.get(key, "")) for key in ("condition", "test", "verdict", "evidence")]
        for finding in audit["findings"]
    ]
    verdict = "No violation found" if audit["ok"] else f"Violated: {', '.join(map(str, audit['violated']))}"
    text = f"Audit of {audit.get('subject', '')} on {audit['targets']:,} targets, seed {audit['seed']}: {verdict}."
    table = Table(f"All {len(rows)} tests", ("condition", "test", "verdict", "evidence"), rows)
    return [Prose(text, "good" if audit["ok"] else "bad"), Sheet(table, folded=True)]
