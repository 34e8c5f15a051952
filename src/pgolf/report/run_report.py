"""What there is to say about a run, from its folder: scores, evidence, curves, bytes, provenance."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from pgolf.data.dataset import Dataset
from pgolf.evaluate.ledger import read_ledger
from pgolf.report.content import (
    Areas,
    Block,
    Card,
    Facts,
    LineChart,
    Listing,
    Prose,
    Report,
    Section,
    Series,
    Sheet,
    Waterfall,
)
from pgolf.report.curve import smoothed
from pgolf.report.evidence import Evidence, collect_evidence, evidence_cards, evidence_section
from pgolf.report.findings import Table
from pgolf.report.ledgers import running
from pgolf.runs.records import RunRecord
from pgolf.runtime.files import read_text
from pgolf.runtime.run_files import ARTIFACT, RECIPE

# Name in result.json, label, what it is, the step that leads to it.
SCORES = (
    ("raw", "raw float BPB", "last weights, standard windows", "last weights"),
    ("float", "float BPB", "averaged weights, standard windows", "averaging"),
    ("packed", "packed BPB", "artifact, standard windows", "packing"),
    ("sliding", "sliding BPB", "artifact, sliding windows", "sliding windows"),
    ("ttt", "TTT BPB", "artifact, legal test-time training", "learning (TTT)"),
)
# Segments of the text in which two evaluations are compared.
_SEGMENTS = 40
# The first part of a curve whose heights do not choose the chart's range.
_BEGINNING = 0.03


def run_report(run: RunRecord, dataset: Dataset | None = None, more: Sequence[Section] = ()) -> Report:
    """A report of a run, finished or not.

    Args:
        run: what its folder says.
        dataset: its data, to verify the ledgers against; None verifies them alone.
        more: sections that took work (``text_analysis``, samples); they follow the bytes.
    """
    evidence = collect_evidence(run, dataset)
    sections = [
        _scores(run),
        _training(run),
        _learning(run),
        _bytes(run),
        *more,
        evidence_section(run, evidence),
    ]
    sections += [_making(run), _commands(run)]
    description = str(run.recipe.get("description", ""))
    kept = [section for section in sections if section is not None]
    return Report(str(run.field("recipe")), description, _cards(run, evidence), kept)


def _cards(run: RunRecord, evidence: Evidence) -> list[Card]:
    cards = []
    known = [(label, what, run.score(name)) for name, label, what, _ in SCORES if name in run.evaluations]
    if known:
        label, what, bpb = known[-1]
        cards.append(Card(label, f"{bpb:.4f}", what))
    elif (bpb := run.score("raw")) is not None:
        cards.append(Card("validation BPB", f"{bpb:.4f}", f"last weights, after {run.steps:,} steps"))
    if pack := run.result.get("pack"):
        spare = pack["cap"] - pack["total_bytes"]
        note = (
            f"of {pack['cap']:,}, code included; {spare:,} left"
            if spare >= 0
            else f"{-spare:,} above the cap"
        )
        share = pack["total_bytes"] / pack["cap"]
        cards.append(Card("bytes", f"{pack['total_bytes']:,}", note, share, "plain" if spare >= 0 else "bad"))
    total = run.recipe.get("train.steps", run.steps)
    note = f"of {total:,} so far" if run.state == "training" else _in_seconds(run).strip()
    return [*cards, *evidence_cards(evidence), Card("steps", f"{run.steps:,}", note)]


def _in_seconds(run: RunRecord) -> str:
    """The time of training; nothing where it was not recorded."""
    seconds = run.result.get("train", {}).get("seconds")
    if seconds is None:
        return ""
    return f" in {seconds:,.0f} s" if seconds >= 9.95 else f" in {seconds:.1f} s"


def _scores(run: RunRecord) -> Section:
    found = run.evaluations
    rows = [
        [label, entry["val_bpb"], entry["val_loss"], f"{entry['seconds']:.1f}", what]
        for name, label, what, _ in SCORES
        if (entry := found.get(name))
    ]
    blocks: list[Block] = []
    totals = [(label, step, run.score(name)) for name, label, _, step in SCORES if name in found]
    numbers = [(label, step, value) for label, step, value in totals if value is not None]
    if len(numbers) > 1:
        blocks.append(
            Waterfall(
                "Where the score comes from",
                "bits per byte",
                (numbers[0][0].removesuffix(" BPB"), numbers[0][2]),
                [(step, value) for _, step, value in numbers[1:]],
                "final",
                "Less is better. The axis begins near the smallest score, not at 0.",
            )
        )
    columns = ("score", "BPB", "nats per token", "seconds", "of")
    blocks.append(
        Sheet(Table("Every score", columns, rows))
        if rows
        else Prose(f"No scores yet: the run is {run.state}.")
    )
    if pack := run.result.get("pack"):
        blocks.append(Prose(f"Artifact with scoring code: {share_of_cap(pack)}.", strong=True))
    scopes = {(entry["targets"], entry["bytes"]) for entry in found.values()}
    if len(scopes) == 1:
        targets, size = scopes.pop()
        text = f"Every score covers the same {targets:,} targets, {size:,} bytes of held-out text, each exactly once."
        blocks.append(Prose(text))
    elif scopes:
        counts = ", ".join(f"{name} {entry['targets']:,}" for name, entry in found.items())
        text = f"These scores cover different numbers of targets and do not compare: {counts}."
        blocks.append(Prose(text, "bad", strong=True))
    return Section("scores", "Scores", blocks)


def share_of_cap(pack: dict[str, Any]) -> str:
    """Bytes of the artifact and its code, of how many."""
    share = 100 * pack["total_bytes"] / pack["cap"]
    return f"{pack['total_bytes']:,} of {pack['cap']:,} bytes ({share:.1f} %)"


def _training(run: RunRecord) -> Section | None:
    steps = [entry for entry in run.metrics if "train_loss" in entry]
    validations = [entry for entry in run.metrics if "val_bpb" in entry]
    if not steps:
        return None
    x, losses = [float(entry["step"]) for entry in steps], [float(entry["train_loss"]) for entry in steps]
    smooth = smoothed(losses)
    later = smooth[math.ceil(_BEGINNING * len(smooth)) :] or smooth
    high = max(later)
    charts: list[Block] = [
        LineChart(
            "Loss",
            "step",
            "nats per token",
            [
                Series("training, each step", list(zip(x, losses, strict=True)), "faint", 0),
                Series("training, smoothed", list(zip(x, smooth, strict=True)), "line", 0),
                Series("validation", _points(validations, "val_loss"), "dots", 1),
            ],
            highest=high if high < max(losses) else None,
            note="The beginning is higher than the chart." if high < max(losses) else "",
        )
    ]
    shown, note = _points(validations, "val_bpb"), ""
    if len(shown) > 2 and shown[0][0] == 0:
        note, shown = f"Not shown: {shown[0][1]:.4f} at step 0, before training.", shown[1:]
    if shown:
        scored = [Series("validation, last weights", shown, "dots", 1)]
        if (bpb := run.score("float")) is not None:
            scored.append(Series("averaged weights", [(float(run.steps), bpb)], "points", 2))
        charts.append(LineChart("Validation", "step", "bits per byte", scored, note=note))
    rate = _points(steps, "lr_scale")
    charts.append(LineChart("Learning rate", "step", "times its highest", [Series("scale", rate, "line", 3)]))
    speed = _points(steps, "tokens_per_second")
    charts.append(
        LineChart("Speed", "step", "tokens per second", [Series("tokens per second", speed, "line", 4)])
    )
    return Section("training", "Training", charts)


def _points(entries: Sequence[Any], key: str) -> list[tuple[float, float]]:
    return [(float(entry["step"]), float(entry[key])) for entry in entries if key in entry]


def _learning(run: RunRecord) -> Section | None:
    """Scores along the text: by how much test-time training helps, and where."""
    chunks = run.evaluations.get("ttt", {}).get("chunks", [])
    lines, ledgers = [], {}
    for color, (name, label) in enumerate((("sliding", "sliding"), ("ttt", "with learning (TTT)"))):
        path = run.folder / f"ledger.{name}.jsonl"
        if name in run.evaluations and path.is_file():
            ledgers[label] = read_ledger(path)[1]
            lines.append(Series(label, running(ledgers[label]), "line", color))
    if not chunks and not lines:
        return None
    size = run.recipe.get("ttt.chunk_tokens", 0)
    if chunks and not any("TTT" in line.name for line in lines):
        points = [(float(size * (index + 1)), bpb) for index, bpb in enumerate(chunks)]
        lines.append(Series("with learning (TTT)", points, "line", 1))
    blocks: list[Block] = [Prose(_method(run))] if chunks else []
    blocks.append(LineChart("Score so far", "targets scored", "bits per byte", lines))
    if len(ledgers) == 2 and len(segments := _segments(*ledgers.values())) > 1:
        series = [
            Series(label, [(x, y[index]) for x, *y in segments], "dots", index)
            for index, label in enumerate(ledgers)
        ]
        note = "Bits per byte of each stretch of the text on its own."
        blocks.append(LineChart("Stretch by stretch", "targets", "bits per byte", series, note=note))
    if chunks:
        rows = [[f"{index + 1}", chunks[index]] for index in _quarters(len(chunks))]
        note = f"Everything up to and including the chunk, of {size:,} targets each."
        columns = ("chunk", "bits per byte so far")
        blocks.append(Sheet(Table("Score after chunks", columns, rows, note), folded=True))
    return Section("ttt", "Test-time training" if chunks else "Along the text", blocks)


def _quarters(count: int) -> list[int]:
    return sorted({0, count // 4, count // 2, 3 * count // 4, count - 1})


def _segments(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[float, float, float]]:
    """(middle target, bits per byte of one ledger, of the other) of stretches at whose ends both have an
    edge.
    """
    ends = sorted({e.first + e.targets for e in first} & {e.first + e.targets for e in second})
    count = min(_SEGMENTS, len(ends))
    edges = sorted({ends[(index + 1) * len(ends) // count - 1] for index in range(count)}) if ends else []
    found, start = [], 0
    for end in edges:
        values = []
        for entries in (first, second):
            inside = [entry for entry in entries if start <= entry.first < end]
            size = sum(entry.bytes for entry in inside)
            values.append(sum(entry.nats for entry in inside) / math.log(2) / size if size else math.nan)
        found.append(((start + end) / 2, values[0], values[1]))
        start = end
    return found


def _method(run: RunRecord) -> str:
    def key(name: str) -> Any:
        return run.recipe.get(f"ttt.{name}")

    if key("method") in ("full", None):
        return (
            f"All weights learn: {str(key('optimizer')).upper()}, learning rate {key('lr')}, {key('epochs')} epochs "
            f"over each scored chunk of {key('chunk_tokens'):,} targets. Every chunk is scored before anything learns "
            "from it."
        )
    return (
        f"Low-rank adapters learn ({key('method')}, rank {key('lora.rank')}, alpha {key('lora.alpha'):g}): AdamW, "
        f"rate {key('lora.lr')}, {key('lora.epochs')} epochs over each scored chunk of {key('lora.chunk_tokens'):,} "
        "targets. Every chunk is scored before anything learns from it."
    )


def _bytes(run: RunRecord) -> Section | None:
    pack = run.result.get("pack")
    if not pack:
        return None
    rows = [
        [
            name,
            group["bytes"],
            8 * group["bytes"] / max(group["entries"], 1),
            group["entries"],
            group["tensors"],
        ]
        for name, group in pack["groups"].items()
    ]
    columns = ("group", "bytes", "bits per number", "numbers", "tensors")
    blocks: list[Block] = [
        Prose(
            f"Artifact {pack['model_bytes']:,} bytes, packed scoring code {pack['code_bytes']:,}: together "
            f"{share_of_cap(pack)}."
        )
    ]
    tensors = pack.get("tensors", [])
    if tensors:
        parts = [(tensor["group"], tensor["name"], float(tensor["bytes"])) for tensor in tensors]
        parts.append(("code", "packed scoring code", float(pack["code_bytes"])))
        blocks.append(
            Areas(
                "Where the bytes are", "bytes", parts, "Every rectangle is a tensor, as large as its bytes."
            )
        )
    blocks.append(Sheet(Table("By group of tensors", columns, rows, digits=2), bar="bytes"))
    if tensors:
        blocks.append(Sheet(_tensor_table(tensors), bar="bytes", folded=True))
    return Section("bytes", "Bytes", blocks)


def _tensor_table(tensors: Sequence[dict[str, Any]]) -> Table:
    keys = ("name", "bytes", "bits_per_weight", "entries", "width", "group")
    rows = [
        [
            *(tensor[key] for key in keys),
            *(_thousandths(tensor.get(key)) for key in ("predicted", "measured")),
        ]
        for tensor in sorted(tensors, key=lambda tensor: -tensor["bytes"])
    ]
    columns = ("tensor", "bytes", "bits per number", "numbers", "width", "group", "predicted", "measured")
    note = (
        "Width: bits of the largest code, or 16 or 32 for floats. Predicted and measured: rise of the loss on the "
        "calibration text through this tensor's rounding, in thousandths of a nat per token."
    )
    return Table(f"All {len(tensors)} tensors", columns, rows, note, digits=3)


def _thousandths(value: float | None) -> float | None:
    return None if value is None else 1e3 * value


def _making(run: RunRecord) -> Section:
    made, trained = run.provenance, run.result.get("train", {})
    environment, data = made.get("environment", {}), made.get("data", {})
    rows = [
        ("run", f"{run.name}, {run.state}"),
        ("started", run.date),
        ("training", f"{trained.get('steps', run.steps):,} steps{_in_seconds(run)}"),
        ("data", f"{data.get('folder')}, fingerprint {str(data.get('fingerprint'))[:16]}"),
        ("tokenizer", f"SHA-256 {str(data.get('tokenizer_sha256'))[:16]}"),
        ("pgolf", f"{environment.get('pgolf')}, code SHA-256 {str(environment.get('code_sha256'))[:16]}"),
        (
            "software",
            f"Python {environment.get('python')}, torch {environment.get('torch')}, numpy {environment.get('numpy')}",
        ),
        (
            "machine",
            f"{environment.get('device_name')}, {environment.get('cpu_cores')} cores, "
            f"{environment.get('threads', '?')} threads, {environment.get('platform')}",
        ),
    ]
    if made.get("ranks", 1) != 1:
        rows.append(("ranks", f"{made['ranks']}"))
    for session in made.get("sessions", [])[1:]:
        rows.append(("continued", f"{session.get('started')} on {session.get('host')}"))
    for shared in made.get("shared", []):
        parts = ", ".join(f"{what}: {which}" for what, which in shared.items() if what != "with")
        rows.append(("shared", f"with the run {shared['with']} beside it: {parts}"))
    text = read_text(run.folder / RECIPE)
    recipe = Listing(text.rstrip().splitlines(), "toml", "The recipe, resolved", folded=True)
    return Section("provenance", "How it was made", [Facts("Environment and provenance", rows), recipe])


def _commands(run: RunRecord) -> Section:
    """What made the run, and what makes it again from the files that are left, as shell lines."""
    given = [str(word) for word in run.provenance.get("command", [])[1:]]
    data = ["--data", str(run.provenance.get("data", {}).get("folder"))]
    if "--tokenizer" in given[:-1]:
        data += ["--tokenizer", given[given.index("--tokenizer") + 1]]
    lines = [
        "# what was typed",
        shlex.join(["pgolf", *given]),
        "# the same on the recorded data, from this folder",
        shlex.join(["pgolf", "run", RECIPE, *data, "--out", "again"]),
    ]
    modes = {"packed": "standard", "sliding": "sliding", "ttt": "ttt"}
    recorded = [
        name for name in modes if name in run.evaluations and (run.folder / f"ledger.{name}.jsonl").is_file()
    ]
    if recorded:
        name = recorded[-1]
        lines += [
            "# one score again, and the record of it",
            shlex.join(["pgolf", "eval", ARTIFACT, *data, "--mode", modes[name]]),
            shlex.join(["pgolf", "verify-ledger", f"ledger.{name}.jsonl", *data, "--artifact", ARTIFACT]),
        ]
    return Section("repeat", "Repeat it", [Listing(lines)])
