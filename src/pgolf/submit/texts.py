"""The texts of a submission, written from its numbers: README.md, submission.json, training logs,
requirements.txt.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import statistics
from collections.abc import Sequence
from typing import Any

from pgolf.report.markdown import table
from pgolf.submit.bundle import Bundle
from pgolf.submit.checklist import TRACKS, Item
from pgolf.submit.evidence import Candidate

NON_COMPLIANT = "NON-COMPLIANT"
_PARTS = (
    ("raw", "last weights"),
    ("float", "averaged weights"),
    ("packed", "quantized"),
    ("sliding", "sliding windows"),
    ("ttt", "test-time training"),
)


def requirements(bundle: Bundle) -> str:
    """The distributions that the script imports, in the versions that are installed."""
    lines = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in bundle.requirements]
    return "\n".join(lines) + "\n"


def training_log(run: Candidate) -> str:
    """A run's training and evaluation as lines."""
    steps, made = run.recipe.train.steps, run.provenance
    lines = [
        f"recipe:{run.recipe.name} seed:{run.seed} {run.machine}",
        f"started:{made['started']} code_sha256:{made['environment']['code_sha256']}",
        f"data:{made['data']['fingerprint']} tokenizer_sha256:{made['data']['tokenizer_sha256']}",
    ]
    for entry in run.metrics:
        if "val_bpb" in entry:
            lines.append(
                f"step:{entry['step']}/{steps} val_loss:{entry['val_loss']:.6f} val_bpb:{entry['val_bpb']:.6f}"
            )
        else:
            lines.append(
                f"step:{entry['step']}/{steps} train_loss:{entry['train_loss']:.6f} lr_scale:{entry['lr_scale']:.4f} "
                f"tokens_per_second:{entry['tokens_per_second']:.0f}"
            )
    trained = run.result["train"]
    lines.append(f"trained steps:{trained['steps']} train_time:{trained['seconds']:.1f}s")
    lines.append(f"packed bytes:{run.artifact.stat().st_size} pack_time:{run.packing_seconds:.1f}s")
    for name, found in run.result["evaluations"].items():
        lines.append(
            f"{name} val_loss:{found['val_loss']:.8f} val_bpb:{found['val_bpb']:.8f} targets:{found['targets']} "
            f"bytes:{found['bytes']} eval_time:{found['seconds']:.1f}s"
        )
    return "\n".join(lines) + "\n"


def summary(runs: Sequence[Candidate]) -> dict[str, float]:
    """Mean and standard deviation (n - 1) over the seeds; the deviation of one run is 0."""
    scores, losses = [run.score["val_bpb"] for run in runs], [run.score["val_loss"] for run in runs]
    return {
        "val_bpb": statistics.fmean(scores),
        "val_bpb_std": _deviation(scores),
        "val_loss": statistics.fmean(losses),
        "val_loss_std": _deviation(losses),
    }


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def submission(
    runs: Sequence[Candidate], bundle: Bundle, items: Sequence[Item], about: dict[str, Any], track: str
) -> dict[str, Any]:
    """What goes into submission.json."""
    code = len(bundle.packed)
    ok = all(item.ok for item in items)
    return {
        "author": about["author"],
        "github_id": about["github_id"],
        "name": about["name"],
        "blurb": about["blurb"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "track": TRACKS[track].removeprefix("track_"),
        **summary(runs),
        "seeds": [run.seed for run in runs],
        "seed_results": {str(run.seed): _seed_result(run, code) for run in runs},
        "bytes_total": code + max(run.artifact.stat().st_size for run in runs),
        "bytes_code": code,
        "hardware": runs[0].machine,
        "pytorch_version": runs[0].provenance["environment"]["torch"],
        "compliant": ok,
        "compliance": {item.rule: item.ok for item in items},
        **(
            {}
            if ok
            else {
                "status": NON_COMPLIANT,
                "violations": [f"{i.rule}: {i.evidence}" for i in items if not i.ok],
            }
        ),
    }


def _seed_result(run: Candidate, code: int) -> dict[str, Any]:
    model = run.artifact.stat().st_size
    return {
        "val_bpb": run.score["val_bpb"],
        "val_loss": run.score["val_loss"],
        "sliding_val_bpb": run.result["evaluations"]["sliding"]["val_bpb"],
        "artifact_bytes": model,
        "bytes_total": model + code,
        "steps": run.result["train"]["steps"],
        "train_time_s": round(run.train_seconds, 1),
        "eval_time_s": round(run.score["seconds"], 1),
    }


def readme(
    runs: Sequence[Candidate], bundle: Bundle, items: Sequence[Item], about: dict[str, Any], track: str
) -> str:
    """What goes into README.md."""
    figures = summary(runs)
    mean = f"**{figures['val_bpb']:.5f} bits per byte** ({figures['val_loss']:.5f} nats per token)"
    over = (
        f"mean of {len(runs)} seeds, standard deviation {figures['val_bpb_std']:.5f}"
        if len(runs) > 1
        else "one seed"
    )
    bad = [item for item in items if not item.ok]
    warning = [
        f"> **{NON_COMPLIANT}**: written with --force; {len(bad)} rules are not kept (see the checklist)."
    ]
    parts = [
        f"# {about['name']}",
        *(warning if bad else []),
        about["blurb"],
        f"{mean}, {over}. Track: {TRACKS[track]}.",
        "## Results",
        _results(runs, len(bundle.packed)),
        "## Where the bits go",
        _decomposition(runs),
        "Bits per byte; the last column is the one that counts, each before it one thing less.",
        "## Model",
        f"```toml\n{_changes(runs[0])}```",
        "These are the recipe's keys that differ from pgolf's defaults; `recipe.toml` has all of them.",
        "## Run it",
        _commands(runs),
        "## Files",
        _files(bundle),
        "## Checklist",
        table(("", "rule", "evidence"), [("ok" if i.ok else "**no**", i.rule, i.evidence) for i in items]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(runs: Sequence[Candidate], code: int) -> str:
    head = ("seed", "bits per byte", "nats per token", "steps", "training (s)", "evaluation (s)", "bytes")
    rows = [
        (
            str(run.seed),
            f"{run.score['val_bpb']:.5f}",
            f"{run.score['val_loss']:.5f}",
            f"{run.result['train']['steps']:,}",
            f"{run.train_seconds:.1f}",
            f"{run.score['seconds']:.1f}",
            f"{run.artifact.stat().st_size + code:,}",
        )
        for run in runs
    ]
    figures = summary(runs)
    rows += [
        ("mean", f"{figures['val_bpb']:.5f}", f"{figures['val_loss']:.5f}", "", "", "", ""),
        ("std", f"{figures['val_bpb_std']:.5f}", f"{figures['val_loss_std']:.5f}", "", "", "", ""),
    ]
    return table(head, rows if len(runs) > 1 else rows[:1])


def _decomposition(runs: Sequence[Candidate]) -> str:
    # What was scored after the evaluation that counts is no part of it.
    last = [name for name, _ in _PARTS].index(runs[0].score["mode"])
    parts = _PARTS[: last + 1]
    known = [(name, label) for name, label in parts if all(name in run.result["evaluations"] for run in runs)]
    rows = [
        (str(run.seed), *(f"{run.result['evaluations'][name]['val_bpb']:.5f}" for name, _ in known))
        for run in runs
    ]
    return table(("seed", *(label for _, label in known)), rows)


def _changes(run: Candidate) -> str:
    import tomli_w

    return tomli_w.dumps(run.recipe.model_dump(mode="json", exclude_defaults=True))


def _commands(runs: Sequence[Candidate]) -> str:
    lines = ["pip install -r requirements.txt"]
    start = "torchrun --standalone --nproc_per_node=8 train_gpt.py --data DATA --tokenizer MODEL"
    lines += [f"{start} --out seed{run.seed} --seed {run.seed}" for run in runs]
    lines.append("# score an artifact again")
    lines.append(f"{start} --artifact evidence/artifact_seed{runs[0].seed}.pgolf")
    return (
        "```sh\n"
        + "\n".join(lines)
        + "\n```\n\nDATA has the shards `*_train_*.bin` and `*_val_*.bin`, MODEL is the SentencePiece model."
    )


def _files(bundle: Bundle) -> str:
    rows = [
        ("`train_gpt.py`", f"what counts: {len(bundle.packed):,} bytes; trains, packs and scores"),
        ("`train_gpt_readable.py`", f"the same program to read, from {len(bundle.modules)} modules of pgolf"),
        ("`train_seed*.log`", "steps, losses, validations and scores of each seed"),
        ("`recipe.toml`", "the whole recipe, for `pgolf run`"),
        ("`evidence/`", "artifact and ledgers of each seed, and the audit"),
    ]
    return table(("file", ""), rows)
