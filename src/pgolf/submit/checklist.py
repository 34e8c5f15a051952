"""The rules of a track, each with what shows that a submission keeps it, or does not.

Rules: 16,000,000 bytes (decimal) for the script and the artifact; training and evaluation within 600 s each
on 8 H100; three seeds; the whole official validation split, scored validly; the script runs by itself. The
unlimited track has no limits of time, hardware and seeds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pgolf.audit.job import audited, usual_targets
from pgolf.data.dataset import Dataset
from pgolf.data.shards import shard_length
from pgolf.evaluate.ledger import Entry, Score, Verification, read_ledger, total
from pgolf.runtime.package import code_digest
from pgolf.runtime.run_files import ARTIFACT
from pgolf.submit.bundle import Bundle
from pgolf.submit.evidence import Candidate

Track = Literal["10min", "unlimited"]
TRACKS: dict[str, str] = {"10min": "track_10min_16mb", "unlimited": "track_non_record_16mb"}
LIMIT_SECONDS = 600.0
_SEEDS = 3
# Targets that the script scores to show that it runs and gives the recorded numbers.
_SHOWN = 2048
_SAME, _OTHER_DEVICE = 1e-6, 5e-3
# What an audit must have looked at.
_AUDITED = ("C1", "C2", "C3", "C4", "bytes", "isolation")


@dataclass(frozen=True)
class Split:
    """A published tokenization of the official validation text, as all its shards have it."""

    name: str
    tokens: int
    """With the first one, which is no target; windows of 2,048 leave 62,021,632 (sp1024) and 40,540,160
    (sp8192).
    """
    documents: int = 50_000
    bytes: int = 151_080_891


# By pieces of the tokenizer. Sources: logs and data of openai/parameter-golf and what was counted on its
# shards.
OFFICIAL = {1024: Split("sp1024", 62_021_846), 8192: Split("sp8192", 40_540_803)}


@dataclass(frozen=True)
class Item:
    """A rule and whether it is kept."""

    rule: str
    ok: bool
    evidence: str


def recorded_items(
    runs: Sequence[Candidate], bundle: Bundle, track: str, people: Sequence[str | None], packed: bool = True
) -> list[Item]:
    """The rules that what is recorded decides, in order: nothing is computed.

    Args:
        runs: one per seed.
        bundle: the script.
        track: a key of ``TRACKS``.
        people: author and GitHub ID.
        packed: False before the runs are packed again, which decides about bytes, times and calibration anew.
    """
    timed = track == "10min"
    of_artifacts = [
        *(_bytes(run, len(bundle.packed)) for run in runs),
        *(_time("training time", timed, run, run.train_seconds) for run in runs),
        *(_time("evaluation time", timed, run, float(run.score["seconds"])) for run in runs),
        _calibration(runs),
    ]
    return [
        *(of_artifacts if packed else []),
        _same_recipe(runs),
        _seeds(runs, timed),
        _hardware(runs, timed),
        _self_contained(bundle),
        _code(runs),
        _data(runs),
        Item("author", all(people), "named" if all(people) else "pass --author NAME and --github-id ID"),
    ]


def official_item(datasets: Sequence[Dataset]) -> Item:
    """Whether the validation text is the challenge's: as many tokens, documents and bytes as a published
    split has.

    Args:
        datasets: that the runs were scored on.

    Raises:
        PgolfError: a shard is bad or missing.
    """
    rule, texts = "validation text is the official one", []
    for dataset in {found.folder.resolve(): found for found in datasets}.values():
        pieces = dataset.tokenizer.vocab_size
        count = sum(shard_length(path) for path in dataset.val_shards)
        wanted = OFFICIAL.get(pieces)
        text = f"{count:,} tokens of {pieces:,} pieces"
        if wanted is not None and count == wanted.tokens:
            found = _counted(dataset, wanted.name)
            text = f"{wanted.name}: {_counts(found)}"
            if found == wanted:
                texts.append(text)
                continue
        known = "; ".join(f"{split.name}: {_counts(split)}" for split in OFFICIAL.values())
        return Item(rule, False, f"{dataset.folder.name} has {text}; the official splits are {known}")
    return Item(rule, True, "; ".join(dict.fromkeys(texts)))


def _counts(split: Split) -> str:
    return f"{split.tokens:,} tokens, {split.documents:,} documents, {split.bytes:,} bytes"


def _counted(dataset: Dataset, name: str) -> Split:
    """What the validation shards hold."""
    tokens, byte_counts = dataset.validation_text(1)
    documents = int((tokens == dataset.tokenizer.bos_id).sum())
    return Split(name, len(tokens), documents, int(byte_counts.sum(dtype=np.int64)))


def ledger_items(run: Candidate, found: Mapping[str, Verification]) -> list[Item]:
    """Whether a run's ledgers hold; ``found`` is what verification showed, by mode."""
    counted = run.score["mode"]
    items = [_ledger(f"ledger, seed {run.seed}", run.ledger, run.score, found[counted])]
    if counted != "sliding":
        score = run.result["evaluations"]["sliding"]
        items.append(_ledger(f"sliding ledger, seed {run.seed}", run.sliding_ledger, score, found["sliding"]))
    return items


def _bytes(run: Candidate, code: int) -> Item:
    model = run.artifact.stat().st_size
    total = model + code
    text = f"script {code:,} + artifact {model:,} = {total:,} of {run.cap:,} bytes"
    if total > run.cap:
        text += f": {total - run.cap:,} too many; use --repack"
    return Item(f"bytes, seed {run.seed}", total <= run.cap, text)


def _same_recipe(runs: Sequence[Candidate]) -> Item:
    first = _without_seed(runs[0])
    others = [str(run.folder) for run in runs[1:] if _without_seed(run) != first]
    if others:
        return Item("same recipe", False, f"{', '.join(others)}: another recipe than {runs[0].folder}")
    return Item("same recipe", True, f"{runs[0].recipe.name}, SHA-256 without seed as of {runs[0].folder}")


def _without_seed(run: Candidate) -> dict[str, Any]:
    tree = run.recipe.model_dump(mode="json")
    del tree["train"]["seed"]
    return tree


def _seeds(runs: Sequence[Candidate], timed: bool) -> Item:
    seeds = [run.seed for run in runs]
    listed = ", ".join(map(str, seeds))
    if len(set(seeds)) < len(seeds):
        return Item("seeds", False, f"{listed}: every run needs a seed of its own (--set train.seed=N)")
    if timed and len(seeds) < _SEEDS:
        return Item(
            "seeds", False, f"{listed}: a record needs at least {_SEEDS}; add runs, or use --track unlimited"
        )
    return Item("seeds", True, listed)


def _time(rule: str, timed: bool, run: Candidate, seconds: float) -> Item:
    text = f"{seconds:,.1f} s" + (f" of {LIMIT_SECONDS:,.0f}" if timed else ", no limit on this track")
    if rule == "training time" and seconds > run.result["train"]["seconds"]:
        text += f" ({run.packing_seconds:,.1f} s of it packing, which reads training text)"
    return Item(f"{rule}, seed {run.seed}", not timed or seconds <= LIMIT_SECONDS, text)


def _hardware(runs: Sequence[Candidate], timed: bool) -> Item:
    machines = sorted({run.machine for run in runs})
    right = all(
        "H100" in run.provenance["environment"]["device_name"] and run.provenance.get("ranks", 1) == 8
        for run in runs
    )
    text = "; ".join(machines)
    if timed and not right:
        text += ": the times of this track are those of 8 x H100; use --track unlimited"
    return Item("hardware", right or not timed, text)


def _ledger(rule: str, ledger: Path, score: Mapping[str, Any], found: Verification) -> Item:
    if found.problem is not None:
        return Item(rule, False, f"{ledger.name}: {found.problem}")
    recorded = score["val_bpb"]
    if abs(found.score.bpb - recorded) > _SAME:
        return Item(
            rule, False, f"gives {found.score.bpb:.8f} bits per byte, result.json says {recorded:.8f}"
        )
    text = (
        f"chain, order, text and bytes recomputed: {found.score.targets:,} targets (the whole split), "
        f"{found.score.bytes:,} bytes, {found.score.bpb:.8f} bits per byte, of this artifact"
    )
    return Item(rule, True, text)


def audit_item(audit: Mapping[str, Any] | None, run: Candidate, dataset: Dataset) -> Item:
    """Whether an audit shows that the scoring of a run is valid.

    Args:
        audit: what ``pgolf audit --json`` prints, or None if there was no audit.
        run: whose evaluation that counts should have been audited.
        dataset: that it was scored on.
    """
    if audit is None:
        return Item("audit", False, "left out (--no-audit); valid scoring is not shown")
    about = audit.get("audited")
    if not isinstance(about, Mapping):
        return Item(
            "audit", False, "does not say what was audited; make it again with `pgolf audit ... --json`"
        )
    wanted = audited(run.artifact, run.recipe, dataset, run.score["mode"])
    others = [key.removesuffix("_sha256") for key, value in wanted.items() if about.get(key) != value]
    if others:
        needed = f"`pgolf audit {run.folder / ARTIFACT} --mode {run.score['mode']} --data DIR --json`"
        return Item(
            "audit", False, f"is of another {' and '.join(others)} than the first run; needed: {needed}"
        )
    fewest = min(usual_targets(run.recipe, run.score["mode"]), run.score["targets"])
    if audit["targets"] < fewest:
        return Item(
            "audit", False, f"{audit['targets']:,} targets are too few; leave --targets out ({fewest:,})"
        )
    violated = ", ".join(
        sorted({str(f["condition"]) for f in audit["findings"] if f["verdict"] == "violation"})
    )
    if violated or not audit["ok"]:
        return Item("audit", False, f"violates {violated or 'a condition'}; see `pgolf audit`")
    if absent := [name for name in _AUDITED if name not in {f["condition"] for f in audit["findings"]}]:
        return Item("audit", False, f"holds no findings on {', '.join(absent)}")
    where = f"{audit['subject']}, {audit['targets']:,} targets"
    text = f"{where}: {len(audit['findings'])} tests without a violation (C1 to C4, bytes, isolation)"
    return Item("audit", True, f"{text}, of this artifact and text")


def _calibration(runs: Sequence[Candidate]) -> Item:
    sources = sorted({str(run.origin.get("calibration", {}).get("source", "none")) for run in runs})
    right = set(sources) <= {"train", "self", "none"}
    return Item("no validation text before scoring", right, f"calibration text: {', '.join(sources)}")


def _self_contained(bundle: Bundle) -> Item:
    fetching = re.findall(
        r"^(?:import|from) (?:urllib|requests|socket|http|huggingface_hub|ftplib)\b.*", bundle.readable, re.M
    )
    text = f"one file; imports {', '.join(bundle.requirements)} and the standard library, nothing of pgolf, no network"
    return Item("self-contained", not fetching, fetching[0] if fetching else text)


def _code(runs: Sequence[Candidate]) -> Item:
    made = {run.provenance["environment"]["code_sha256"] for run in runs}
    now = code_digest()
    if made == {now}:
        return Item("code", True, f"runs and script are of the same code, SHA-256 {now[:16]}")
    if len(made) > 1:
        return Item("code", False, "the runs were made by different versions of the code")
    text = (
        f"the runs are of code {made.pop()[:16]}, the script of {now[:16]}: that it trains the same is not shown; "
        "train again with this version"
    )
    return Item("code", False, text)


def _data(runs: Sequence[Candidate]) -> Item:
    found = {
        (run.provenance["data"]["tokenizer_sha256"], run.provenance["data"]["fingerprint"]) for run in runs
    }
    if len(found) > 1:
        return Item("data", False, "the runs were trained on different data or tokenizers")
    tokenizer, fingerprint = found.pop()
    name = Path(runs[0].provenance["data"]["folder"]).name
    return Item(
        "data", True, f"{name}, training shards {fingerprint[:16]}, tokenizer SHA-256 {tokenizer[:16]}"
    )


def run_script(script: Path, run: Candidate, dataset: Dataset, device: str, ledger: Verification) -> Item:
    """Have the script score the first targets in a process of its own, and compare with the run's sliding
    ledger.

    Args:
        script: the file.
        run: whose artifact it scores.
        dataset: the text.
        device: where.
        ledger: what verifying the sliding ledger showed.
    """
    rule = "the script runs"
    if ledger.problem is not None:
        return Item(
            rule, False, "not run: the sliding ledger, which it would be compared with, does not hold"
        )
    beginning = _beginning(read_ledger(run.sliding_ledger)[1])
    command = [
        *(sys.executable, "-I", str(script.resolve()), "--artifact", str(run.artifact.resolve())),
        *("--data", str(dataset.folder.resolve()), "--tokenizer", str(dataset.tokenizer.path.resolve())),
        *("--modes", "sliding", "--targets", str(beginning.targets), "--device", device),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parent)
    results = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("result ")]
    if done.returncode or not results:
        last = (done.stderr.strip().splitlines() or ["no result"])[-1]
        return Item(rule, False, f"it ended with status {done.returncode}: {last}")
    found, bits = results[0], beginning.bpb
    same_kind = run.provenance["environment"]["device"].partition(":")[0] == device.partition(":")[0]
    close = abs(found["val_bpb"] - bits) <= (_SAME if same_kind else _OTHER_DEVICE)
    scores = f"{found['val_bpb']:.8f} bits per byte, in the ledger {bits:.8f}"
    text = f"first {beginning.targets:,} targets on {device}: {scores}"
    return Item(rule, close and found["bytes"] == beginning.bytes, text)


def _beginning(entries: Sequence[Entry]) -> Score:
    """The sums of the first entries that cover some targets."""
    taken: list[Entry] = []
    for entry in entries:
        taken.append(entry)
        if entry.first + entry.targets >= _SHOWN:
            break
    return total(taken)
