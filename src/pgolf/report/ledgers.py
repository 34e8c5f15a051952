"""What reports read off ledgers: running scores, and whether they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.data.dataset import Dataset
from pgolf.evaluate.ledger import Entry, Verification, read_header, verify_ledger
from pgolf.runtime.files import sha256_file
from pgolf.runtime.run_files import ARTIFACT, MODEL, RAW

# What was scored, where it is not the artifact.
_WEIGHTS = {"raw": RAW, "float": MODEL}


def running(entries: Sequence[Entry]) -> list[tuple[float, float]]:
    """(targets so far, their bits per byte) after each entry; without those before the first byte."""
    points, nats, size = [], 0.0, 0
    for entry in entries:
        nats, size = nats + entry.nats, size + entry.bytes
        if size:
            points.append((float(entry.first + entry.targets), nats / math.log(2) / size))
    return points


@dataclass(frozen=True)
class Checked:
    """A ledger of a run, recomputed."""

    name: str
    """Which evaluation it is of."""
    verification: Verification
    against: str
    """What it was compared with beside itself."""


def check_ledgers(folder: Path, evaluations: Mapping[str, Any], dataset: Dataset | None) -> list[Checked]:
    """Verify the ledgers of a run: alone, against the weights in the folder, the data if given, the result's
    score.
    """
    checked = []
    whole = None if dataset is None else dataset.validation_text(1)
    for name, found in evaluations.items():
        path = folder / f"ledger.{name}.jsonl"
        if not path.is_file():
            continue
        weights = folder / _WEIGHTS.get(name, ARTIFACT)
        expected = {"artifact": sha256_file(weights)} if weights.is_file() else {}
        against = [f"{weights.name} (SHA-256)"] if expected else []
        text: tuple[Any, Any] = (None, None)
        if dataset is not None and whole is not None:
            targets = read_header(path)["targets"]
            text = whole.first(targets)
            expected["tokenizer"] = dataset.tokenizer.digest
            against.append("the text and bytes of the data, target by target")
        verification = verify_ledger(path, *text, expected)
        if verification.problem is None and not _same(verification, found):
            problem = (
                f"its score {verification.score.bpb!r} is not the one in result.json, {found['val_bpb']!r}"
            )
            verification = Verification([], problem, verification.score)
        checked.append(Checked(name, verification, " and ".join(against) or "nothing but itself"))
    return checked


def _same(verification: Verification, found: Mapping[str, Any]) -> bool:
    score = verification.score
    close = math.isclose(score.bpb, float(found["val_bpb"]), rel_tol=1e-9)
    return close and (score.targets, score.bytes) == (found["targets"], found["bytes"])
