"""A ledger beside the data and the weights that it claims to be of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pgolf.data.dataset import open_dataset
from pgolf.data.inspect import check_bytes
from pgolf.evaluate.ledger import Verification, read_header, verify_ledger
from pgolf.runtime.run_files import artifact_digest


def verify_job(
    ledger: Path, data: Path | None, tokenizer: Path | None, artifact: Path | None
) -> Verification:
    """Recompute a ledger, against the data and the artifact where they are given."""
    header = read_header(ledger)
    expected = {} if artifact is None else {"artifact": artifact_digest(artifact)}
    if data is None:
        return verify_ledger(ledger, expected=expected)
    dataset = open_dataset(data, tokenizer)
    expected["tokenizer"] = dataset.tokenizer.digest
    text = dataset.validation_text(1)
    found = verify_ledger(ledger, *text.first(header["targets"]), expected)
    counts = check_bytes(dataset, text)
    share = f"{found.score.targets:,} of the {len(text.byte_counts):,} targets of the validation split"
    checks = [*found.checks, *counts.rows(), ("share of the data", share)]
    return replace(found, checks=checks, problem=found.problem or counts.problem)
