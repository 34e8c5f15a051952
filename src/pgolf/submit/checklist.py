"""The rules of a track, each with what shows that a submission keeps it, or does not.

Rules: 16,000,000 bytes (decimal) for the script and the artifact; training and evaluation within 600 s each on 8 H100;
three seeds; the whole validation split, scored validly; the script runs by itself. The unlimited track has no limits of
time, hardware and seeds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pgolf.compress.code_size import code_bytes
from pgolf.data.dataset import Dataset
from pgolf.evaluate.ledger import Verification
from pgolf.provenance import code_digest
from pgolf.submit.bundle import Bundle
from pgolf.submit.evidence import RunRecord

Track = Literal["10min", "unlimited"]
TRACKS: dict[str, str] = {"10min": "track_10min_16mb", "unlimited": "track_non_record_16mb"}
CAP = 16_000_000
LIMIT_SECONDS = 600.0
_SEEDS = 3
# Targets that the script scores to show that it runs and gives the recorded numbers.
_SHOWN = 2048
_SAME, _OTHER_DEVICE = 1e-6, 5e-3


@dataclass(frozen=True)
class Item:
    """A rule and whether it is kept."""

    rule: str
    ok: bool
    evidence: str


def checklist(
    runs: Sequence[RunRecord],
    ledgers: Sequence[Verification],
    bundle: Bundle,
    track: str,
    people: Sequence[str | None],
    audit: dict[str, Any] | None,
    shown: Item,
) -> list[Item]:
    """All rules, in order.

    Args:
        runs: one per seed.
        ledgers: what verification found, in the same order.
        bundle: the script.
        track: a key of ``TRACKS``.
        people: author and GitHub ID.
        audit: what ``pgolf audit --json`` prints, or None if there was no audit.
        shown: what running the script showed.
    """
    timed = track == "10min"
    return [
        *(bytes_item(run, len(bundle.packed)) for run in runs),
        _same_recipe(runs),
        _seeds(runs, timed),
        *(_time("training time", timed, run, run.train_seconds) for run in runs),
        *(_time("evaluation time", timed, run, float(run.score["seconds"])) for run in runs),
        _hardware(runs, timed),
        *(_ledger(run, found) for run, found in zip(runs, ledgers, strict=True)),
        _audit(audit),
        _calibration(runs),
        shown,
        _self_contained(bundle),
        _code(runs),
        _data(runs),
        Item("author", all(people), "named" if all(people) else "pass --author NAME and --github-id ID"),
    ]


def bytes_item(run: RunRecord, code: int) -> Item:
    """Whether script and artifact fit."""
    model = run.artifact.stat().st_size
    cap = min(CAP, run.recipe.compress.cap)
    total = model + code
    text = f"script {code:,} + artifact {model:,} = {total:,} of {cap:,} bytes"
    if total > cap:
        remedy = f"pgolf pack {run.folder} --cap {cap - code + code_bytes()}"
        text += f": {total - cap:,} too many; use --repack (or `{remedy}` and evaluate again)"
    return Item(f"bytes, seed {run.seed}", total <= cap, text)


def _same_recipe(runs: Sequence[RunRecord]) -> Item:
    first = _without_seed(runs[0])
    others = [str(run.folder) for run in runs[1:] if _without_seed(run) != first]
    if others:
        return Item("same recipe", False, f"{', '.join(others)}: another recipe than {runs[0].folder}")
    return Item("same recipe", True, f"{runs[0].recipe.name}, SHA-256 without seed as of {runs[0].folder}")


def _without_seed(run: RunRecord) -> dict[str, Any]:
    tree = run.recipe.model_dump(mode="json")
    del tree["train"]["seed"]
    return tree


def _seeds(runs: Sequence[RunRecord], timed: bool) -> Item:
    seeds = [run.seed for run in runs]
    listed = ", ".join(map(str, seeds))
    if len(set(seeds)) < len(seeds):
        return Item("seeds", False, f"{listed}: every run needs a seed of its own (--set train.seed=N)")
    if timed and len(seeds) < _SEEDS:
        return Item("seeds", False, f"{listed}: a record needs at least {_SEEDS}; add runs, or use --track unlimited")
    return Item("seeds", True, listed)


def _time(rule: str, timed: bool, run: RunRecord, seconds: float) -> Item:
    text = f"{seconds:,.1f} s" + (f" of {LIMIT_SECONDS:,.0f}" if timed else ", no limit on this track")
    if rule == "training time" and seconds > run.result["train"]["seconds"]:
        text += f" ({run.packing_seconds:,.1f} s of it packing, which reads training text)"
    return Item(f"{rule}, seed {run.seed}", not timed or seconds <= LIMIT_SECONDS, text)


def _hardware(runs: Sequence[RunRecord], timed: bool) -> Item:
    machines = sorted({run.machine for run in runs})
    right = all(
        "H100" in run.provenance["environment"]["device_name"] and run.provenance.get("ranks", 1) == 8 for run in runs
    )
    text = "; ".join(machines)
    if timed and not right:
        text += ": the times of this track are those of 8 x H100; use --track unlimited"
    return Item("hardware", right or not timed, text)


def _ledger(run: RunRecord, found: Verification) -> Item:
    rule = f"ledger, seed {run.seed}"
    if found.problem is not None:
        return Item(rule, False, f"{run.ledger.name}: {found.problem}")
    recorded = run.score["val_bpb"]
    if abs(found.score.bpb - recorded) > _SAME:
        return Item(rule, False, f"gives {found.score.bpb:.8f} bits per byte, result.json says {recorded:.8f}")
    text = (
        f"chain, order, text and bytes recomputed: {found.score.targets:,} targets (the whole split), "
        f"{found.score.bytes:,} bytes, {found.score.bpb:.8f} bits per byte, of this artifact"
    )
    return Item(rule, True, text)


def _audit(audit: dict[str, Any] | None) -> Item:
    if audit is None:
        return Item("audit", False, "left out (--no-audit); valid scoring is not shown")
    if not audit.get("ok", False):
        violated = ", ".join(audit.get("violated", [])) or str(audit.get("problem", "not ok"))
        return Item("audit", False, f"violates {violated}; see `pgolf audit`")
    tests = len(audit.get("findings", []))
    where = f"{audit.get('subject', 'scorer')}, {audit.get('targets', 0):,} targets"
    return Item("audit", True, f"{where}: {tests} tests without a violation (C1 to C4, bytes, isolation)")


def _calibration(runs: Sequence[RunRecord]) -> Item:
    sources = sorted({str(run.origin.get("calibration", {}).get("source", "none")) for run in runs})
    right = set(sources) <= {"train", "self", "none"}
    return Item("no validation text before scoring", right, f"calibration text: {', '.join(sources)}")


def _self_contained(bundle: Bundle) -> Item:
    fetching = re.findall(
        r"^(?:import|from) (?:urllib|requests|socket|http|huggingface_hub|ftplib)\b.*", bundle.readable, re.M
    )
    text = f"one file; imports {', '.join(bundle.requirements)} and the standard library, nothing of pgolf, no network"
    return Item("self-contained", not fetching, fetching[0] if fetching else text)


def _code(runs: Sequence[RunRecord]) -> Item:
    made = {run.provenance["environment"]["code_sha256"] for run in runs}
    now = code_digest()
    if made == {now}:
        return Item("code", True, f"runs and script are of the same code, SHA-256 {now[:16]}")
    if len(made) > 1:
        return Item("code", False, "the runs were made by different versions of the code")
    text = (
        f"the runs are of code {made.pop()[:16]}, the script of {now[:16]}: that it scores the same is "
        "shown, that it trains the same is not; train again with this version"
    )
    return Item("code", False, text)


def _data(runs: Sequence[RunRecord]) -> Item:
    found = {(run.provenance["data"]["tokenizer_sha256"], run.provenance["data"]["fingerprint"]) for run in runs}
    if len(found) > 1:
        return Item("data", False, "the runs were trained on different data or tokenizers")
    tokenizer, fingerprint = found.pop()
    name = Path(runs[0].provenance["data"]["folder"]).name
    return Item("data", True, f"{name}, training shards {fingerprint[:16]}, tokenizer SHA-256 {tokenizer[:16]}")


def run_script(script: Path, run: RunRecord, dataset: Dataset, device: str) -> Item:
    """Have the script score the first targets in a process of its own, and compare with the run's ledger."""
    rule = "the script runs"
    targets, nats, count = _beginning(run.sliding_ledger)
    command = [
        *(sys.executable, "-I", str(script.resolve()), "--artifact", str(run.artifact.resolve())),
        *("--data", str(dataset.folder.resolve()), "--tokenizer", str(dataset.tokenizer.path.resolve())),
        *("--modes", "sliding", "--targets", str(targets), "--device", device),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parent)
    results = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("result ")]
    if done.returncode or not results:
        last = (done.stderr.strip().splitlines() or ["no result"])[-1]
        return Item(rule, False, f"it ended with status {done.returncode}: {last}")
    found, bits = results[0], nats / 0.6931471805599453 / max(count, 1)
    same_kind = run.provenance["environment"]["device"].partition(":")[0] == device.partition(":")[0]
    close = abs(found["val_bpb"] - bits) <= (_SAME if same_kind else _OTHER_DEVICE)
    text = f"first {targets:,} targets on {device}: {found['val_bpb']:.8f} bits per byte, in the ledger {bits:.8f}"
    return Item(rule, close and found["bytes"] == count, text)


def _beginning(ledger: Path) -> tuple[int, float, int]:
    """The first entries of a ledger that cover some targets: targets, nats, bytes."""
    targets, nats, count = 0, 0.0, 0
    for line in ledger.read_text(encoding="utf-8").splitlines()[1:-1]:
        entry = json.loads(line)
        targets, nats, count = targets + entry["targets"], nats + entry["nats"], count + entry["bytes"]
        if targets >= _SHOWN:
            break
    return targets, nats, count
