"""``report.md``: what a run is, what it scored, where its bytes went, how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgolf.files import read_json, write_bytes
from pgolf.recipe import Recipe, load_recipe
from pgolf.report.curve import draw_curve

# Name in result.json, label, what it is.
SCORES = (
    ("raw", "raw float BPB", "last weights, standard windows"),
    ("float", "float BPB", "averaged weights, standard windows"),
    ("packed", "packed BPB", "artifact, standard windows"),
    ("sliding", "sliding BPB", "artifact, sliding windows"),
    ("ttt", "TTT BPB", "artifact, legal test-time training"),
)


def write_report(folder: Path) -> Path:
    """Write ``report.md`` and ``curve.png`` of a run folder from its recipe, metrics, result and provenance."""
    recipe, result = load_recipe(str(folder / "recipe.toml")), read_json(folder / "result.json")
    draw_curve(folder / "metrics.jsonl", folder / "curve.png", f"{recipe.name}: training")
    parts = [
        f"# {recipe.name}",
        recipe.description,
        "## Scores",
        _scores(result.get("evaluations", {}), result.get("pack")),
        "![Training loss and validation](curve.png)",
    ]
    if "pack" in result:
        parts += ["## Bytes", _bytes(result["pack"])]
    chunks = result.get("evaluations", {}).get("ttt", {}).get("chunks", [])
    if chunks:
        parts += ["## Test-time training", _chunks(chunks, recipe)]
    parts += ["## How it was made", _making(folder, recipe, result)]
    parts += ["## Repeat it", _commands(folder, result)]
    path = folder / "report.md"
    write_bytes(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _scores(evaluations: dict[str, Any], pack: dict[str, Any] | None) -> str:
    rows = [
        (label, f"{found['val_bpb']:.4f}", f"{found['val_loss']:.4f}", f"{found['seconds']:.1f}", what)
        for key, label, what in SCORES
        if (found := evaluations.get(key))
    ]
    parts = [table(("", "bits per byte", "nats per token", "seconds", "of"), rows)]
    if pack is not None:
        parts.append(f"**Artifact with scoring code: {_share_of_cap(pack)}.**")
    scopes = {(found["targets"], found["bytes"]) for found in evaluations.values()}
    if len(scopes) == 1:
        targets, size = scopes.pop()
        parts.append(
            f"Every score covers the same {targets:,} targets, {size:,} bytes of held-out text, each exactly once."
        )
    elif scopes:
        counts = ", ".join(f"{name} {found['targets']:,}" for name, found in evaluations.items())
        parts.append(f"**These scores cover different numbers of targets and do not compare: {counts}.**")
    return "\n\n".join(parts)


def _share_of_cap(pack: dict[str, Any]) -> str:
    share = 100 * pack["total_bytes"] / pack["cap"]
    return f"{pack['total_bytes']:,} of {pack['cap']:,} bytes ({share:.1f} %)"


def _bytes(pack: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{group['tensors']:,}",
            f"{group['entries']:,}",
            f"{group['bytes']:,}",
            f"{8 * group['bytes'] / max(group['entries'], 1):.2f}",
        )
        for name, group in pack["groups"].items()
    ]
    return (
        table(("group", "tensors", "numbers", "bytes", "bits per number"), rows)
        + f"\n\nArtifact {pack['model_bytes']:,} bytes, packed scoring code {pack['code_bytes']:,}: together "
        f"{_share_of_cap(pack)}."
    )


def _chunks(chunks: list[float], recipe: Recipe) -> str:
    shown = sorted({0, len(chunks) // 4, len(chunks) // 2, 3 * len(chunks) // 4, len(chunks) - 1})
    rows = [(f"{index + 1}", f"{chunks[index]:.4f}") for index in shown]
    ttt, lora = recipe.ttt, recipe.ttt.lora
    if ttt.method == "full":
        how = (
            f"{ttt.optimizer.upper()}, learning rate {ttt.lr}, {ttt.epochs} epochs over each scored chunk of "
            f"{ttt.chunk_tokens:,} targets."
        )
    else:
        how = (
            f"`{ttt.method}`: low-rank adapters (rank {lora.rank}, alpha {lora.alpha:g}), AdamW, rate {lora.lr}, "
            f"{lora.epochs} epochs over each scored chunk of {lora.chunk_tokens:,} targets."
        )
    return f"{how} Bits per byte of everything up to each {ttt.chunk_tokens:,} targets:\n\n" + table(
        (f"times {ttt.chunk_tokens:,}", "bits per byte so far"), rows
    )


def _making(folder: Path, recipe: Recipe, result: dict[str, Any]) -> str:
    made = read_json(folder / "provenance.json")
    trained = result.get("train", {})
    environment = made["environment"]
    rows = [
        ("started", made["started"]),
        ("training", f"{trained.get('steps', 0):,} steps in {trained.get('seconds', 0):.0f} s"),
        ("recipe", f"`recipe.toml`, SHA-256 {recipe.digest()[:16]}"),
        ("data", f"{made['data']['folder']}, fingerprint {made['data']['fingerprint'][:16]}"),
        ("tokenizer", f"SHA-256 {made['data']['tokenizer_sha256'][:16]}"),
        ("pgolf", f"{environment['pgolf']}, code SHA-256 {environment['code_sha256'][:16]}"),
        ("software", f"Python {environment['python']}, torch {environment['torch']}, numpy {environment['numpy']}"),
        ("machine", f"{environment['device_name']}, {environment['cpu_cores']} cores, {environment['platform']}"),
    ]
    return table(("", ""), rows)


def _commands(folder: Path, result: dict[str, Any]) -> str:
    """What made the run, and what makes it again from the files that are left, as shell lines."""
    made = read_json(folder / "provenance.json")
    given = made["command"][1:]
    data = ["--data", made["data"]["folder"]]
    if "--tokenizer" in given[:-1]:
        data += ["--tokenizer", given[given.index("--tokenizer") + 1]]
    lines = [
        "# what was typed",
        shlex.join(["pgolf", *given]),
        "# the same on the recorded data, from this folder",
        shlex.join(["pgolf", "run", "recipe.toml", *data, "--out", "again"]),
    ]
    if "pack" in result:
        lines += ["# one score again", shlex.join(["pgolf", "eval", "artifact.pgolf", *data, "--mode", "ttt"])]
    return "\n".join(["```sh", *lines, "```"])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)
