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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.audit.audit import audited, usual_targets
from pgolf.data.dataset import Dataset
from pgolf.data.shards import shard_length
from pgolf.evaluate.ledger import Verification, read_ledger, total
from pgolf.runtime.environment import code_digest
from pgolf.runtime.run_files import ARTIFACT
from pgolf.submit.bundle import Bundle
from pgolf.submit.evidence import Candidate

TRACKS: dict[str, str] = {"10min": "track_10min_16mb", "unlimited": "track_non_record_16mb"}
LIMIT_SECONDS = 600.0
_SEEDS = 3
# Targets that the script scores to show that it runs and gives the recorded numbers.
_SHOWN = 2048
_SAME, _OTHER_DEVICE = 1e-6, 5e-3
# What an audit must have looked at.
_AUDITED = ("C1", "C2", "C3", "C4", "bytes", "isolation")
_FETCHING = r"^(?:import|from) (?:urllib|requests|socket|http|huggingface_hub|ftplib)\b.*"


@dataclass(frozen=True)
class Split:
    """A published tokenization of the official validation text, as all its shards have it."""

    name: str
    tokens: int
    """With the first, which is no target; windows of 2,048 leave 62,021,632 (sp1024), 40,540,160 (sp8192)."""
    documents: int = 50_000
    bytes: int = 151_080_891

    def counts(self) -> str:
        """Them in words."""
        return f"{self.name}: {self.tokens:,} tokens, {self.documents:,} documents, {self.bytes:,} bytes"


# By pieces of the tokenizer. Sources: logs and data of openai/parameter-golf, and counts of its shards.
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

    ``people`` are author and GitHub ID. Before runs are ``packed`` again bytes, times and calibration are
    left out, for packing decides them anew.
    """
    timed = track == "10min"
    return [
        *(_of_artifacts(runs, len(bundle.packed), timed) if packed else []),
        *_of_runs(runs, timed),
        *_of_sources(runs, bundle),
        Item("author", all(people), "named" if all(people) else "pass --author NAME and --github-id ID"),
    ]


def official_item(datasets: Sequence[Dataset]) -> Item:
    """Whether the validation text is the challenge's: as many tokens, documents and bytes as a published
    split has; PgolfError where a shard is bad or missing.
    """
    rule, texts = "validation text is the official one", []
    for dataset in {found.folder.resolve(): found for found in datasets}.values():
        pieces = dataset.tokenizer.vocab_size
        count = sum(shard_length(path) for path in dataset.val_shards)
        wanted = OFFICIAL.get(pieces)
        text = f"{count:,} tokens of {pieces:,} pieces"
        if wanted is not None and count == wanted.tokens:
            tokens, byte_counts = dataset.validation_text(1)
            documents = int((tokens == dataset.tokenizer.bos_id).sum())
            found = Split(wanted.name, len(tokens), documents, int(byte_counts.sum(dtype=np.int64)))
            text = found.counts()
            if found == wanted:
                texts.append(text)
                continue
        known = "; ".join(split.counts() for split in OFFICIAL.values())
        return Item(rule, False, f"{dataset.folder.name} has {text}; the official splits are {known}")
    return Item(rule, True, "; ".join(dict.fromkeys(texts)))


def ledger_items(run: Candidate, found: Mapping[str, Verification]) -> list[Item]:
    """Whether a run's ledgers hold; ``found`` is what verification showed, by evaluation."""
    rules = {run.counts: "ledger"} | ({"sliding": "sliding ledger"} if run.counts != "sliding" else {})
    return [_ledger(f"{rule}, seed {run.seed}", run, name, found[name]) for name, rule in rules.items()]


def _ledger(rule: str, run: Candidate, name: str, found: Verification) -> Item:
    if found.problem is not None:
        return Item(rule, False, f"{run.ledgers[name].name}: {found.problem}")
    bits, recorded = f"{found.score.bpb:.8f} bits per byte", run.scores[name]["val_bpb"]
    if abs(found.score.bpb - recorded) > _SAME:
        return Item(rule, False, f"gives {bits}, result.json says {recorded:.8f}")
    counts = f"{found.score.targets:,} targets (the whole split), {found.score.bytes:,} bytes"
    return Item(rule, True, f"chain, order, text and bytes recomputed: {counts}, {bits}, of this artifact")


def _of_artifacts(runs: Sequence[Candidate], code: int, timed: bool) -> Iterator[Item]:
    for run in runs:
        size = run.model_bytes + code
        text = f"script {code:,} + artifact {run.model_bytes:,} = {size:,} of {run.cap:,} bytes"
        text += f": {size - run.cap:,} too many; use --repack" if size > run.cap else ""
        yield Item(f"bytes, seed {run.seed}", size <= run.cap, text)
    limit = f" of {LIMIT_SECONDS:,.0f}" if timed else ", no limit on this track"
    for run in runs:
        seconds, text = run.train_seconds, f"{run.train_seconds:,.1f} s{limit}"
        if seconds > run.trained["seconds"]:
            text += f" ({run.packing_seconds:,.1f} s of it packing, which reads training text)"
        yield Item(f"training time, seed {run.seed}", not timed or seconds <= LIMIT_SECONDS, text)
    for run in runs:
        seconds = float(run.score["seconds"])
        ok = not timed or seconds <= LIMIT_SECONDS
        yield Item(f"evaluation time, seed {run.seed}", ok, f"{seconds:,.1f} s{limit}")
    sources = sorted({str(run.origin.get("calibration", {}).get("source", "none")) for run in runs})
    right = set(sources) <= {"train", "self", "none"}
    text = f"calibration text: {', '.join(sources)}"
    if stored := {run.origin["memory"]["tokens"] for run in runs if "memory" in run.origin}:
        text += f"; the memory's: {', '.join(map('{:,}'.format, sorted(stored)))} tokens of the training text"
    yield Item("no validation text before scoring", right, text)


def _of_runs(runs: Sequence[Candidate], timed: bool) -> Iterator[Item]:
    trees = [run.recipe.model_dump(mode="json", exclude={"train": {"seed"}}) for run in runs]
    others = [str(run.folder) for run, tree in zip(runs, trees, strict=True) if tree != trees[0]]
    text = f"{runs[0].recipe.name}, SHA-256 without seed as of {runs[0].folder}"
    if others:
        text = f"{', '.join(others)}: another recipe than {runs[0].folder}"
    yield Item("same recipe", not others, text)
    seeds, problem = [run.seed for run in runs], ""
    if len(set(seeds)) < len(seeds):
        problem = ": every run needs a seed of its own (--set train.seed=N)"
    elif timed and len(seeds) < _SEEDS:
        problem = f": a record needs at least {_SEEDS}; add runs, or use --track unlimited"
    yield Item("seeds", not problem, ", ".join(map(str, seeds)) + problem)
    names = [run.provenance["environment"]["device_name"] for run in runs]
    right = all("H100" in name for name in names) and all(run.provenance.get("ranks", 1) == 8 for run in runs)
    text = "; ".join(sorted({run.machine for run in runs}))
    if timed and not right:
        text += ": the times of this track are those of 8 x H100; use --track unlimited"
    yield Item("hardware", right or not timed, text)


def _of_sources(runs: Sequence[Candidate], bundle: Bundle) -> Iterator[Item]:
    fetching = re.findall(_FETCHING, bundle.readable, re.M)
    imports = f"imports {', '.join(bundle.requirements)} and the standard library"
    text = fetching[0] if fetching else f"one file; {imports}, nothing of pgolf, no network"
    yield Item("self-contained", not fetching, text)
    made, now = {run.provenance["environment"]["code_sha256"] for run in runs}, code_digest()
    text = f"runs and script are of the same code, SHA-256 {now[:16]}"
    if len(made) > 1:
        text = "the runs were made by different versions of the code"
    elif made != {now}:
        both = f"the runs are of code {min(made)[:16]}, the script of {now[:16]}"
        text = f"{both}: that it trains the same is not shown; train again with this version"
    yield Item("code", made == {now}, text)
    data = {tuple(run.provenance["data"][key] for key in ("tokenizer_sha256", "fingerprint")) for run in runs}
    tokenizer, shards = min(data)
    name = Path(runs[0].provenance["data"]["folder"]).name
    text = f"{name}, training shards {shards[:16]}, tokenizer SHA-256 {tokenizer[:16]}"
    if len(data) > 1:
        text = "the runs were trained on different data or tokenizers"
    yield Item("data", len(data) == 1, text)


def audit_item(audit: Mapping[str, Any] | None, run: Candidate, dataset: Dataset) -> Item:
    """Whether an audit (of ``pgolf audit --json``) shows that the scoring of a run on a dataset is valid."""
    problem = _audit_problem(audit, run, dataset)
    if audit is None or problem:
        return Item("audit", False, problem)
    where = f"{audit['subject']}, {audit['targets']:,} targets"
    text = f"{len(audit['findings'])} tests without a violation (C1 to C4, bytes, isolation)"
    return Item("audit", True, f"{where}: {text}, of this artifact and text")


def _audit_problem(audit: Mapping[str, Any] | None, run: Candidate, dataset: Dataset) -> str:
    if audit is None:
        return "left out (--no-audit); valid scoring is not shown"
    about = audit.get("audited")
    if not isinstance(about, Mapping):
        return "does not say what was audited; make it again with `pgolf audit ... --json`"
    wanted = audited(run.artifact, run.recipe, dataset, run.mode)
    if others := [key.removesuffix("_sha256") for key, value in wanted.items() if about.get(key) != value]:
        needed = f"`pgolf audit {run.folder / ARTIFACT} --mode {run.mode} --data DIR --json`"
        return f"is of another {' and '.join(others)} than the first run; needed: {needed}"
    fewest = min(usual_targets(run.recipe, run.mode), run.score["targets"])
    if audit["targets"] < fewest:
        return f"{audit['targets']:,} targets are too few; leave --targets out ({fewest:,})"
    violated = sorted({str(f["condition"]) for f in audit["findings"] if f["verdict"] == "violation"})
    if violated or not audit["ok"]:
        return f"violates {', '.join(violated) or 'a condition'}; see `pgolf audit`"
    absent = [name for name in _AUDITED if name not in {f["condition"] for f in audit["findings"]}]
    return f"holds no findings on {', '.join(absent)}" if absent else ""


def run_script(script: Path, run: Candidate, dataset: Dataset, device: str, ledger: Verification) -> Item:
    """Have the script score the first targets in its own process, and compare with the sliding ledger."""
    rule = "the script runs"
    if ledger.problem is not None:
        return Item(
            rule, False, "not run: the sliding ledger, which it would be compared with, does not hold"
        )
    entries = read_ledger(run.ledgers["sliding"])[1]
    ends = list(accumulate(entry.targets for entry in entries))
    beginning = total(entries[: sum(end < _SHOWN for end in ends) + 1])
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
