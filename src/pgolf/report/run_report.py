"""What there is to say about a run, from its folder: scores, evidence, curves, bytes, provenance."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pgolf.data.dataset import Dataset
from pgolf.evaluate.evaluations import EVALUATIONS
from pgolf.evaluate.ledger import Entry, Verification, read_header, read_ledger, total, verify_ledger
from pgolf.report.content import (
    Bars,
    Block,
    Card,
    LineChart,
    Listing,
    Prose,
    Report,
    Section,
    Series,
    Table,
    Waterfall,
    in_seconds,
)
from pgolf.report.draw import loss_chart, points_of
from pgolf.report.memory_tables import place_table
from pgolf.runs.records import RunRecord
from pgolf.runtime.files import read_text, sha256_file
from pgolf.runtime.run_files import ARTIFACT, AUDIT, RECIPE, Audit, read_checked

# Segments of the text in which two evaluations are compared.
_SEGMENTS = 40


def run_report(run: RunRecord, dataset: Dataset | None = None, more: Sequence[Section] = ()) -> Report:
    """A report of a run, finished or not. Without a dataset the ledgers are verified alone; ``more`` are
    sections that took work (``text_section``, samples), which follow the bytes.
    """
    evidence = collect_evidence(run, dataset)
    sections = [_scores(run), _training(run), _learning(run), _memory(run), _bytes(run), *more]
    sections += [evidence_section(run, evidence), _making(run), _commands(run)]
    description = str(run.recipe.get("description", ""))
    kept = [section for section in sections if section is not None]
    return Report(str(run.field("recipe")), description, _cards(run, evidence), kept)


def _cards(run: RunRecord, evidence: Evidence) -> list[Card]:
    cards = []
    made = [entry for name, entry in EVALUATIONS.items() if name in run.evaluations]
    if made:
        cards.append(Card(made[-1].label, f"{run.score(made[-1].name):.4f}", made[-1].of))
    elif (bpb := run.score("raw")) is not None:
        cards.append(Card("validation BPB", f"{bpb:.4f}", f"last weights, after {run.steps:,} steps"))
    if pack := run.result.get("pack"):
        total, cap = pack["total_bytes"], pack["cap"]
        over = max(0, total - cap)
        note = f"{over:,} above the cap" if over else f"of {cap:,}, code included; {cap - total:,} left"
        cards.append(Card("bytes", f"{total:,}", note, total / cap, "bad" if over else "plain"))
    training = run.state == "training"
    note = f"of {run.recipe.get('train.steps', run.steps):,} so far" if training else _time(run)
    return [*cards, *evidence_cards(evidence), Card("steps", f"{run.steps:,}", note)]


def _time(run: RunRecord) -> str:
    return in_seconds(run.result.get("train", {}).get("seconds"))


def score_steps(bpb: Mapping[str, float]) -> list[Waterfall]:
    """From the first of some scores (bits per byte by evaluation) to the last; nothing for less than two."""
    made = [entry for name, entry in EVALUATIONS.items() if math.isfinite(bpb.get(name, math.nan))]
    if len(made) < 2:
        return []
    first, steps = (made[0].title, bpb[made[0].name]), [(entry.step, bpb[entry.name]) for entry in made[1:]]
    note = "Less is better. The axis begins near the smallest score, not at 0."
    return [Waterfall("Where the score comes from", "bits per byte", first, steps, "final", note)]


def _scores(run: RunRecord) -> Section:
    found = {name: run.evaluations[name] for name in EVALUATIONS if name in run.evaluations}
    blocks: list[Block] = []
    blocks += score_steps({name: score["val_bpb"] for name, score in found.items()})
    rows = []
    for name, score in found.items():
        label, of, seconds = EVALUATIONS[name].label, EVALUATIONS[name].of, score.get("seconds")
        took = None if seconds is None else f"{seconds:.1f}"
        rows.append([label, score["val_bpb"], score["val_loss"], took, of])
    columns = ("score", "BPB", "nats per token", "seconds", "of")
    nothing = Prose(f"No scores yet: the run is {run.state}.")
    blocks.append(Table("Every score", columns, rows) if rows else nothing)
    if pack := run.result.get("pack"):
        blocks.append(Prose(f"Artifact with scoring code: {_share_of_cap(pack)}.", strong=True))
    scopes = {(entry["targets"], entry["bytes"]) for entry in found.values()}
    if len(scopes) == 1:
        [(targets, size)] = scopes
        scope = f"the same {targets:,} targets, {size:,} bytes of held-out text, each exactly once"
        blocks.append(Prose(f"Every score covers {scope}."))
    elif scopes:
        counts = ", ".join(f"{name} {entry['targets']:,}" for name, entry in found.items())
        text = f"These scores cover different numbers of targets and do not compare: {counts}."
        blocks.append(Prose(text, "bad", strong=True))
    return Section("scores", "Scores", blocks)


def _share_of_cap(pack: Mapping[str, Any]) -> str:
    """Bytes of the artifact and its code, of how many."""
    share = 100 * pack["total_bytes"] / pack["cap"]
    return f"{pack['total_bytes']:,} of {pack['cap']:,} bytes ({share:.1f} %)"


def validation_points(entries: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(step, bits per byte) of the validations; that before training only where little else is there."""
    points = points_of(entries, "val_bpb")
    return points[1:] if len(points) > 2 and points[0][0] == 0 else points


def _training(run: RunRecord) -> Section | None:
    if not points_of(run.metrics, "train_loss"):
        return None
    charts: list[Block] = [loss_chart(run.metrics)]
    every, shown = points_of(run.metrics, "val_bpb"), validation_points(run.metrics)
    if shown:
        note = f"Not shown: {every[0][1]:.4f} at step 0, before training." if len(shown) < len(every) else ""
        lines = [Series("validation, last weights", shown, "dots", 1)]
        if (bpb := run.score("float")) is not None:
            lines.append(Series("averaged weights", [(float(run.steps), bpb)], "points", 2))
        charts.append(LineChart("Validation", "step", "bits per byte", lines, note=note))
    rate = Series("scale", points_of(run.metrics, "lr_scale"), "line", 3)
    speed = Series("tokens per second", points_of(run.metrics, "tokens_per_second"), "line", 4)
    charts.append(LineChart("Learning rate", "step", "times its highest", [rate]))
    charts.append(LineChart("Speed", "step", "tokens per second", [speed]))
    return Section("training", "Training", charts)


def _learning(run: RunRecord) -> Section | None:
    """Scores along the text: by how much test-time training helps, and where."""
    chunks, size = run.evaluations.get("ttt", {}).get("chunks", []), run.recipe.get("ttt.chunk_tokens", 0)
    ledgers, lines, learning = {}, [], "with learning (TTT)"
    labels = {"sliding": "sliding", "ttt": learning, "memory": "with memory"}
    for color, (name, label) in enumerate(labels.items()):
        path = run.folder / EVALUATIONS[name].ledger
        if name in run.evaluations and path.is_file():
            ledgers[label] = read_ledger(path)[1]
            lines.append(Series(label, _running(ledgers[label]), "line", color))
    if chunks and learning not in ledgers:
        points = [(float(size * index), bpb) for index, bpb in enumerate(chunks, 1)]
        lines.append(Series(learning, points, "line", 1))
    if not lines:
        return None
    blocks: list[Block] = [Prose(_method(run))] if chunks else []
    blocks.append(LineChart("Score so far", "targets scored", "bits per byte", lines))
    if len(ledgers) > 1 and len(segments := _segments(*ledgers.values())) > 1:
        curves = ([(part[0], part[at + 1]) for part in segments] for at in range(len(ledgers)))
        every = enumerate(zip(ledgers, curves, strict=True))
        series = [Series(name, curve, "dots", color) for color, (name, curve) in every]
        note = "Bits per byte of each stretch of the text on its own."
        blocks.append(LineChart("Stretch by stretch", "targets", "bits per byte", series, note=note))
    if chunks:
        shown = sorted({part * (len(chunks) - 1) // 4 for part in range(5)})
        rows = [[f"{at + 1}", chunks[at]] for at in shown]
        note = f"Everything up to and including the chunk, of {size:,} targets each."
        columns = ("chunk", "bits per byte so far")
        blocks.append(Table("Score after chunks", columns, rows, note, folded=True))
    return Section("ttt", "Test-time training" if chunks else "Along the text", blocks)


def _memory(run: RunRecord) -> Section | None:
    """Where in the stream the memory wins."""
    paths = [run.folder / EVALUATIONS[name].ledger for name in ("ttt", "memory")]
    if "memory" not in run.evaluations or not all(path.is_file() for path in paths):
        return None
    without, mixed = (read_ledger(path)[1] for path in paths)
    return Section("memory", "Memory", [place_table(without, mixed)])


def _running(entries: Sequence[Entry]) -> list[tuple[float, float]]:
    """(targets so far, their bits per byte) after each entry; without those before the first byte."""
    points, nats, size = [], 0.0, 0
    for entry in entries:
        nats, size = nats + entry.nats, size + entry.bytes
        if size:
            points.append((float(entry.first + entry.targets), nats / math.log(2) / size))
    return points


def _segments(*ledgers: Sequence[Entry]) -> list[tuple[float, ...]]:
    """(middle target, bits per byte of each) of stretches at whose ends all ledgers have an edge."""
    edges = [{entry.first + entry.targets for entry in entries} for entries in ledgers]
    ends = sorted(set.intersection(*edges))
    count = min(_SEGMENTS, len(ends))
    found, start = list[tuple[float, ...]](), 0
    for end in sorted({ends[(index + 1) * len(ends) // count - 1] for index in range(count)}):
        inside = ([entry for entry in entries if start <= entry.first < end] for entries in ledgers)
        found.append(((start + end) / 2, *(total(entries).bpb for entries in inside)))
        start = end
    return found


def _method(run: RunRecord) -> str:
    ttt = {key.removeprefix("ttt."): value for key, value in run.recipe.items() if key.startswith("ttt.")}
    adapters = ttt.get("method") not in ("full", None)
    names = (f"{'lora.' if adapters else ''}{name}" for name in ("lr", "epochs", "chunk_tokens"))
    rate, epochs, size = (ttt[name] for name in names)
    if adapters:
        what = f"{ttt['method']}, rank {ttt['lora.rank']}, alpha {ttt['lora.alpha']:g}"
        who = f"Low-rank adapters learn ({what}): AdamW, rate {rate}"
    else:
        who = f"All weights learn: {str(ttt['optimizer']).upper()}, learning rate {rate}"
    how = f"{epochs} epochs over each scored chunk of {size:,} targets"
    return f"{who}, {how}. Every chunk is scored before anything learns from it."


def _bytes(run: RunRecord) -> Section | None:
    pack = run.result.get("pack")
    if not pack:
        return None
    tensors = pack.get("tensors", [])
    free = pack.get("tokenizer_bytes", 0) if not pack.get("tokenizer_counts") else 0
    code = pack["total_bytes"] - pack["model_bytes"] + free
    sizes = f"Artifact {pack['model_bytes']:,} bytes, packed scoring code {code:,}"
    without = f", without the tokenizer's {free:,} bytes" if free else ""
    blocks: list[Block] = [Prose(f"{sizes}: together{without} {_share_of_cap(pack)}.")]
    if tensors:
        parts = [(tensor["group"], tensor["name"], float(tensor["bytes"])) for tensor in tensors]
        parts.append(("code", "packed scoring code", float(code)))
        if memory := pack.get("origin", {}).get("memory"):
            parts.append(("memory", "stored text and counts", float(memory["bytes"])))
        note = "Every piece of a bar is a tensor, as long as its bytes."
        blocks.append(Bars("Where the bytes are", "bytes", parts, note))
    rows = []
    for name, group in pack.get("groups", {}).items():
        size, count = group["bytes"], group["entries"]
        rows.append([name, size, 8 * size / max(count, 1), count, group["tensors"]])
    columns = ("group", "bytes", "bits per number", "numbers", "tensors")
    blocks.append(Table("By group of tensors", columns, rows, digits=2, bar="bytes"))
    return Section("bytes", "Bytes", [*blocks, _tensor_table(tensors)] if tensors else blocks)


def _tensor_table(tensors: Sequence[Mapping[str, Any]]) -> Table:
    keys = ("name", "bytes", "bits_per_weight", "entries", "width", "group")
    rows = []
    for tensor in sorted(tensors, key=lambda tensor: -tensor["bytes"]):
        rises = (tensor.get(key) for key in ("predicted", "measured"))
        thousandths = (None if rise is None else 1e3 * rise for rise in rises)
        rows.append([*(tensor[key] for key in keys), *thousandths])
    columns = ("tensor", "bytes", "bits per number", "numbers", "width", "group", "predicted", "measured")
    note = (
        "Width: bits of the largest code, or 16 or 32 for floats. Predicted and measured: rise of the loss "
        "on the calibration text through this tensor's rounding, in thousandths of a nat per token."
    )
    return Table(f"All {len(tensors)} tensors", columns, rows, note, digits=3, bar="bytes", folded=True)


def _making(run: RunRecord) -> Section:
    made, trained = run.provenance, run.result.get("train", {})
    software, data = made.get("environment", {}), made.get("data", {})
    versions = ", ".join(f"{name} {software.get(name.lower())}" for name in ("Python", "torch", "numpy"))
    cores = f"{software.get('cpu_cores')} cores, {software.get('threads', '?')} threads"
    rows = [
        ("run", f"{run.name}, {run.state}"),
        ("started", run.date),
        ("training", f"{trained.get('steps', run.steps):,} steps {_time(run)}".rstrip()),
        ("data", f"{data.get('folder')}, fingerprint {str(data.get('fingerprint'))[:16]}"),
        ("tokenizer", f"SHA-256 {str(data.get('tokenizer_sha256'))[:16]}"),
        ("pgolf", f"{software.get('pgolf')}, code SHA-256 {str(software.get('code_sha256'))[:16]}"),
        ("software", versions),
        ("machine", f"{software.get('device_name')}, {cores}, {software.get('platform')}"),
    ]
    if made.get("ranks", 1) != 1:
        rows.append(("ranks", f"{made['ranks']}"))
    for session in made.get("sessions", [])[1:]:
        rows.append(("continued", f"{session.get('started')} on {session.get('host')}"))
    for shared in made.get("shared", []):
        parts = ", ".join(f"{what}: {which}" for what, which in shared.items() if what != "with")
        rows.append(("shared", f"with the run {shared['with']} beside it: {parts}"))
    text = read_text(run.folder / RECIPE).rstrip().splitlines()
    facts = Table("Environment and provenance", ("", ""), rows)
    recipe = Listing(text, "toml", "The recipe, resolved", folded=True)
    return Section("provenance", "How it was made", [facts, recipe])


def _commands(run: RunRecord) -> Section:
    """What made the run, and what makes it again from the files that are left, as shell lines."""
    given = [str(word) for word in run.provenance.get("command", [])[1:]]
    data = ["--data", str(run.provenance.get("data", {}).get("folder"))]
    if "--tokenizer" in given[:-1]:
        data += ["--tokenizer", given[given.index("--tokenizer") + 1]]
    same = "# the same on the recorded data, from this folder"
    commands = [("# what was typed", ["pgolf", *given])]
    commands.append((same, ["pgolf", "run", RECIPE, *data, "--out", "again"]))
    made = [EVALUATIONS[name] for name in EVALUATIONS if name in run.evaluations]
    made = [entry for entry in made if entry.file == ARTIFACT]
    recorded = [entry for entry in made if (run.folder / entry.ledger).is_file()]
    if recorded:
        again = ["pgolf", "eval", ARTIFACT, *data, "--mode", recorded[-1].mode]
        verify = ["pgolf", "verify-ledger", recorded[-1].ledger, *data, "--artifact", ARTIFACT]
        commands += [("# one score again", again), ("# and the record of it", verify)]
    lines = [line for comment, words in commands for line in (comment, shlex.join(words))]
    return Section("repeat", "Repeat it", [Listing(lines)])


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
    """Verify a run's ledgers and read its audit; PgolfError where that is damaged."""
    artifact, path = run.folder / ARTIFACT, run.folder / AUDIT
    digest = sha256_file(artifact) if artifact.is_file() else ""
    remedy = f"write it with `pgolf audit {run.folder}`, or remove it"
    audit = read_checked(path, Audit, remedy) if path.is_file() else None
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
        put = f"`pgolf audit {run.folder.name}` puts one here."
        return Section("evidence", "Evidence", [*blocks, Prose(f"No audit beside the run. {put}")])
    columns = ("condition", "test", "verdict", "evidence")
    tests = [[str(finding.get(key, "")) for key in columns] for finding in audit["findings"]]
    verdict = "No violation found" if audit["ok"] else f"Violated: {', '.join(map(str, audit['violated']))}"
    where = f"{audit.get('subject', '')} on {audit['targets']:,} targets, seed {audit['seed']}"
    blocks.append(Prose(f"Audit of {where}: {verdict}.", "good" if audit["ok"] else "bad"))
    blocks.append(Table(f"All {len(tests)} tests", columns, tests, folded=True))
    return Section("evidence", "Evidence", blocks)
